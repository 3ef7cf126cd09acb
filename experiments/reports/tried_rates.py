"""Learning rates that were tried, and those that were chosen."""

from collections.abc import Mapping

import polars as pl

from experiments import markdown
from experiments.table import ARM, LOSS, Table, ensure
from experiments.tried_rates import TRIED, RecipeMethod, at_rate

c = pl.col


def is_tuning(table: Table) -> bool:
    """Whether these are runs of scale tune alone."""
    return all(table.study.arm(arm).group == TRIED for arm in set(table.runs["arm"]))


def losses(table: Table, methods: Mapping[str, RecipeMethod]) -> pl.DataFrame:
    """Mean validation losses of the tuning seeds.

    Returns:
      The columns ``method``, ``rate``, ``arm``, ``value`` and ``seeds``, how many.
    """
    frame = pl.DataFrame(
        [(n, r, at_rate(n, r)) for n, method in methods.items() for r in method.rates],
        schema=["method", "rate", "arm"],
        orient="row",
    )
    means = (
        LOSS.values(table)
        .group_by("arm")
        .agg(c("value").mean(), seeds=c("seed").n_unique())
    )
    return frame.join(means, on="arm", how="left", maintain_order="left")


def sensitivity(table: Table, methods: Mapping[str, RecipeMethod]) -> str:
    """A table of the validation losses by learning rate."""
    found = losses(table, methods)
    rates = sorted(found["rate"].unique())
    of_most = c("seeds") == c("seeds").max().over("method")
    text = markdown.texts("value", markdown.number)
    frame = found.with_columns(
        pl.when(of_most | c("value").is_null())
        .then(text)
        .otherwise(pl.format("({})", text))
    ).pivot("rate", index="method", values="value")
    chosen = [f"{methods[name].rate:g}" for name in frame["method"]]
    return markdown.write(
        "Validation loss by learning rate (nats)",
        frame.with_columns(chosen=pl.Series(chosen)),
        {
            "method": ("method", lambda name: methods[name].label),
            **{str(rate): f"{rate:g}" for rate in rates},
            "chosen": "chosen",
        },
        note="Means over the tuning seeds, in brackets where fewer have run. A dash: "
        "diverged, or not run.",
    )


def rates_and_drift(table: Table, model: str, note: str) -> str:
    """What tuning chose for each arm, of its first run; ``model`` heads its setups."""
    first = (
        ensure(table.finished, "curvature", "momentum")
        .group_by(ARM, maintain_order=True)
        .first()
        .with_columns(multiple=c("learning_rate").cast(pl.Float64) * c("curvature"))
    )
    rows = first.join(markdown.counts(table), on=ARM, maintain_order="left")
    return markdown.write(
        "Rates and drift",
        table.named(rows),
        {
            **{"model": model, "arm": "arm", "runs": "runs"},
            "learning_rate": ("learning rate", "{:.3g}".format),
            "multiple": ("times L", 2),
            "momentum": ("momentum", lambda x: "" if x is None else f"{x:g}"),
            "drift": ("drift", 2),
        },
        note=note,
        left=2,
    )
