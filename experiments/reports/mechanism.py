"""The report of the mechanism: what theory predicts, and what was measured."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from experiments import figures, markdown, stability
from experiments import table as tables
from experiments.figures import Picture
from experiments.reports import Report, ReportBlock
from experiments.statistics import compare
from experiments.studies.mechanism import LABELS, PERIOD, REGIMES, Regime
from experiments.table import Table
from training.run import style

c = pl.col
PLP = stability.plp_cycle(period=PERIOD)
_END = 0.25  # part of a run's measurements that counts as its end
_LOOKS = {
    "sgd": figures.PLAIN,
    "plp": figures.COLORED[0],
    "matched": figures.COLORED[1],
}
# Limits of stability, told apart from arms and from each other also in grey.
_LIMITS = {"sgd": (0, (1, 1)), "plp": (0, (4, 1, 1, 1))}


def _sections(table: Table) -> list[ReportBlock]:
    """Predictions and measurements, and the curvature along training."""
    return [
        "## Predictions and measurements",
        _predictions(table),
        *(products(table, model) for model in table.models),
    ]


# -- Measurements ----------------------------------------------------------------------


def curvatures(table: Table) -> pl.DataFrame:
    """A row a measurement: ``step``, ``curvature``, ``product`` with the rate."""
    rates = pl.DataFrame(
        [(*key, config["learning_rate"]) for key, config in table.configs.items()],
        schema={"model": pl.String, "arm": pl.String, "rate": pl.Float64},
        orient="row",
    )
    found = table.long(finished=False, step=pl.Int64, top_eigenvalue=pl.Float64)
    return (
        _named(found)
        .join(rates, on=tables.ARM, maintain_order="left")
        .rename({"top_eigenvalue": "curvature"})
        .with_columns(product=c("rate") * c("curvature"))
    )


def distances(table: Table) -> pl.DataFrame:
    """How far from ``method`` PLP ends, in percent, if both finished."""
    others = dict.fromkeys(("sgd", "matched"), pl.List(pl.Float64))
    keys = ["model", "regime", "seed"]
    finished = _named(table.finished)
    return (
        _named(table.long(distance=pl.Struct(others)))
        .drop("method")
        .unnest("distance")
        .unpivot(list(others), index=keys, variable_name="method")
        .drop_nulls("value")
        .join(finished, on=[*keys, "method"], how="semi")
        .join(finished.filter(method="plp"), on=keys, how="semi")
        .select(*keys, "method", distance=100 * c("value").list.last())
    )


def _named(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds ``method`` and ``regime``, by the arm's name."""
    parts = c("arm").str.splitn("-", 2).struct.rename_fields(["method", "regime"])
    return frame.with_columns(parts.alias("parts")).unnest("parts")


def limit(method: str, regime: Regime) -> float:
    """The first unstable value of learning rate times curvature of an arm."""
    cycle = PLP if method == "plp" else stability.PLAIN
    return stability.stability_limit(cycle, regime.momentum, nesterov=regime.nesterov)


def ends(table: Table) -> pl.DataFrame:
    """Curvatures at the end of finished runs, a column a method."""
    count = (_END * pl.len()).round(mode="half_to_even").clip(1).cast(pl.Int64)
    last = c("curvature").tail(count)
    return (
        curvatures(table)
        .filter(~c("diverged"))
        .group_by("model", "regime", "seed", "method", maintain_order=True)
        .agg(last.mean())
        .pivot("method", index=["model", "regime", "seed"], values="curvature")
    )


# -- Tables ----------------------------------------------------------------------------


def _predictions(table: Table) -> str:
    keys = ["model", "regime"]
    finals = distances(table).pivot(
        "method",
        index=[*keys, "seed"],
        values="distance",
        aggregate_function="last",
    )
    apart = markdown.spreads(
        tables.ensure(finals, "sgd", "matched"), keys, {"matched": 1, "sgd": 1}
    ).rename({"matched": "from_matched", "sgd": "from_sgd"})
    both = tables.ensure(ends(table), "plp", "matched").drop_nulls(["plp", "matched"])
    ratios = both.group_by(keys, maintain_order=True).agg("plp", "matched")
    regimes = {regime.name: regime for regime in REGIMES}
    rows = ratios.join(apart, on=keys, how="left").sort(
        table.in_order, c("regime").cast(pl.Enum([*regimes]))
    )
    ratio = pl.struct(ours="plp", theirs="matched")
    return markdown.write(
        "PLP and its matched rate",
        rows.select(
            c("model").alias("network"),
            markdown.texts("regime", lambda name: regimes[name].label),
            c("plp").list.len().alias("seeds"),
            markdown.texts("regime", lambda name: f"{_limit_ratio(regimes[name]):.2f}")
            .alias("ratio of limits (theory)"),
            ratio.map_elements(lambda x: curvature_ratio(**x)[0], pl.String)
            .alias("ratio of curvatures at the end"),
            ratio.map_elements(lambda x: curvature_ratio(**x)[1], pl.String)
            .alias("95 % interval"),
            c("from_matched").alias("distance from the matched rate (%)"),
            c("from_sgd").alias("distance from SGD (%)"),
        ),
        note="Ratios are PLP's over the matched rate's: the geometric mean over the "
        "seeds, and Student's interval of its logarithm. The end is the last quarter "
        "of the measurements. Distances are between the final parameters, in percent "
        "of the distance that PLP moved: mean ± standard deviation.",
        left=2,
    )  # fmt: skip


