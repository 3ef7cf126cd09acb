"""Pictures of tables: forest plots, curves of differences; and their style.

A picture answers one question, which is its title.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

from experiments.statistics import BETTER, NOT_SHOWN, TOO_FEW, UNCORRECTED, WORSE
from experiments.table import Metric, Table

c = pl.col


class Picture(NamedTuple):
    """A figure of a report.

    Attributes:
      name: Of its file, without extension.
      figure: The figure; its title says what it shows, on what.
      caption: What a reader must know to read it.
    """

    name: str
    figure: Figure
    caption: str

    @property
    def title(self) -> str:
        """The figure's title, which also stands for it where it cannot be seen."""
        return self.figure.get_suptitle().replace("\n", " ")


# -- Style -----------------------------------------------------------------------------

# Okabe and Ito's colours, which colour-blind readers can distinguish.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#777777", "#C8C8C8"


class Look(NamedTuple):
    """How an arm is drawn: matplotlib's arguments."""

    color: str
    linestyle: str = "-"


PLAIN = Look(BLACK)
# Also different in grey.
COLORED = (Look(BLUE), Look(VERMILION, "--"), Look(GREEN, "-."), Look(PURPLE, ":"))
OTHERS = Look(PALE)


def figure(title: str, width: float = 8, height: float = 4) -> Figure:
    """An empty figure, in inches, that lays itself out.

    A Figure of its own and not pyplot's: no global state and no display.
    """
    width = max(width, 0.1 * len(title))  # its title's width
    new = Figure(figsize=(width, height), dpi=100, layout="constrained")
    new.suptitle(title, fontsize=11, fontweight="bold")
    return new


def dress(ax: Axes, *, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels, a light grid, no box; epochs as whole numbers."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=10, loc="left")
    ax.grid(alpha=0.25, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if xlabel in ("epoch", "step"):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def logarithmic_if_wide(ax: Axes) -> bool:
    """Makes the axis of values logarithmic where lines span a factor of 50."""
    values = _drawn(ax)
    is_wide = values.size > 0 and 0 < 50 * values.min() <= values.max()
    if is_wide:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    return bool(is_wide)


def _drawn(ax: Axes) -> np.ndarray:
    """All finite values of the lines of an axis."""
    values = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]
    drawn = np.concatenate([np.zeros(0), *values])
    return drawn[np.isfinite(drawn)]


def legend(
    figure: Figure, handles: Mapping[str, Artist] | None = None, title: str = ""
) -> None:
    """One legend below all axes, no wider than the figure; an entry for each name."""
    entries: dict[str, Artist] = dict(handles or {})
    for ax in figure.axes if handles is None else ():
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for columns in range(min(len(entries), 5), 0, -1):
        drawn = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8.5,
            title=title or None,
            title_fontsize=8.5,
        )
        if drawn.get_window_extent().width <= figure.bbox.width:
            return
        drawn.remove()


def band(
    ax: Axes,
    frame: pl.DataFrame,
    x: str,
    y: str,
    look: Look,
    label: str,
    *,
    has_error: bool = False,
) -> None:
    """Draws the mean of runs over x, and a band from the lowest to the highest.

    With ``has_error`` the band is the standard error of the mean instead. The frame has
    a row a run and x.
    """
    mean = c(y).mean()
    error = (c(y).std() / pl.len().sqrt()).fill_null(0)
    low, high = (mean - error, mean + error) if has_error else (c(y).min(), c(y).max())
    of_x = frame.drop_nulls(y).group_by(x).agg(mean, low=low, high=high).sort(x)
    is_other = look == OTHERS
    color, width, order = (
        look.color,
        (0.9 if is_other else 1.7),
        (1.9 if is_other else 2),
    )
    ax.plot(of_x[x], of_x[y], color=color, ls=look.linestyle, lw=width, label=label,
            zorder=order)  # fmt: skip
    if not is_other:
        ax.fill_between(
            of_x[x], of_x["low"], of_x["high"], color=color, alpha=0.12, lw=0
        )


