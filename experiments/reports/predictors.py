"""The report of predictors: who needs fewest gradients where, and at which rates."""

import numpy as np
import polars as pl
from matplotlib import colormaps

from experiments import figures
from experiments import table as tables
from experiments.figures import Picture
from experiments.table import Metric, Table, markdown

c = pl.col
_GAPS = ("coarse", "fine")
_TAUS = np.geomspace(1, 32, 200)
_METHOD = (
    "A full batch in float64. Each method has one learning rate, of seven over two "
    "decades and more where the best is at an edge, and those with momentum one of "
    "five momenta, chosen by the gradients to the fine gap, or else the coarse gap, or "
    "else the last value, on a seed that is not reported. A seed draws the samples, "
    "and the start of the networks. Gaps above the minimum are 1e-3 and 1e-6, of the "
    "PINN 1 and 1e-2 above 0. The minimum is the lowest value of 1,500 steps of "
    "L-BFGS; the tanh network has several, so that a gap there means L-BFGS's. L-BFGS "
    "counts the gradients of its line search. *At the rate of* a method: the base at "
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
_FIRST = ("sliding", "revert", "nesterov", "lbfgs")  # in colour


def sections(table: Table, found: pl.DataFrame) -> list[str | Picture | None]:
    """Verdicts, medians, profiles, ratios to Nesterov and L-BFGS, rates."""
    arms = [arm for arm in table.study.arms if arm.baseline]
    return [
        "## Who is ahead where",
        *(
            figures.verdicts(table, found, METRICS[::-1], title, name, controls)
            for title, name, controls in (
                ("tuned base", "base", {a.name: a.baseline or "" for a in arms}),
                ("base at the matched rate", "matched",
                 {a.name: a.matched or "" for a in arms}),
                ("tuned Nesterov", "nesterov", {a.name: "nesterov" for a in arms}),
                ("L-BFGS", "lbfgs", {a.name: "lbfgs" for a in arms}),
            )
        ),
        "## Who needs fewest gradients",
        _METHOD,
        _medians(table),
        _profile(table),
        *(_ratios(table, control) for control in ("nesterov", "lbfgs")),
        "## Sensitivity to the learning rate",
        _sensitivity(table),
        "## Chosen rates",
        _chosen(table),
    ]  # fmt: skip


def _methods(table: Table) -> list[str]:
    """The arms that are no matched rates."""
    return [arm.name for arm in table.study.arms if not arm.name.endswith("-matched")]


def counts(table: Table) -> pl.DataFrame:
    """Gradients and seconds to the gaps, on the seeds on which every method ran.

    Returns:
      ``model``, ``arm``, ``seed``, ``gap``, ``gradients``, ``seconds``: infinite where
      the gap is not reached.
    """
    methods = _methods(table)
    runs = table.runs.filter(c("arm").is_in(methods))
    runs = runs.filter(c("arm").n_unique().over("model", "seed") == len(methods))
    units = ("gradients", "seconds")
    runs = tables.ensure(runs, *(f"{u}_{gap}" for u in units for gap in _GAPS))
    return pl.concat(
        runs.select(
            *tables.KEYS,
            gap=pl.lit(gap),
            **{u: c(f"{u}_{gap}").cast(pl.Float64).fill_null(np.inf) for u in units},
        )
        for gap in _GAPS
    ).sort(c("model").replace_strict({m: i for i, m in enumerate(table.models)}),
           maintain_order=True)  # fmt: skip


def _medians(table: Table) -> Picture:
    columns = ["model", "gap"]
    best = c("gradients").min().over(columns)
    medians = (
        counts(table)
        .group_by("arm", *columns, maintain_order=True)
        .agg(c("gradients").median())
        .with_columns(ratio=pl.when(best.is_finite()).then(c("gradients") / best))
    )
    count = c("gradients").round().cast(pl.Int64, strict=False)
    star = pl.when(c("ratio") == 1).then(pl.lit(" *")).otherwise(pl.lit(""))
    cells = table.named(medians).select(
        row="arm",
        column=pl.format("{}\n{}", c("model").str.replace("-", "\n"), "gap"),
        value=c("ratio").clip(1, 16).log(2),
        text=pl.when(c("gradients").is_finite())
        .then(pl.format("{}{}", count, star))
        .otherwise(pl.lit("-")),
    )
    figure = figures.figure("Gradients to the gap, median of the seeds", 9, 4.8)
    ax = figure.subplots()
    shades = colormaps["Blues_r"].resampled(256)(np.linspace(0.45, 1, 256))
    cmap = figures.ListedColormap(shades)
    rows = [table.labels[name] for name in _methods(table)]
    figures.heatmap(
        ax, cells, "value", cmap=cmap, limits=(0, 4), text="text", rows=rows
    )
    bar = figure.colorbar(ax.images[0], ax=ax, shrink=0.7, ticks=[0, 1, 2, 3, 4])
    bar.ax.set_yticklabels(["1", "2", "4", "8", "16"])
    bar.set_label("gradients / those of the best")
    return Picture(
        "medians",
        figure,
        "A star: the fewest of the column. A dash: the median run does not reach the "
        "gap within the steps of the study.",
    )


def _profile(table: Table) -> Picture:
    figure = figures.figure("Cases solved within a multiple of the best method", 9, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, unit in zip(axes, ("gradients", "seconds"), strict=True):
        best = c(unit).min().over("model", "gap", "seed")
        ratio = pl.when(c(unit).is_finite()).then(c(unit) / best)
        solved = (c("ratio") <= c("tau")).fill_null(False)
        parts = (
            counts(table)
            .with_columns(ratio=ratio)
            .join(pl.DataFrame({"tau": _TAUS}), how="cross")
            .group_by("arm", "tau", maintain_order=True)
            .agg(part=solved.mean())
        )
        figures.lines(table, ax, parts, "tau", "part", first=_FIRST)
        ax.set_xscale("log", base=2)
        ylabel = "part of the cases" if unit == "gradients" else ""
        figures.dress(ax, xlabel=f"{unit} / {unit} of the best", ylabel=ylabel)
    figures.legend(figure)
    return Picture(
        "profile",
        figure,
        "The part of the cases (a problem, a gap, a seed) in which a method needs at "
        "most so many times the gradients, or the processor time, of the best one. "
        "Cases that no method solves count as unsolved.",
    )


def _ratios(table: Table, control: str) -> str:
    arms = ["sliding", "revert", "restarted", "restarted-nesterov"]
    found = counts(table)
    theirs = found.filter(c("arm") == control)
    keys = ["model", "gap", "seed"]
    both = found.filter(c("arm").is_in(arms)).join(
        theirs.select(*keys, base="gradients"), on=keys, maintain_order="left"
    )
    solved = c("gradients").is_finite() & c("base").is_finite()
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
                    tables.texts("gradients", lambda x: tables.number(x, 2)),
                    "missing",
                )
            ),
        )
    )
    return markdown(
        f"Gradients, relative to {table.labels[control]}",
        cells.pivot("column", index="method", values="cell"),
        note="Geometric mean of the ratios of the seeds on which both get there.",
    )


