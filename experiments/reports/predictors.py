"""The report of predictors: gradients relative to others, and chosen rates."""

import polars as pl

from experiments import markdown
from experiments import table as tables
from experiments.reports import Report
from experiments.reports.tried_rates import rates_and_drift
from experiments.table import Metric, Table

c = pl.col
_METHOD = (
    "A full batch in float64. Each method has one learning rate, of seven over two "
    "decades and more where the best is at an edge, and those with momentum one of "
    "five momenta, chosen by the gradients to the fine gap, or else the coarse gap, or "
    "else the last value, on a seed that is not reported. A seed draws the samples, "
    "and the start of the networks. Gaps above the minimum are 1e-3 and 1e-6, of the "
    "PINN 1 and 1e-2 above 0. The minimum is the lowest value of 1,500 steps of "
    "L-BFGS; the tanh network has several, so that a gap there means L-BFGS's. L-BFGS "
    "counts the gradients of its line search. *Matched rate of* a method: the base at "
    "that method's learning rate times its drift; where coefficients follow the "
    "updates, drift is the ratio of the lengths of all emitted updates and of what its "
    "base would have emitted there."
)
METRICS = tuple(
    Metric(
        f"gradients_{gap}",
        f"gradients to the {gap} gap",
        "gradients",
        0,
        pl.coalesce(f"gradients_{gap}", "steps"),
        note="A run that never gets there counts as if it did with its last step.",
    )
    for gap in ("fine", "coarse")
)


def _sections(table: Table) -> list[str]:
    """Ratios to Nesterov and L-BFGS, and chosen rates."""
    return [
        "## Who needs fewest gradients",
        _METHOD,
        *(_ratios(table, control) for control in ("nesterov", "lbfgs")),
        "## Chosen rates",
        rates_and_drift(
            table,
            "problem",
            "Drift of a matched rate is that of its method. L is the largest "
            "curvature at the start, which power iteration finds.",
        ),
    ]


def counts(table: Table) -> pl.DataFrame:
    """``model``, ``arm``, ``seed``, ``gap``, ``gradients``: null if not reached."""
    names = {f"gradients_{gap}": gap for gap in ("coarse", "fine")}
    runs = tables.ensure(table.runs, *names)
    return pl.concat(
        runs.select(*tables.KEYS, gap=pl.lit(gap), gradients=c(n).cast(pl.Float64))
        for n, gap in names.items()
    ).sort(table.in_order, maintain_order=True)


def _ratios(table: Table, control: str) -> str:
    arms = ["sliding", "revert", "restarted", "restarted-nesterov"]
    found = counts(table)
    theirs = found.filter(c("arm") == control)
    keys = ["model", "gap", "seed"]
    both = found.filter(c("arm").is_in(arms)).join(
        theirs.select(*keys, base="gradients"), on=keys, maintain_order="left"
    )
    solved = c("gradients").is_not_null() & c("base").is_not_null()
    ratio = (c("gradients") / c("base")).filter(solved).log().mean().exp()
    missing = pl.when(~solved.all()).then(
        pl.format(" ({} of {})", solved.sum(), pl.len())
    )
    cells = (
        both.group_by("arm", "model", "gap", maintain_order=True)
        .agg(ratio, solved=solved.sum(), missing=missing.fill_null(""))
        .select(
            method=c("arm").replace(table.labels),
            column=pl.format("{}, {}", "model", "gap"),
            cell=pl.when(c("solved") > 0).then(
                pl.format(
                    "{}{}",
                    markdown.texts("gradients", lambda x: markdown.number(x, 2)),
                    "missing",
                )
            ),
        )
    )
    return markdown.write(
        f"Gradients, relative to {table.labels[control]}",
        cells.pivot("column", index="method", values="cell"),
        note="Geometric mean of the ratios of the seeds on which both get there.",
    )


REPORT = Report(_sections, METRICS)