def lines(
    table: Table,
    ax: Axes,
    frame: pl.DataFrame,
    x: str,
    y: str,
    *,
    first: Sequence[str] = (),
    has_error: bool = False,
) -> list[str]:
    """Draws a band an arm: four in colour, those in ``first`` before others.

    Returns:
      The names of the arms in grey.
    """
    ran = frame["arm"].unique(maintain_order=True).to_list()
    order = [*(a for a in first if a in ran), *(a for a in ran if a not in first)]
    drawn = dict.fromkeys(order, OTHERS) | dict(zip(order, COLORED, strict=False))
    for arm, look in drawn.items():
        label = "others" if look == OTHERS else table.labels[arm]
        rows = frame.filter(c("arm") == arm)
        band(ax, rows, x, y, look, label, has_error=has_error)
    return [arm for arm, look in drawn.items() if look == OTHERS]


# -- Forest plots ----------------------------------------------------------------------


class _Verdict(NamedTuple):
    color: str
    marker: str
    is_filled: bool


_VERDICTS = {
    BETTER: _Verdict(BLUE, "^", True),
    WORSE: _Verdict(VERMILION, "v", True),
    UNCORRECTED: _Verdict(ORANGE, "D", True),
    NOT_SHOWN: _Verdict(GREY, "o", True),
    TOO_FEW: _Verdict(GREY, "o", False),
}


def forest(table: Table, found: pl.DataFrame, metric: Metric) -> Picture | None:
    """Draws the comparisons in a metric as dots on intervals, a panel a network.

    Returns:
      The picture; None if there is no comparison in this metric.
    """
    drawn = found.filter(c("metric") == metric.name, c("n") > 0)
    if not len(drawn):
        return None
    if metric.is_ratio:
        drawn = drawn.with_columns(c("mean", "low", "high").exp())
    # An arm as a heading, then its controls.
    of_arm = drawn.select("arm", "control").unique(maintain_order=True)
    lines: list[tuple[str, str | None]] = []
    for (arm,), controls in of_arm.group_by("arm", maintain_order=True):
        lines += [(str(arm), None), *((str(arm), x) for x in controls["control"])]
    models = list(drawn["model"].unique(maintain_order=True))
    sign = "/" if metric.is_ratio else "minus"
    names = [
        table.labels[arm] if control is None else f"{sign} {table.labels[control]}"
        for arm, control in lines
    ]
    new = figure(
        ", on ".join((f"{metric.title}: arm {sign} control", *table.datasets)),
        0.6 + 0.065 * max(map(len, names)) + max(4.0, 2.6 * len(models)),
        1.7 + 0.2 * len(lines),
    )
    axes = new.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, model in zip(axes, models, strict=True):
        side = "right" if metric.higher_is_better else "left"
        unit = "ratio" if metric.is_ratio else metric.unit
        dress(ax, xlabel=f"{unit} (better: {side})", ylabel="")
        ax.set_title(model, fontsize=10)
        ax.grid(visible=False, axis="y")
        ax.axvline(metric.is_ratio, color="0.3", lw=1)
        if not metric.is_ratio:
            ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="y", length=0)
        _draw_forest(ax, drawn.filter(c("model") == model), lines, metric.is_ratio)
    axes[0].set_yticks(range(len(lines)), names, fontsize=8.5)
    for tick, (_, control) in zip(axes[0].get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if control is None else "normal")
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    handles: dict[str, Artist] = {
        name: Line2D([], [], color=v.color, marker=v.marker, ls="-", ms=5,
                     mfc=v.color if v.is_filled else "white")
        for name, v in _VERDICTS.items()
        if name in set(drawn["verdict"])
    }  # fmt: skip
    legend(new, handles, _evidence(drawn, found.filter(c("metric") == metric.name)))
    return Picture(
        f"differences-{metric.name.replace('_', '-')}",
        new,
        "Mean of the paired differences and 95 % interval; the colour is the verdict "
        "after correction. An arrow at the edge: the mean is off the axis.",
    )


def _evidence(drawn: pl.DataFrame, found: pl.DataFrame) -> str:
    """``95 % interval, n = 5, corrected over 12 comparisons``."""
    low, high = drawn.select(low=c("n").min(), high=c("n").max()).row(0)
    n = f"{low}" if low == high else f"{low} to {high}"
    count = len(found.drop_nulls("corrected"))
    return f"95 % interval, n = {n}" + (
        f", corrected over {count} comparisons" * bool(count)
    )


