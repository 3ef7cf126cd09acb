"""The pictures of a run: loss and accuracy, and what is known of its layers."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm

# Figure, not pyplot: no global state, no display, and a quicker import.
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.run.layer_analysis import by_depth

COLORS = {
    "train": "#0072B2",
    "validation": "#D55E00",
    "average_validation": "#009E73",
    "test": "#CC79A7",
}  # Okabe and Ito, colour-blind safe


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws training and validation loss and accuracy to a PNG file.

    Args:
      path: The file to write.
      history: The run's metrics, one entry an epoch.
      title: Describes the run.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [metrics["epoch"] for metrics in history]
    # The result of a cascade is the network of its last stage.
    last = [m for m in history if m.get("stage") == history[-1].get("stage")]
    validated = [m for m in last if m["validation_loss"] is not None]
    best = min(validated, key=lambda m: m["validation_loss"], default=None)
    for ax, name, unit in zip(axes, ("loss", "accuracy"), (" (nats)", ""), strict=True):
        for part, color in COLORS.items():
            values = [metrics.get(f"{part}_{name}") for metrics in history]
            if any(value is not None for value in values):
                label = part.replace("_", ", ")
                ax.plot(epochs, values, color=color, label=label, marker=".", ms=4)
        if best is not None:
            ax.axvline(best["epoch"], color="0.6", ls=":", lw=1.2, label="best epoch")
        ax.set(xlabel="epoch", ylabel=f"{name}{unit}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        _mark_stages(ax, [m for m in history if "stage" in m])
    low, high = axes[0].get_ylim()
    if (low > 0 and high > 10 * low) or low <= 0:
        # The losses of the first epochs would flatten the rest.
        axes[0].set_yscale("log")
    axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    _set_title(figure, title)
    figure.savefig(path)


def _mark_stages(ax: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Shades every other stage of a cascade, and names the blocks above the axes."""
    groups = itertools.groupby(history, key=lambda m: (m["stage"], m["block"]))
    for (stage, block), group in groups:
        epochs = [m["epoch"] for m in group]
        first, last = epochs[0] - 0.5, epochs[-1] + 0.5
        if stage % 2 == 0:
            ax.axvspan(first, last, color="0.93", lw=0, zorder=0)
        ax.annotate(
            block,
            ((first + last) / 2, 1.01),
            xycoords=("data", "axes fraction"),
            rotation=60,
            fontsize=6,
        )


def draw_confusion(
    path: Path, confusion: np.ndarray, label_names: Sequence[str], title: str
) -> None:
    """Draws a confusion matrix, and the classes that are confused most.

    Args:
      path: The PNG file to write.
      confusion: Number of examples by label and prediction; columns beyond the classes
        are not drawn.
      label_names: One name a class.
      title: Describes the run.
    """
    classes = len(label_names)
    figure = Figure(figsize=(12, 5.6), dpi=120, layout="constrained")
    matrix, most = figure.subplots(1, 2, width_ratios=(1.2, 1))
    parts = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    parts, confusion = parts[:, :classes], confusion[:, :classes]
    image = matrix.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=matrix, label="part of the label's examples")
    if classes <= 30:
        names = _shown(label_names)
        matrix.set_xticks(range(classes), names, rotation=90, fontsize=8, **_LITERAL)
        matrix.set_yticks(range(classes), names, fontsize=8, **_LITERAL)
    if classes <= 12:
        for row, column in np.argwhere(confusion):
            color = "white" if parts[row, column] > 0.5 else "black"
            text = f"{confusion[row, column]:,}"
            matrix.text(
                column, row, text, ha="center", va="center", color=color, fontsize=8
            )
    matrix.set(xlabel="prediction", ylabel="label", title="confusion matrix")
    wrong = confusion - np.diag(np.diagonal(confusion))
    rows, columns = np.unravel_index(np.argsort(-wrong, axis=None)[:15], wrong.shape)
    shown = [(i, j) for i, j in zip(rows, columns, strict=True) if wrong[i, j]]
    label_names = _shown(label_names)
    names = [f"{label_names[i]} as {label_names[j]}" for i, j in shown]
    most.barh(range(len(shown)), [wrong[i, j] for i, j in shown], color=COLORS["train"])
    most.set_yticks(range(len(shown)), names, fontsize=8, **_LITERAL)
    most.invert_yaxis()
    most.xaxis.set_major_locator(MaxNLocator(integer=True))
    most.set(xlabel="examples", title="confused most often")
    _set_title(figure, title)
    figure.savefig(path)


