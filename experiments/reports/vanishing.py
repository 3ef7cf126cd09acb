"""The report of vanishing gradients: rates, and gradients by layer."""

import polars as pl

from experiments import markdown
from experiments.reports import Report, ReportBlock
from experiments.reports.cascade import gradient_picture, gradients
from experiments.reports.tried_rates import is_tuning, sensitivity
from experiments.studies.vanishing import DRAWN, METHODS
from experiments.table import Table
from training.run.layer_analysis import by_depth

c = pl.col
_RATES = (
    "The rate is constant. That of each arm is one of three, chosen at scale tune "
    "(VGG-16 on digits) by the lowest validation loss of a seed that is not reported: "
    "{rates}. "
    "All arms have the same number of epochs, which a cascade shares among its blocks; "
    "only training end to end after a cascade has a quarter more. "
    "Amplification begins with the second epoch."
)


def _sections(table: Table) -> list[ReportBlock]:
    """Gradients by layer, and how rates were chosen; at scale tune losses by rate."""
    if is_tuning(table):
        return ["## Sensitivity to the learning rate", sensitivity(table, METHODS)]
    ran = set(table.runs["arm"])
    rates = "; ".join(f"{m.label} {m.rate:g}" for n, m in METHODS.items() if n in ran)
    return [
        "## Gradients by layer",
        *(gradient_picture(table, model, DRAWN) for model in table.models),
        *(_ends(table, model) for model in table.models),
        "## Chosen rates",
        _RATES.format(rates=rates),
    ]


def _ends(table: Table, model: str) -> str | None:
    """Norms in the first and the last convolution, when their training begins."""
    found = gradients(table, model)
    layers = by_depth(list(found["layer"].unique()))
    if not layers:
        return None
    start = found.filter(c("part") == 0).pivot("layer", index="arm", values="norm")
    first, last = layers[0], layers[-1]
    return markdown.write(
        f"Norm of the gradient after the first step, {table.place(model)}",
        start.select(
            c("arm").replace(table.labels),
            *(markdown.texts(name, "{:.2g}".format) for name in (first, last)),
        ),
        note="Of the first seed. In a cascade, after the first step of the stage.",
    )


REPORT = Report(_sections)
