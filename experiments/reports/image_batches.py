"""The report of predictors on images: the choice of rates."""

import polars as pl

from experiments import markdown
from experiments.studies.image_batches import METHODS, RATES, at_rate
from experiments.table import LOSS, Table

c = pl.col
_METHOD = (
    "The rate warms up and falls to 0 by half a cosine, or stays (*constant rate*). "
    "The peak rate of each method is one of {rates}, chosen at scale tune by the "
    "validation loss of a seed that is not reported. *Matched rate of* a method: the "
    "base at that rate times the method's drift ({drifts}); EMA-Nesterov's is the mean "
    "over the run, weighted by the learning rate."
)


def sections(table: Table, found: pl.DataFrame) -> list[str]:
    """How rates were chosen; at scale tune losses by rate."""
    if not len(found):
        return ["## Sensitivity to the learning rate", _sensitivity(table)]
    rates = ", ".join(map(str, RATES))
    drifts = ", ".join(f"{m.label} {m.drift:.3g}" for m in METHODS.values())
    return ["## Chosen rates", _METHOD.format(rates=rates, drifts=drifts)]


def losses(table: Table) -> pl.DataFrame:
    """Mean validation losses of the tuning seeds, by method and rate."""
    tried = pl.DataFrame(
        [(name, rate, at_rate(name, rate)) for name in METHODS for rate in RATES],
        schema=["method", "rate", "arm"],
        orient="row",
    )
    means = LOSS.values(table).group_by("arm").agg(c("value").mean())
    return tried.join(means, on="arm", how="left", maintain_order="left")


def _sensitivity(table: Table) -> str:
    """Validation losses by learning rate."""
    frame = (
        losses(table)
        .with_columns(markdown.texts("value", markdown.number))
        .pivot("rate", index="method", values="value")
    )
    chosen = [f"{method.rate:g}" for method in METHODS.values()]
    return markdown.write(
        "Validation loss by peak learning rate (nats)",
        frame.with_columns(chosen=pl.Series(chosen)),
        {
            "method": ("method", lambda name: METHODS[name].label),
            **{str(rate): f"{rate:g}" for rate in RATES},
            "chosen": "chosen",
        },
        note="Means over the tuning seeds. A dash: diverged, or not run.",
    )
