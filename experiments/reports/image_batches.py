"""The report of predictors on images: curves, or losses by learning rate."""

from collections.abc import Sequence

import numpy as np

from experiments import figures, style, tables
from experiments.comparisons import METRICS, Compared
from experiments.figures import Picture
from experiments.runs import Runs
from experiments.studies.image_batches import BASE, METHODS, RATES, at_rate

_METHOD = (
    "The rate warms up and falls to 0 by half a cosine, or stays (*constant rate*). "
    "The peak rate of each method is one of {rates}, chosen at scale tune by the "
    "validation loss of a seed that is not reported. *At the rate of* a method: the "
    "base at that rate times the method's drift ({drifts}); EMA-Nesterov's is the mean "
    "over the run, weighted by the learning rate. The numbers of the tail average are "
    "those of the average at the end, with running statistics of its own; its curves "
    "are those of the parameters."
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Curves of the comparison; at scale tune losses by rate."""
    if not found:
        return ["## Sensitivity to the learning rate", *_sensitivity(runs)]
    rates = ", ".join(map(str, RATES))
    drifts = ", ".join(f"{m.label} {m.drift:.3g}" for m in METHODS.values())
    arms = list(METHODS)
    return [
        "## Curves",
        _METHOD.format(rates=rates, drifts=drifts),
        *(figures.curves(runs, model, arms, BASE, "loss") for model in runs.models),
    ]


def _sensitivity(runs: Runs) -> list[str | Picture | None]:
    """Validation losses by learning rate: a picture and a table."""
    losses = METRICS[1]
    figure = style.figure(f"Validation loss by rate, {runs.place(runs.models[0])}", 7)
    ax = figure.subplots()
    rows = []
    for name, method in METHODS.items():
        means = {}
        for rate in RATES:
            records = runs.finished(runs.models[0], at_rate(name, rate))
            values = np.array([losses.read(record, ()) for record in records], float)
            if np.isfinite(values).any():
                means[rate] = float(values.mean())
        look = runs.looks[name]
        ax.plot(
            *(list(means), list(means.values())),
            **look._asdict(),
            label=method.label,
        )
        cells = [tables.number(means.get(rate)) for rate in RATES]
        rows.append([method.label, *cells, f"{method.rate:g}"])
    ax.set_xscale("log")
    ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    ax.minorticks_off()
    style.dress(ax, xlabel="peak learning rate", ylabel="validation loss (nats)")
    style.legend(figure)
    table = tables.markdown(
        "Validation loss by peak learning rate (nats)",
        ("method", *(f"{rate:g}" for rate in RATES), "chosen"),
        rows,
        note="Means over the tuning seeds. A dash: diverged, or not run.",
    )
    return [Picture("rates", figure, "Means over the tuning seeds."), table]