def _sensitivity(table: Table) -> Picture:
    figure = figures.figure(
        "Last gap by learning rate, tuning seed", 3.2 * len(table.models), 4.2
    )
    axes = figure.subplots(1, len(table.models), squeeze=False)[0]
    tuned = pl.DataFrame(
        [
            (record.model, record.arm, rate / rates[0], max(gap, 1e-12))
            for record, rates in table.measured("rates", finished=False)
            for rate, gap in zip(rates, record.measures["gaps"], strict=True)
            if len(rates) > 1 and record.arm != "adam" and gap >= 0
        ],
        schema=["model", "arm", "rate", "gap"],
        orient="row",
    )
    for ax, model in zip(axes, table.models, strict=True):
        of_model = tuned.filter(c("model") == model)
        first = ("sliding", "revert", "restarted", "nesterov")
        figures.lines(table, ax, of_model, "rate", "gap", first=first)
        ax.set_ylim(1e-13, 1e3)
        ax.set_xscale("log")
        ax.set_yscale("log")
        figures.dress(ax, xlabel="rate / lowest rate", ylabel="gap", title=model)
        ax.label_outer()
    figures.legend(figure)
    return Picture(
        "sensitivity",
        figure,
        "The gap after the last step, at the best momentum. Lines end where the loss "
        "is no longer finite.",
    )


def _chosen(table: Table) -> str:
    finished = tables.ensure(table.finished, "seconds_fine")
    keys = ["model", "arm"]
    first = finished.group_by(keys, maintain_order=True).first()
    rows = first.select(*keys, "learning_rate", "momentum", "drift")
    rows = rows.join(tables.counts(table), on=keys, maintain_order="left").join(
        tables.spreads(finished, keys, {"seconds_fine": 3}),
        on=keys,
        maintain_order="left",
    )
    return markdown(
        "Rates, drift, seconds",
        table.named(rows),
        {
            **{"model": "problem", "arm": "arm", "runs": "runs"},
            "learning_rate": ("learning rate", "{:.3g}".format),
            "momentum": ("momentum", "{:g}".format),
            "drift": ("drift", 2),
            "seconds_fine": "seconds to the fine gap",
        },
        note="Drift of a matched rate is that of its method. Seconds are processor "
        "time without compilation.",
        left=2,
    )
