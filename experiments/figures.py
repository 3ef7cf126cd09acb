"""Pictures of tables: forest plots, curves of differences, heat maps; and their style.

A picture answers one question, which is its title.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
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
    marker: str = "o"


PLAIN = Look(BLACK)
# Also different in grey: by line and marker.
COLORED = (
    Look(BLUE, "-", "s"),
    Look(VERMILION, "--", "^"),
    Look(GREEN, "-.", "D"),
    Look(PURPLE, ":", "v"),
)
OTHERS = Look(PALE, "-", "")

# What a quantity is called on an axis.
LABELS = {
    "train_loss": "training loss (nats)",
    "train_accuracy": "training accuracy",
    "validation_loss": "validation loss (nats)",
    "validation_accuracy": "validation accuracy",
    "test_loss": "test loss (nats)",
    "test_accuracy": "test accuracy",
}


def looks(arms: Sequence[str], control: str | None = None) -> dict[str, Look]:
    """The control black, the first four other arms in colour, the rest grey."""
    others = [arm for arm in arms if arm != control]
    found = dict.fromkeys(others, OTHERS) | dict(zip(others, COLORED, strict=False))
    return found if control is None else {**found, control: PLAIN}


def figure(title: str, width: float = 8, height: float = 4) -> Figure:
    """An empty figure, in inches, that lays itself out.

    A Figure of its own and not pyplot's: no global state and no display.
    """
    new = Figure(figsize=(width, height), dpi=100, layout="constrained")
    new.suptitle(title, fontsize=11, fontweight="bold")
    return new


def dress(ax: Axes, *, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels, a light grid, no box; accuracies in percent, epochs as whole numbers."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=10, loc="left")
    ax.grid(alpha=0.25, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if ylabel.endswith("accuracy"):
        ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    if xlabel in ("epoch", "step"):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def logarithmic_if_wide(ax: Axes, ratio: float = 10) -> bool:
    """Makes the axis of values logarithmic where lines span a wide range.

    Args:
      ax: The axis.
      ratio: The ratio of the largest to the smallest value from which on it is wide.

    Returns:
      Whether it is.
    """
    values = _drawn(ax)
    is_wide = values.size > 0 and 0 < ratio * values.min() <= values.max()
    if is_wide:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    return bool(is_wide)


def logarithmic_beyond(ax: Axes, linear: float) -> None:
    """Makes an axis of differences linear around 0 and logarithmic beyond."""
    ax.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(linear)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _drawn(ax: Axes) -> np.ndarray:
    """All finite values of the lines of an axis."""
    values = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]
    drawn = np.concatenate([np.zeros(0), *values])
    return drawn[np.isfinite(drawn)]


def legend(figure: Figure, handles: Mapping[str, Artist] | None = None) -> None:
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
    is_geometric: bool = False,
) -> None:
    """Draws the mean of runs over x, and a band from the lowest to the highest.

    Args:
      ax: Where.
      frame: A row a run and x.
      x: The column of epochs, steps or such.
      y: The column of values.
      look: Colour and line.
      label: The name in the legend.
      is_geometric: Whether to draw the geometric mean.
    """
    mean = c(y).log().mean().exp() if is_geometric else c(y).mean()
    of_x = frame.drop_nulls(y).group_by(x).agg(mean, low=c(y).min(), high=c(y).max())
    of_x = of_x.sort(x)
    color, style = look.color, look.linestyle
    lw = 0.9 if look == OTHERS else 1.7
    ax.plot(of_x[x], of_x[y], color=color, ls=style, lw=lw, label=label)
    if look != OTHERS:
        ax.fill_between(
            of_x[x], of_x["low"], of_x["high"], color=color, alpha=0.12, lw=0
        )


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

    Args:
      table: The study's tables.
      found: Comparisons, of this metric and others.
      metric: What to draw.

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
    new = figure(
        ", on ".join((f"{metric.title}: arm {sign} control", *table.datasets)),
        4.4 + 2.4 * len(models),
        1.5 + 0.2 * len(lines),
    )
    axes = new.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, model in zip(axes, models, strict=True):
        side = "right" if metric.higher_is_better else "left"
        unit = "ratio" if metric.is_ratio else metric.unit
        dress(ax, xlabel=f"{unit} (better: {side})", ylabel="")
        ax.set_title(model, fontsize=10)
        ax.grid(visible=False, axis="y")
        ax.axvline(metric.is_ratio, color="0.3", lw=1)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="y", length=0)
        _draw_forest(ax, drawn.filter(c("model") == model), lines, metric.is_ratio)
    names = [
        table.labels[arm] if control is None else f"{sign} {table.labels[control]}"
        for arm, control in lines
    ]
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
    legend(new, handles)
    new.supxlabel(evidence(drawn), fontsize=8.5)
    return Picture(
        f"differences-{metric.name.replace('_', '-')}",
        new,
        "Mean of the paired differences and 95 % interval; the colour is the verdict "
        "after correction. An arrow at the edge: the mean is off the axis.",
    )


def evidence(found: pl.DataFrame) -> str:
    """``95 % interval, n = 5, corrected over 12 comparisons``."""
    low, high = found["n"].min(), found["n"].max()
    n = f"{low}" if low == high else f"{low} to {high}"
    tested = found["corrected"].is_not_null().sum()
    correction = f", corrected over {tested} comparisons" if tested else ""
    return f"95 % interval, n = {n}{correction}"


def _draw_forest(
    ax: Axes,
    found: pl.DataFrame,
    lines: Sequence[tuple[str, str | None]],
    is_ratio: bool,
) -> None:
    ends = found.select(pl.concat_list("mean", "low", "high").explode().drop_nulls())
    offsets = ends.to_series().to_numpy() - is_ratio
    # One extreme arm must not flatten the others.
    limit = 12 * float(np.median(np.abs(offsets))) or 1.0
    low, high = np.clip([min(*offsets, 0), max(*offsets, 0)], -limit, limit) + is_ratio
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
    parts: Sequence[str] = ("train", "validation", "test"),
) -> Picture | None:
    """Draws by epoch how far arms are from a control, a panel for each part of the data.

    Args:
      table: The study's tables.
      model: The network.
      arms: Names of arms, those in colour first; those without a run are left out.
      control: The arm to subtract, seed by seed.
      quantity: ``accuracy`` or ``loss``.
      parts: Those of the data; of the last two the first that the runs have.

    Returns:
      The picture; None if there is nothing to draw.
    """
    epochs = table.epochs.filter(c("model") == model)
    ran = set(epochs["arm"])
    shown = [arm for arm in arms if arm in ran and arm != control]
    recorded = [
        name
        for part in parts
        if (name := f"{part}_{quantity}") in epochs.columns
        and epochs[name].is_not_null().any()
    ]
    if control not in ran or not shown or not recorded:
        return None
    held_out = [name for name in recorded if not name.startswith("train")]
    names = [name for name in recorded if name not in held_out] + held_out[-1:]
    label = table.labels[control]
    new = figure(
        f"{quantity.capitalize()} minus that of: {label}, {table.place(model)}",
        max(5.4, 4.6 * len(names)),
        3.8,
    )
    unit = "points" if quantity == "accuracy" else "nats"
    diverged = _diverged(table, model)
    for ax, name in zip(
        new.subplots(1, len(names), squeeze=False)[0], names, strict=True
    ):
        scale = 100 if quantity == "accuracy" else 1
        finished = epochs.filter(~c("diverged"))
        base = finished.filter(c("arm") == control)
        dress(
            ax,
            xlabel="epoch",
            ylabel=f"difference ({unit})",
            title=LABELS[name].partition(" (")[0],
        )
        ax.axhline(0, color=BLACK, lw=1, label=f"{label} (control)")
        pairs = finished.join(
            base.select("seed", "epoch", base=name), on=["seed", "epoch"]
        ).with_columns(difference=scale * (c(name) - c("base")))
        drawn = looks(shown)
        for arm in reversed(shown):  # those in colour on top
            text = "others" if drawn[arm] == OTHERS else table.labels[arm]
            of_arm = pairs.filter(c("arm") == arm)
            band(ax, of_arm, "epoch", "difference", drawn[arm], text + diverged(arm))
        spread = np.abs(_drawn(ax))
        typical = float(np.median(spread[spread > 0])) if (spread > 0).any() else 0
        if typical and spread.max() > 30 * typical:
            logarithmic_beyond(ax, typical)
    legend(new)
    others = [table.labels[arm] for arm in shown[len(COLORED) :]]
    return Picture(
        f"{quantity}-{model}",
        new,
        f"Arm minus {label}, seed by seed: mean over the finished runs, and a band from "
        f"the lowest to the highest run."
        + (f" In grey: {'; '.join(others)}." if others else ""),
    )


def _diverged(table: Table, model: str):  # type: ignore[no-untyped-def]
    runs = table.runs.filter(c("model") == model)
    count = dict(runs.group_by("arm").agg(c("diverged").sum()).iter_rows())
    of = dict(runs.group_by("arm").len().iter_rows())
    return lambda arm: f" ({count[arm]} of {of[arm]} diverged)" if count[arm] else ""


# -- Heat maps -------------------------------------------------------------------------


def heatmap(
    ax: Axes,
    frame: pl.DataFrame,
    value: str,
    *,
    cmap: Colormap | str,
    limits: tuple[float, float],
    text: str | None = None,
    rows: Sequence[str] | None = None,
) -> None:
    """Draws a table as coloured cells.

    Args:
      ax: Where.
      frame: A row a cell: ``row`` and ``column``, its place, in the order in which they
        are drawn; ``value`` and, where it is written into cells, ``text``.
      value: The column that sets the colour; null for no colour.
      cmap: The colours.
      limits: The values of the first and the last colour.
      text: The column that is written into cells.
      rows: The names of all rows; None for those of the frame.
    """
    names = list(rows or frame["row"].unique(maintain_order=True))
    columns = list(frame["column"].unique(maintain_order=True))
    cells = np.full((len(names), len(columns)), np.nan)
    low, high = limits
    for cell in frame.iter_rows(named=True):
        place = names.index(cell["row"]), columns.index(cell["column"])
        if cell[value] is not None:
            cells[place] = cell[value]
        if text is not None and cell[text] is not None:
            ax.text(*place[::-1], cell[text], ha="center", va="center", fontsize=8)
    ax.imshow(cells, cmap=cmap, vmin=low, vmax=high, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, fontsize=8)
    ax.set_yticks(range(len(names)), names, fontsize=8.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    # White lines between the cells.
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="minor", length=0)


def verdicts(
    table: Table,
    found: pl.DataFrame,
    metrics: Sequence[Metric],
    control: str,
    name: str,
    controls: Mapping[str, str],
) -> Picture | None:
    """Draws who is better than a control: a row an arm, a column a network and metric.

    Args:
      table: The study's tables.
      found: Comparisons.
      metrics: What each network has a column for.
      control: What the arms are compared with, for the title.
      name: The same, for the name of the file.
      controls: The control of each arm.

    Returns:
      The picture; None if nothing was compared.
    """
    asked = pl.DataFrame(
        list(controls.items()), schema=["arm", "control"], orient="row"
    )
    titles = {metric.name: metric.label for metric in metrics}
    digits = {metric.name: metric.digits for metric in metrics}
    order = {verdict: rank for rank, verdict in enumerate(_VERDICTS)}
    cells = (
        found.join(asked, on=["arm", "control"], maintain_order="left")
        .filter(c("metric").is_in(list(titles)))
        .sort(c("arm").replace_strict({n: i for i, n in enumerate(controls)}))
    )
    if not len(cells):
        return None
    places = [(model, m) for model in table.models for m in titles]
    columns = {p: "\n".join([p[0], titles[p[1]].removeprefix("gradients to ")])
               if len(titles) > 1 else p[0] for p in places}  # fmt: skip

    def text(row: Mapping[str, float]) -> str:
        mean = f"{row['mean']:+.{digits[str(row['metric'])]}f}"
        diverged = f"{row['diverged']} diverged" * bool(row["diverged"])
        return "\n".join(filter(None, (mean * bool(row["n"]), diverged)))

    drawn = table.named(cells).select(
        row="arm",
        place=pl.concat_list("model", "metric"),
        column=pl.struct("model", "metric").map_elements(
            lambda p: columns[p["model"], p["metric"]], pl.String
        ),
        value=c("verdict").replace_strict(order, return_dtype=pl.Int64),
        text=pl.struct("mean", "n", "metric", "diverged").map_elements(text, pl.String),
    )
    rank = {label: i for i, label in enumerate(columns.values())}
    rows = list(drawn["row"].unique(maintain_order=True))
    drawn = drawn.sort(c("column").replace_strict(rank, return_dtype=pl.Int64))
    # Light shades, on which numbers can be read.
    shades = [_light(v.color) if v.is_filled else "#FFFFFF" for v in _VERDICTS.values()]
    better = "more" if metrics[0].higher_is_better else "fewer"
    unit = metrics[0].unit
    quantity = f"{metrics[0].label if len(metrics) == 1 else unit}".capitalize()
    new = figure(
        f"{quantity}: method minus {control}",
        2.4 + max(3.2, 0.82 * len(set(drawn["column"]))),
        1.7 + 0.34 * len(rows),
    )
    heatmap(
        new.subplots(),
        drawn,
        "value",
        cmap=ListedColormap(shades),
        limits=(-0.5, len(shades) - 0.5),
        text="text",
        rows=rows,
    )
    ran = set(cells["verdict"])
    legend(new, {v: Patch(facecolor=s, edgecolor="0.6")
                 for v, s in zip(_VERDICTS, shades, strict=True) if v in ran})  # fmt: skip
    new.supxlabel(f"{unit} ({'lower' if better == 'fewer' else 'higher'} is better); "
                  f"{evidence(cells)}", fontsize=8.5)  # fmt: skip
    return Picture(
        f"verdicts-{name}",
        new,
        "Mean of the paired differences; the colour is the verdict after correction. "
        "Runs that diverged are counted, and left out of the difference.",
    )


def _light(color: str) -> str:
    mixed = 0.55 + 0.45 * np.array(to_rgb(color))
    return to_hex(mixed)
