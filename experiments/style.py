"""How pictures look: colours and lines of arms, labels with units, legends."""

import math
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from experiments.study import Study

# Okabe and Ito's colours, which colour-blind readers can distinguish. The yellow is
# darkened, as thin lines of it vanish on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#B8A600", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#777777"


class Look(NamedTuple):
    """How an arm is drawn: matplotlib's arguments."""

    color: str
    linestyle: str
    marker: str


PLAIN = Look(BLACK, "-", "o")
METHOD = Look(BLUE, "-", "s")
MATCHED = Look(VERMILION, "--", "^")
_COLORS = (BLUE, GREEN, PURPLE, ORANGE, SKY, VERMILION, YELLOW, GREY)

# What a quantity is called on an axis.
LABELS = {
    "train_loss": "training loss (nats)",
    "train_accuracy": "training accuracy",
    "validation_loss": "validation loss (nats)",
    "validation_accuracy": "validation accuracy",
    "test_loss": "test loss (nats)",
    "test_accuracy": "test accuracy",
}


def looks(study: Study) -> dict[str, Look]:
    """The look of each arm, by its part in the study.

    The study's first arm is black. Every other arm has a colour of its own, and is
    dashed where colours repeat. An arm at the matched rate of another is dotted, in a
    darker shade of that arm's colour, so that it shows where the two coincide.
    """
    matched = {arm.matched: arm.name for arm in reversed(study.arms) if arm.matched}
    first, *others = [arm.name for arm in study.arms]
    own = [name for name in others if name not in matched]
    found = {first: PLAIN}
    for number, name in enumerate(own):
        line = ("-", "--", "-.")[number // len(_COLORS) % 3]
        found[name] = Look(_COLORS[number % len(_COLORS)], line, "sDvPXo^"[number % 7])
    for name in others:
        if name in matched:
            red, green, blue = to_rgb(found[matched[name]].color)
            shade = (red / 2, green / 2, blue / 2)
            found[name] = Look(to_hex(shade), ":", "x")
    return found


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


def logarithmic_beyond(ax: Axes, part: float = 0.01) -> None:
    """Makes an axis of differences linear near 0 and logarithmic beyond.

    Args:
      ax: The axis.
      part: The linear range, as a part of the largest difference that a line shows.
    """
    largest = np.abs(_drawn(ax)).max(initial=0.0)
    if largest > 0:
        decade = 10.0 ** round(math.log10(part * largest))
        ax.set_yscale("symlog", linthresh=decade)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _drawn(ax: Axes) -> np.ndarray:
    """All finite values of the lines of an axis."""
    values = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]
    drawn = np.concatenate([np.zeros(0), *values])
    return drawn[np.isfinite(drawn)]


def legend(figure: Figure) -> None:
    """One legend below all axes, no wider than the figure; an entry for each name."""
    entries: dict[str, Artist] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for columns in range(min(len(entries), 4), 0, -1):
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


def mean_line(
    ax: Axes,
    x: np.ndarray,
    runs: np.ndarray,
    look: Look,
    label: str,
    *,
    has_band: bool = True,
) -> None:
    """Draws the mean of runs, and a band from the lowest to the highest of them.

    Args:
      ax: Where.
      x: Epochs or steps.
      runs: ``[runs, len(x)]``; at least one run.
      look: Colour and line.
      label: The name in the legend.
      has_band: Whether to draw the band.
    """
    color = look.color
    ax.plot(x, runs.mean(axis=0), color=color, ls=look.linestyle, lw=1.6, label=label)
    if has_band:
        low, high = runs.min(axis=0), runs.max(axis=0)
        ax.fill_between(x, low, high, color=color, alpha=0.1, lw=0)
