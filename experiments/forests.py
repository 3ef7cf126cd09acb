"""Forest plots: which arms beat their controls, with intervals and verdicts."""

import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.figures import Picture, count
from experiments.statistics import BETTER, NOT_SHOWN, TOO_FEW, UNCORRECTED, WORSE
from experiments.table import Metric, Table
from training.run import style

c = pl.col


class _Verdict(NamedTuple):
    color: str
    marker: str
    fill: str


_VERDICTS = {
    BETTER: _Verdict(style.BLUE, "^", style.BLUE),
    WORSE: _Verdict(style.VERMILION, "v", style.VERMILION),
    UNCORRECTED: _Verdict(style.ORANGE, "D", style.ORANGE),
    NOT_SHOWN: _Verdict(style.GREY, "o", style.GREY),
    TOO_FEW: _Verdict(style.GREY, "o", "white"),
}
_Row = Mapping[str, Any]  # of a comparison: its columns in ``table.compare``


def draw(table: Table, found: pl.DataFrame, metric: Metric) -> list[Picture]:
    """Draws each arm minus its base and minus its strongest other control.

    The base is the control that is declared first. The strongest of the others is the
    one with the least favourable difference.

    Returns:
      A picture a network, of those on which anything is decided.
    """
    of_metric = found.filter(c("metric") == metric.name)
    tests = len(of_metric.drop_nulls("corrected"))
    corrected = f"corrected over {tests} comparisons" * bool(tests)
    drawn = of_metric.filter(c("n") > 0)
    if metric.is_ratio:
        drawn = drawn.with_columns(c("mean", "low", "high").exp())
    return [
        _forest(table, metric, str(model), rows, corrected)
        for (model,), rows in drawn.group_by("model", maintain_order=True)
        if rows["verdict"].is_in([BETTER, WORSE]).any()
    ]


def _forest(
    table: Table, metric: Metric, model: str, found: pl.DataFrame, corrected: str
) -> Picture:
    sign = -1 if metric.higher_is_better else 1
    arms: dict[str, list[_Row]] = {}
    for row in found.iter_rows(named=True):
        arms.setdefault(row["arm"], []).append(row)
    bases = {y: rows[0] for y, rows in enumerate(arms.values())}
    strongest = {
        y: max(others, key=lambda row: sign * row["mean"])
        for y, (_, *others) in enumerate(arms.values())
        if others
    }
    every = [*bases.values(), *strongest.values()]
    new = style.figure(
        f"Which arms beat their controls? {metric.title}, {table.place(model)}",
        1.6 + 0.29 * len(arms),
    )
    axes = new.subplots(1, 1 + bool(strongest), sharey=True, squeeze=False)[0]
    labels = [_wrapped(table.labels[arm], 34) for arm in arms]
    axes[0].set_yticks(range(len(arms)), labels)
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    side = "higher" if metric.higher_is_better else "lower"
    unit = "ratio" if metric.is_ratio else f"difference in {metric.unit}"
    minus = "over" if metric.is_ratio else "minus"
    shows, has_several = [], False
    for ax, rows in zip(axes, (bases, strongest), strict=False):
        is_base = rows is bases
        names = {y: _control(table, row, is_base) for y, row in rows.items()}
        ((common, times),) = Counter(names.values()).most_common(1)
        # The title names the common control, and labels those of other rows.
        if times >= len(names) / (2 if is_base else 1):
            title = f"{minus} {common}"
            names = {y: f"{minus} {x}" for y, x in names.items() if x != common}
        else:
            title = f"{minus} its {'base' if is_base else 'strongest other control'}"
            has_several |= not is_base
        style.dress(ax, xlabel=f"{unit}; {side} is better", ylabel="", title=title)
        draw_intervals(ax, rows, every, is_ratio=metric.is_ratio)
        label_right(ax, {y: _wrapped(name, 26) for y, name in names.items()})
        shows.append(f"{title}: {_verdicts(row['verdict'] for row in rows.values())}")
    explain(new, every, corrected)
    strongest_is = "Strongest: of an arm's others, the least favourable mean. "
    arrow_is = "An arrow: the mean is off the axis."
    return Picture(
        re.sub(r"\W+", "-", f"differences {metric.name} {model}").replace("_", "-"),
        new,
        "; ".join(shows),
        (strongest_is * has_several + arrow_is * any(ax.texts for ax in axes)).strip(),
    )