def draw_amplification(
    path: Path, history: Sequence[Mapping[str, Any]], title: str
) -> None:
    """Draws which layers were amplified when, and their scores.

    Args:
      path: The PNG file to write.
      history: The run's metrics, one entry an epoch.
      title: Describes the run.
    """
    analyses = [m for m in history if m.get("analysis")]
    if not analyses:
        return
    names = by_depth([row["layer"] for row in analyses[0]["analysis"]])
    amplified = np.array([[n in m["amplified"] for m in history] for n in names])
    figure = Figure(
        figsize=(11, 1.8 + 0.22 * len(names)), dpi=120, layout="constrained"
    )
    when, scores = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    first, last = history[0]["epoch"], history[-1]["epoch"]
    when.imshow(
        amplified,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(["white", COLORS["train"]]),
        vmin=0,
        vmax=1,
        extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
    )
    for number, metrics in enumerate(analyses):
        shade = 0.75 * (1 - (number + 1) / len(analyses))
        rows = {row["layer"]: row for row in metrics["analysis"]}
        epoch = metrics["epoch"]
        label = None if number else "analysis epoch"
        when.axvspan(epoch - 0.5, epoch + 0.5, color="0.8", lw=0, label=label)
        scores.plot(
            [rows[name]["score"] for name in names],
            range(len(names)),
            marker="o",
            ms=4,
            lw=0.8,
            color=str(shade),
            label=f"epoch {epoch}",
        )
    floor = {row["layer"]: row["noise_floor"] for row in analyses[-1]["analysis"]}
    scores.plot(
        [floor[name] for name in names],
        range(len(names)),
        color=COLORS["validation"],
        ls="--",
        lw=1.2,
        label="noise floor",
    )
    when.set(xlabel="epoch", title="amplified layers (blue)")
    when.set_yticks(range(len(names)), names, fontsize=7)
    when.xaxis.set_major_locator(MaxNLocator(integer=True))
    when.legend(loc="upper left", fontsize=7)
    scores.set(xlabel="score", title="agreement of gradients", xlim=(0, None))
    scores.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for ax in (when, scores):
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", alpha=0.25)
    _set_title(figure, title)
    figure.savefig(path)


def draw_layers(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws the signal-to-noise ratio of gradients, by layer and epoch.

    Args:
      path: The PNG file to write.
      history: The run's metrics, one entry an epoch.
      title: Describes the run.
    """
    watched = [m for m in history if m.get("layers")]
    if not watched:
        return
    names = by_depth([row["layer"] for row in watched[-1]["layers"]])
    columns = [{row["layer"]: row["snr"] for row in m["layers"]} for m in watched]
    values = np.array(
        [[c.get(name) for c in columns] for name in names], float
    )  # None is NaN
    height = min(0.22 * len(names), 8.0)
    figure = Figure(figsize=(8, 2 + height), dpi=120, layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("0.85")  # where there is no number
    first, last = watched[0]["epoch"], watched[-1]["epoch"]
    image = ax.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=LogNorm(1e-3, 1, clip=True),
        extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
    )
    bar = figure.colorbar(image, ax=ax, extend="both", label="signal-to-noise ratio")
    bar.set_ticks(
        [1e-3, 1e-2, 1e-1, 1],
        labels=["0.001: noise", "0.01", "0.1", "1: signal"],
    )
    ax.set(
        xlabel="epoch",
        title="a layer's gradient in one step: signal (bright) or noise (dark)",
    )
    size = min(7.0, 60 * height / len(names))  # points
    ax.set_yticks(range(len(names)), names, fontsize=size)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _set_title(figure, title)
    figure.savefig(path)


# Text of the user's is no mathematics and no TeX.
_LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}
_LONGEST = 30


def _set_title(figure: Figure, title: str) -> None:
    shown = "".join(c if _has_glyphs(c) else "?" for c in title)
    figure.suptitle(shown, **_LITERAL)


def _shown(names: Sequence[str]) -> list[str]:
    """Names of classes, shortened; the number of one that the font cannot show."""
    short = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}\u2026" for n in names]
    return [n if _has_glyphs(n) else str(number) for number, n in enumerate(short)]


def _has_glyphs(text: str) -> bool:
    font = get_font(findfont(FontProperties()))
    return text.isprintable() and all(font.get_char_index(ord(c)) for c in text)