def _draw_forest(
    ax: Axes,
    found: pl.DataFrame,
    lines: Sequence[tuple[str, str | None]],
    is_ratio: bool,
) -> None:
    ends = found.select(pl.concat_list("mean", "low", "high").explode().drop_nulls())
    low, high = min(*ends.to_series(), is_ratio), max(*ends.to_series(), is_ratio)
    if is_ratio:
        ax.set_xscale("log")
        subs = (1, 2, 5) if high < 100 * low else (1,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(low / 1.2, high * 1.2)
    else:
        sizes = np.abs(ends.to_series().to_numpy())
        # One extreme arm must not flatten the others.
        limit = 12 * float(np.median(sizes)) or float(sizes.max()) or 1.0
        low, high = np.clip([low, high], -limit, limit)
        margin = 0.05 * (high - low) or 1.0
        ax.set_xlim(low - margin, high + margin)
    for row in found.iter_rows(named=True):
        y, x = lines.index((row["arm"], row["control"])), row["mean"]
        color, marker, is_filled = _VERDICTS[row["verdict"]]
        if not low <= x <= high:
            x, marker, side = (high, ">", "right") if x > high else (low, "<", "left")
            text = f"   {row['mean']:+.3g}   "
            ax.text(x, y, text, ha=side, va="center", fontsize=8)
        elif row["low"] is not None:
            ax.plot([row["low"], row["high"]], [y, y], color=color, lw=1.8)
        ax.plot(x, y, marker, color=color, mfc=color if is_filled else "white", ms=5)


# -- Curves ----------------------------------------------------------------------------


def curves(
    table: Table,
    model: str,
    arms: Sequence[str],
    control: str,
    quantity: str,
    first: Sequence[str] = (),
) -> Picture | None:
    """Draws how far arms are from a control by epoch, a panel a part of the data.

    Args:
      table: The study's tables.
      model: The network.
      arms: Names of arms; those without a run are left out.
      control: The arm to subtract, seed by seed.
      quantity: ``accuracy`` or ``loss``, on the training part, and on the test or else
        the validation part.
      first: The arms in colour; empty for the first ones.

    Returns:
      The picture; None if there is nothing to draw.
    """
    epochs = table.epochs.filter(c("model") == model, c("arm").is_in([*arms, control]))
    recorded = [
        name
        for part in ("train", "validation", "test")
        if (name := f"{part}_{quantity}") in epochs.columns
        and epochs[name].is_not_null().any()
    ]
    base = epochs.filter(c("arm") == control)
    if not len(base) or epochs["arm"].n_unique() < 2 or not recorded:
        return None
    names = list(dict.fromkeys((recorded[0], recorded[-1])))
    label = table.labels[control]
    new = figure(
        f"{quantity.capitalize()} minus that of: {label}, {table.place(model)}",
        max(5.4, 4.6 * len(names)),
        3.8,
    )
    axes = new.subplots(1, len(names), squeeze=False)[0]
    scale, unit = (100, "points") if quantity == "accuracy" else (1, "nats")
    others: list[str] = []
    for ax, name in zip(axes, names, strict=True):
        title = name.replace("train_", "training_").replace("_", " ")
        dress(ax, xlabel="epoch", ylabel=f"difference ({unit})", title=title)
        ax.axhline(0, color=BLACK, lw=1, label=f"{label} (control)")
        theirs = base.select("seed", "epoch", base=name)
        pairs = (
            epochs.filter(~c("diverged"), c("arm") != control)
            .join(theirs, on=["seed", "epoch"], maintain_order="left")
            .with_columns(difference=scale * (c(name) - c("base")))
        )
        others = lines(table, ax, pairs, "epoch", "difference", first=first or arms,
                       has_error=True)  # fmt: skip
        sizes = np.abs(_drawn(ax))
        typical = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0
        if typical and sizes.max() > 30 * typical:
            ax.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(typical)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    legend(new)
    diverged = epochs.group_by("arm", maintain_order=True).agg(
        c("seed").filter("diverged").n_unique(), of=c("seed").n_unique()
    )
    named = [f"{table.labels[a]} {n} of {of}" for a, n, of in diverged.iter_rows() if n]
    in_grey = "; ".join(table.labels[arm] for arm in others)
    return Picture(
        f"{quantity}-{model}",
        new,
        f"Arm minus {label}, seed by seed: mean over the finished runs, and its "
        f"standard error."
        + f" In grey: {in_grey}." * bool(others)
        + f" Diverged: {'; '.join(named)}." * bool(named),
    )