def _control(table: Table, row: _Row, is_base: bool) -> str:
    is_matched = row["control"] == table.study.arm(row["arm"]).matched
    matched = is_matched and not is_base
    return "its matched rate" if matched else table.labels[row["control"]]


def _verdicts(found: Iterable[str]) -> str:
    """``2 better, 3 no difference shown``."""
    counts = Counter(found)
    return ", ".join(f"{counts[v]} {v}" for v in _VERDICTS if v in counts)


def _wrapped(text: str, width: int) -> str:
    """On two lines where it is longer than the width."""
    return text if len(text) <= width else textwrap.fill(text, len(text) // 2 + 6)


def label_right(ax: Axes, names: Mapping[int, str]) -> None:
    """Names of rows, to the right of the axes."""
    if names:
        right = ax.secondary_yaxis("right")
        right.set_yticks(list(names), list(names.values()))
        right.tick_params(length=0, labelsize=style.SMALL - 1)
        right.spines["right"].set_visible(False)


def draw_intervals(
    ax: Axes,
    rows: Mapping[int, _Row],
    every: Iterable[_Row] | None = None,
    *,
    is_ratio: bool = False,
) -> None:
    """Draws means and their intervals, by place, in the look of their verdicts.

    Args:
      ax: The axes.
      rows: Comparisons, by their place on the vertical axis.
      every: All rows that the horizontal axis must have room for; None for these.
      is_ratio: Whether values are ratios, which are 1 without a difference.
    """
    low, high = _limits(rows.values() if every is None else every, is_ratio)
    ax.axvline(is_ratio, color="0.3", lw=1)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    if is_ratio:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.2, high * 1.2)
        style.number_logarithms(ax.xaxis)
    else:
        margin = 0.05 * (high - low) or 1.0
        ax.set_xlim(low - margin, high + margin)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for y, row in rows.items():
        x, (color, marker, fill) = row["mean"], _VERDICTS[row["verdict"]]
        if not low <= x <= high:
            x, marker, side = (high, ">", "right") if x > high else (low, "<", "left")
            text = f"   {row['mean']:+.3g}   "
            ax.text(x, y, text, ha=side, va="center", fontsize=style.SMALL)
        elif row["low"] is not None:
            ax.plot([row["low"], row["high"]], [y, y], color=color, lw=1.8)
        ax.plot(x, y, marker, color=color, mfc=fill, ms=5)


def _limits(rows: Iterable[_Row], is_ratio: bool) -> tuple[float, float]:
    """The limits of an axis: around all intervals, except those of extreme arms."""
    ends = np.array([
        end for row in rows for end in (row["mean"], row["low"], row["high"])
        if end is not None
    ])  # fmt: skip
    low, high = min(*ends, is_ratio), max(*ends, is_ratio)
    if is_ratio:
        return low, high
    # One extreme arm must not flatten the others.
    sizes = np.abs(ends[ends != 0])
    limit = 12 * float(np.median(sizes)) if sizes.size else 1.0
    low, high = np.clip([low, high], -limit, limit)
    return float(low), float(high)


def explain(figure: Figure, rows: Collection[_Row], corrected: str) -> None:
    """A legend of the verdicts, with n and what p was corrected over."""
    found = {row["verdict"] for row in rows}
    handles: dict[str, Artist] = {
        name: Line2D([], [], color=color, marker=marker, mfc=fill, ms=5)
        for name, (color, marker, fill) in _VERDICTS.items()
        if name in found
    }
    n = count(row["n"] for row in rows)
    means = "one seed" if n == "1" else f"mean and 95 % interval, n = {n}"
    parts = means, corrected
    style.legend(figure, handles, ", ".join(filter(None, parts)))
