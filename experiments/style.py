"""How pictures look: one look for an arm wherever it appears, labels with units."""

import zlib
from typing import NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colours, which all eyes tell apart; the yellow is darkened, as thin
# lines of it vanish on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#B8A600", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#777777"


class Look(NamedTuple):
    """How an arm is drawn."""

    color: str
    linestyle: str
    marker: str


_LOOKS = {
    "sgd": Look(BLACK, "-", "o"),
    "original": Look(BLACK, "-", "o"),
    "plp": Look(BLUE, "-", "s"),
    "plp-4": Look(BLUE, "-", "s"),
    "plp-3": Look(SKY, "-", "D"),
    "matched": Look(VERMILION, "--", "^"),
    "matched-3": Look(ORANGE, "--", "v"),
    "amplify": Look(GREEN, "-", "o"),
    "matched-amplify": Look(ORANGE, "--", "v"),
    "amplify-plp": Look(PURPLE, "-", "X"),
    "lookahead": Look(GREEN, "-.", "P"),
    "average": Look(PURPLE, "-.", "X"),
    "random": Look(GREY, ":", "x"),
    "all": Look(VERMILION, "--", "^"),
    "drop": Look(ORANGE, "--", "v"),
}
# Amplification's arms: the measure gives the colour, the case the line.
_MEASURES = {"g1-per-weight": PURPLE, "g1": SKY, "g2": GREEN}
# The ablation's: prediction with one setting changed.
_PREDICTION = ("step-", "period-", "window-", "least-squares")
_OTHERS = (BLUE, SKY, GREEN, YELLOW, ORANGE, VERMILION, PURPLE, GREY)

# What a quantity is called on an axis.
LABELS = {
    "train_loss": "training loss (nats)",
    "train_accuracy": "training accuracy",
    "validation_loss": "validation loss (nats)",
    "validation_accuracy": "validation accuracy",
    "test_loss": "test loss (nats)",
    "test_accuracy": "test accuracy",
    "learning_rate": "learning rate",
}


def look(arm: str) -> Look:
    """The look of an arm, by its name alone: the same in every report."""
    if arm in _LOOKS:
        return _LOOKS[arm]
    method = arm.partition("-")[0]  # the mechanism's plp-heavy-high, and matched rates
    if method in ("sgd", "plp", "matched"):
        return _LOOKS[method]
    for measure, color in _MEASURES.items():
        if arm.startswith(measure):
            is_case2 = "case2" in arm
            return Look(color, "--" if is_case2 else "-", "^" if is_case2 else "o")
    if arm.startswith(_PREDICTION) or arm.endswith("-plp"):
        return _LOOKS["plp"]
    # Not hash(), which changes from run to run.
    number = zlib.crc32(arm.encode())
    return Look(
        _OTHERS[number % 8],
        ("-", "--", "-.", ":")[number // 8 % 4],
        "osD^vPX"[number % 7],
    )


def figure(width: float = 8, height: float = 4) -> Figure:
    """An empty figure, in inches, that lays itself out.

    A Figure of its own and not pyplot's: no global state and no display.
    """
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def dress(ax: Axes, *, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels, a light grid, no box; accuracies in percent, epochs as whole numbers."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title, fontsize=10, loc="left", fontweight="bold")
    ax.grid(alpha=0.25, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if "accuracy" in ylabel and "points" not in ylabel:
        ax.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    if xlabel in ("epoch", "step"):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend(figure: Figure) -> None:
    """One legend below all axes, an entry for each name."""
    entries: dict[str, Artist] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(len(entries), 3),
            frameon=False,
            fontsize=8.5,
        )


def mean_line(
    ax: Axes, x: np.ndarray, runs: np.ndarray, *, arm: str, label: str
) -> None:
    """Draws the mean of runs, and around it a band of a standard deviation.

    Args:
      ax: Where.
      x: Epochs.
      runs: ``[runs, epochs]``; at least one run. Of one run there is no band.
      arm: The arm's name, for its look.
      label: Its name in the legend.
    """
    color, linestyle, _ = look(arm)
    mean = runs.mean(axis=0)
    ax.plot(x, mean, color=color, ls=linestyle, lw=1.6, label=label)
    if len(runs) > 1:
        spread = runs.std(axis=0, ddof=1)
        ax.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.1, lw=0)
