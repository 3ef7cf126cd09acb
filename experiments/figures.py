"""The pictures that several reports share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import style
from experiments.page import Picture
from experiments.reports.runs import Runs, history


def curves(
    runs: Runs,
    model: str,
    arms: Sequence[str],
    *,
    control: str,
    name: str = "curves",
) -> Picture:
    """Draws validation loss and accuracy, and their paired differences to a control.

    Args:
      runs: The study's runs.
      model: The network.
      arms: Names of arms; those without a run are left out.
      control: The arm to subtract, seed by seed.
      name: Of the picture, before the network's.
    """
    figure = style.figure(9.2, 6.7)
    axes = figure.subplots(2, 2)
    metrics = ("validation_loss", "validation_accuracy")
    for metric, (above, below) in zip(metrics, axes.T, strict=True):
        label = style.LABELS[metric]
        quantity = label.replace("accuracy", "accuracy (points)")
        style.dress(above, xlabel="epoch", ylabel=label)
        style.dress(below, xlabel="epoch", ylabel=f"difference in\n{quantity}")
        below.axhline(0, color=style.look(control).color, lw=1)
        for arm in arms:
            _curve(above, runs, model, arm, metric)
            if arm != control:
                _difference(below, runs, model, arm, control, metric)
    _logarithmic_if_wide(axes[0, 0])
    style.legend(figure)
    return Picture(
        f"{name}-{model}",
        figure,
        f"{model}: validation loss and accuracy (above), and their differences to "
        f"{runs.study.arm(control).label}, seed by seed (below). Lines: means over the "
        f"finished runs; bands: one standard deviation; thin lines with a cross: runs "
        f"that diverged.",
    )


def _curve(ax: Axes, runs: Runs, model: str, arm: str, name: str) -> None:
    label = runs.label(model, arm)
    if finished := runs.paths(model, arm, name):
        values = np.stack(list(finished.values()))
        style.mean_line(ax, epochs(values), values, arm=arm, label=label)
    for record in runs.diverged(model, arm):
        values = history(record, name)
        values = values[np.isfinite(values)]
        x, color = epochs(values), style.look(arm).color
        ax.plot(x, values, color=color, lw=0.7, alpha=0.7)
        ax.plot(x[-1:], values[-1:], "x", color=color, label=label)


def _difference(
    ax: Axes, runs: Runs, model: str, arm: str, control: str, name: str
) -> None:
    ours, theirs = (runs.paths(model, a, name) for a in (arm, control))
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if pairs:
        values = np.stack(pairs) * (100 if "accuracy" in name else 1)
        style.mean_line(
            ax, epochs(values), values, arm=arm, label=runs.label(model, arm)
        )


def epochs(values: np.ndarray) -> np.ndarray:
    """The numbers of the epochs of a metric, from 1."""
    return np.arange(1, values.shape[-1] + 1)


def _logarithmic_if_wide(ax: Axes) -> None:
    low, high = ax.dataLim.intervaly
    # The first epochs' losses would flatten all that follows.
    if 0 < 10 * low < high < np.inf:
        ax.set_yscale("log")


class Interval(NamedTuple):
    """A row of a forest plot.

    Attributes:
      group: The heading that it stands under, such as the network.
      label: What was compared.
      arm: The name of the arm, for its look.
      value: The estimate, or None where there is none.
      interval: Its interval, or None where there is none.
      remark: What stands in place of an estimate: ``not run``.
    """

    group: str
    label: str
    arm: str
    value: float | None
    interval: tuple[float, float] | None
    remark: str = ""


def forest(columns: Mapping[str, Sequence[Interval]]) -> Figure:
    """Draws estimates as dots on their intervals, one below the other.

    Args:
      columns: By the label of its axis (quantity, unit, and which side is better) each
        column's rows from the top; all have the same rows, a group's together.
    """
    first, *_ = columns.values()
    groups = dict.fromkeys(row.group for row in first)
    lines: list[str | int] = []
    for group in groups:
        of_group = [n for n, row in enumerate(first) if row.group == group]
        lines += [group, *of_group]
    figure = style.figure(5 + 2.4 * len(columns), 1 + 0.26 * len(lines))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for ax, (xlabel, rows) in zip(axes, columns.items(), strict=True):
        style.dress(ax, xlabel=xlabel, ylabel="")
        ax.grid(visible=False, axis="y")
        ax.axvline(0, color="0.3", lw=1)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="y", length=0)
        limit = _limit(rows)
        for y, line in enumerate(lines):
            if isinstance(line, int):
                _interval(ax, y, rows[line], limit)
        low, high = ax.get_xlim()
        ax.set_xlim(max(low, -1.15 * limit), min(high, 1.15 * limit))
    names = [line if isinstance(line, str) else first[line].label for line in lines]
    axes[0].set_yticks(range(len(lines)), names, fontsize=8.5)
    for tick, line in zip(axes[0].get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if isinstance(line, str) else "normal")
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    return figure


def _limit(rows: Sequence[Interval]) -> float:
    """How far from 0 an axis reaches: one wild arm may not flatten all others."""
    values = [abs(row.value) for row in rows if row.value is not None]
    ends = [abs(end) for row in rows for end in row.interval or ()]
    extents = values + ends
    return min(max(extents), 6 * float(np.median(extents))) or 1.0 if extents else 1.0


def _interval(ax: Axes, y: int, row: Interval, limit: float) -> None:
    color, _, marker = style.look(row.arm)
    if row.value is None:
        ax.text(0, y, f" {row.remark}", va="center", fontsize=8, color=style.GREY)
        return
    if abs(row.value) > limit:
        side = 1 if row.value > 0 else -1
        ax.plot(side * limit, y, ">" if side > 0 else "<", color=color, ms=7)
        ax.text(
            side * 0.95 * limit,
            y,
            f"{row.value:+.3g}",
            ha="right" if side > 0 else "left",
            va="center",
            fontsize=8,
        )
        return
    if row.interval is not None:
        ax.plot(row.interval, [y, y], color=color, lw=2)
    # One pair of runs has no interval, and so an open marker.
    face = color if row.interval is not None else "white"
    ax.plot(row.value, y, marker, color=color, mfc=face, ms=4.5)