def curvature_ratio(ours: list[float], theirs: list[float]) -> tuple[str, str]:
    """The geometric mean of ratios of curvatures, and its interval."""
    if min(*ours, *theirs) <= 0:
        return markdown.NONE, markdown.NONE
    ratio = compare(np.log(ours), np.log(theirs))
    mean = f"{np.exp(ratio.mean):.2f}"
    if ratio.low is None or ratio.high is None:
        return mean, markdown.NONE
    return mean, f"[{np.exp(ratio.low):.2f}, {np.exp(ratio.high):.2f}]"


def _limit_ratio(regime: Regime) -> float:
    """PLP's limit of curvature over its matched rate's."""
    momentum, nesterov = regime.momentum, regime.nesterov
    ours, base = (
        stability.stability_limit(cycle, momentum, nesterov=nesterov)
        for cycle in (PLP, stability.PLAIN)
    )
    return ours / (base / PLP.rate_multiplier)


# -- Pictures --------------------------------------------------------------------------


def products(table: Table, model: str) -> Picture | None:
    """Draws learning rate x curvature along training, a panel for each regime."""
    found = curvatures(table).filter(c("model") == model)
    ran = [regime for regime in REGIMES if regime.name in set(found["regime"])]
    if not ran:
        return None
    columns = min(3, len(ran))
    rows = -(-len(ran) // columns)
    figure = style.figure(
        f"Does training reach the limit of stability? {table.place(model)}",
        1.3 + 2.3 * rows,
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(ran) :]:
        ax.set_axis_off()
    for number, (ax, regime) in enumerate(zip(axes, ran, strict=False)):
        left = "learning rate x\ntop eigenvalue" if number % columns == 0 else ""
        style.dress(ax, xlabel="step", ylabel=left, title=regime.label)
        _draw_products(ax, found.filter(c("regime") == regime.name), regime)
    n = found["seed"].n_unique()
    style.legend(figure, title=f"mean, and lowest to highest, n = {n}")
    return Picture(
        f"curvature-{model}",
        figure,
        f"highest mean: {_highest(found, ran)}",
        "Each arm's learning rate times the top eigenvalue of the Hessian of the "
        "training loss: means over the finished runs, and bands from the lowest to the "
        "highest. Thin lines that end in a cross are runs that diverged. Limits are "
        "the first unstable values of theory, drawn unless far above.",
    )


def _highest(found: pl.DataFrame, regimes: Sequence[Regime]) -> str:
    """``no momentum, low rate: SGD 0.1 of 2, PLP 0.13 of 2.3``: means, limits."""
    means = found.group_by("regime", "method", "step").agg(c("product").mean())
    top = means.group_by("regime", "method").agg(c("product").max())
    of = {(regime, method): value for regime, method, value in top.iter_rows()}
    return "; ".join(
        f"{regime.label}: "
        + ", ".join(
            f"{LABELS[method]} {value:.2g} (limit {limit(method, regime):.2g})"
            for method in _LIMITS
            if (value := of.get((regime.name, method))) is not None
        )
        for regime in regimes
    )


def _draw_products(ax: Axes, found: pl.DataFrame, regime: Regime) -> None:
    for method in LABELS:
        runs = found.filter(c("method") == method)
        look, label = _LOOKS[method], LABELS[method]
        finished = runs.filter(~c("diverged"))
        figures.band(ax, finished, "step", "product", look, label)
        for _, run in runs.filter("diverged").group_by("seed", maintain_order=True):
            ax.plot(run["step"], run["product"], color=look.color, lw=0.7)
            ax.plot(run["step"][-1:], run["product"][-1:], "x", color=look.color,
                    label=f"{label}, diverged")  # fmt: skip
    is_wide = figures.logarithmic_if_wide(ax)
    for method, ls in _LIMITS.items():
        level, label = limit(method, regime), f"limit of {LABELS[method]}"
        if level < 2 * ax.get_ylim()[1]:
            ax.axhline(level, color=_LOOKS[method].color, ls=ls, lw=1.4, label=label)
    if not is_wide:
        ax.set_ylim(0, None)


REPORT = Report(_sections)
