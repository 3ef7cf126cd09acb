"""The report of vanishing gradients: rates, and gradients by layer."""

import polars as pl

from experiments import markdown
from experiments.figures import Picture
from experiments.reports.cascade import gradient_picture, gradients
from experiments.studies.vanishing import DRAWN, METHODS, at_rate
from experiments.table import LOSS, Table
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


def sections(table: Table, found: pl.DataFrame) -> list[str | Picture | None]:
    """Gradients by layer, and how rates were chosen; at scale tune losses by rate."""
    if not len(found):
        return ["## Sensitivity to the learning rate", _sensitivity(table)]
    ran = set(table.runs["arm"])
    rates = "; ".join(f"{m.label} {m.rate:g}" for n, m in METHODS.items() if n in ran)
    return [
        "## Gradients by layer",
        *(gradient_picture(table, model, DRAWN) for model in table.models),
        *(_ends(table, model) for model in table.models),
        "## Chosen rates",
        _RATES.format(rates=rates),
    ]


def losses(table: Table) -> pl.DataFrame:
    """Validation losses of the tuning seed, by method and rate."""
    tried = [(n, r, at_rate(n, r)) for n, m in METHODS.items() for r in m.rates]
    frame = pl.DataFrame(tried, schema=["method", "rate", "arm"], orient="row")
    found = LOSS.values(table).select("arm", "value")
    return frame.join(found, on="arm", how="left", maintain_order="left")


def _sensitivity(table: Table) -> str:
    frame = losses(table).with_columns(
        text=pl.format("{} ({})", markdown.texts("value", markdown.number), c("rate"))
    )
    ranked = c("rate").rank("ordinal").over("method").cast(pl.String)
    frame = frame.with_columns(column=ranked).pivot(
        "column", index="method", values="text"
    )
    labels = {name: method.label for name, method in METHODS.items()}
    chosen = [METHODS[name].rate for name in frame["method"]]
    return markdown.write(
        "Validation loss (nats), and the rate in brackets",
        frame.with_columns(
            c("method").replace(labels), chosen=pl.Series(chosen, dtype=pl.Float64)
        ),
        {"method": "arm", "1": "low", "2": "middle", "3": "high", "chosen": "chosen"},
        note="Of one seed. A dash: diverged, or not run.",
    )


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
