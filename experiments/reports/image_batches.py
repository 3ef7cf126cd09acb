"""The report of predictors on images: curves, or losses by learning rate."""

import polars as pl

from experiments import figures
from experiments import table as tables
from experiments.figures import Picture
from experiments.studies.image_batches import BASE, METHODS, RATES, at_rate
from experiments.table import LOSS, Table, markdown

c = pl.col
_METHOD = (
    "The rate warms up and falls to 0 by half a cosine, or stays (*constant rate*). "
    "The peak rate of each method is one of {rates}, chosen at scale tune by the "
    "validation loss of a seed that is not reported. *At the rate of* a method: the "
    "base at that rate times the method's drift ({drifts}); EMA-Nesterov's is the mean "
    "over the run, weighted by the learning rate."
)


def sections(table: Table, found: pl.DataFrame) -> list[str | Picture | None]:
    """Curves of the comparison; at scale tune losses by rate."""
    if not len(found):
        return ["## Sensitivity to the learning rate", *_sensitivity(table)]
    rates = ", ".join(map(str, RATES))
    drifts = ", ".join(f"{m.label} {m.drift:.3g}" for m in METHODS.values())
    arms, first = list(METHODS), ("constant", "outer", "lookahead", "ema")
    return [
        "## Curves",
        _METHOD.format(rates=rates, drifts=drifts),
        *(figures.curves(table, m, arms, BASE, "loss", first) for m in table.models),
    ]


def losses(table: Table) -> pl.DataFrame:
    """Mean validation losses of the tuning seeds, by method and rate."""
    tried = pl.DataFrame(
        [(name, rate, at_rate(name, rate)) for name in METHODS for rate in RATES],
        schema=["method", "rate", "arm"],
        orient="row",
    )
    means = LOSS.values(table).group_by("arm").agg(c("value").mean())
    return tried.join(means, on="arm", how="left", maintain_order="left")


def _sensitivity(table: Table) -> list[str | Picture | None]:
    """Validation losses by learning rate: a picture and a table."""
    found = losses(table)
    lowest = found.filter(c("method") == BASE)["value"].min()
    figure = figures.figure(
        f"Validation loss minus the lowest of: {METHODS[BASE].label}, "
        f"{table.place(table.models[0])}",
        7.5,
        4.4,
    )
    ax = figure.subplots()
    ax.axhline(0, color="0.3", lw=1)
    shown = found.select("rate", arm="method", difference=c("value") - lowest)
    first = ("constant", "outer", "ema", "adaptive")
    figures.lines(table, ax, shown, "rate", "difference", first=first, control=BASE)
    ax.set_xscale("log")
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    ax.minorticks_off()
    figures.dress(ax, xlabel="peak learning rate", ylabel="difference (nats)")
    figures.legend(figure)
    frame = found.with_columns(tables.texts("value", tables.number)).pivot(
        "rate", index="method", values="value"
    )
    chosen = [f"{method.rate:g}" for method in METHODS.values()]
    text = markdown(
        "Validation loss by peak learning rate (nats)",
        frame.with_columns(chosen=pl.Series(chosen)),
        {
            "method": ("method", lambda name: METHODS[name].label),
            **{str(rate): f"{rate:g}" for rate in RATES},
            "chosen": "chosen",
        },
        note="Means over the tuning seeds. A dash: diverged, or not run.",
    )
    return [Picture("rates", figure, "Means over the tuning seeds."), text]
