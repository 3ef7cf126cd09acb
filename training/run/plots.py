"""The pictures of a run: loss and accuracy, and what is known of its layers.

Each is drawn to the PNG file ``path``. ``history`` is the run's metrics, one entry an
epoch, and ``title`` describes the run.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.run import style
from training.run.layer_analysis import by_depth

_LOOKS = {
    "train": (style.BLUE, "-"),
    "validation": (style.VERMILION, "--"),
    "average_validation": (style.GREEN, "-."),
    "test": (style.PURPLE, ":"),
}


_LONGEST = 20  # characters of a class's name


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws training and validation loss and accuracy."""
    figure = style.figure(title, 3.9)
    axes = figure.subplots(1, 2)
    epochs = [metrics["epoch"] for metrics in history]
    # The result of a cascade is the network of its last stage.
    last = [m for m in history if m.get("stage") == history[-1].get("stage")]
    validated = [m for m in last if m["validation_loss"] is not None]
    best = min(validated, key=lambda m: m["validation_loss"], default=None)
    for ax, name, unit in zip(axes, ("loss", "accuracy"), (" (nats)", ""), strict=True):
        style.dress(ax, xlabel="epoch", ylabel=f"{name}{unit}")
        for part, (color, ls) in _LOOKS.items():
            values = [metrics.get(f"{part}_{name}") for metrics in history]
            if any(value is not None for value in values):
                label = part.replace("_", ", ")
                ax.plot(epochs, values, marker=".", color=color, ls=ls, label=label)
        if best is not None:
            ax.axvline(best["epoch"], color=style.GREY, lw=1, label="best epoch")
        ax.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        _mark_stages(ax, [m for m in history if "stage" in m])
    low, high = axes[0].get_ylim()
    if (low > 0 and high > 10 * low) or low <= 0:
        # The losses of the first epochs would flatten the rest.
        axes[0].set_yscale("log")
        style.number_logarithms(axes[0].yaxis)
    axes[1].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    style.legend(figure)
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
            fontsize=style.SMALL,
        )


def draw_confusion(
    path: Path, confusion: np.ndarray, label_names: Sequence[str], title: str
) -> None:
    """Draws which classes are recognised, and which are confused most.

    Up to 20 classes have a matrix, with the numbers of examples up to 12; of more, the
    20 that are recognised least are drawn.

    Args:
      path: See above, as for ``title``.
      confusion: Number of examples by label and prediction; columns beyond the classes
        are not drawn.
      label_names: One name a class.
      title: Its title.
    """
    classes, names = len(label_names), _shown(label_names)
    examples = confusion.sum(1)
    confusion = confusion[:, :classes]
    rates = confusion / np.maximum(examples, 1)[:, None]
    figure = style.figure(title, 5.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    if classes <= 20:
        _draw_matrix(left, confusion, rates, names)
    else:
        recall, seen = np.diagonal(rates), np.flatnonzero(examples)
        worst = seen[np.argsort(recall[seen], kind="stable")][:20]
        _draw_bars(left, [
            (names[i], recall[i], f"{confusion[i, i]:,} of {examples[i]:,}")
            for i in worst
        ])  # fmt: skip
        least = f"{len(worst)} of {classes} classes recognised least"
        style.dress(left, xlabel="recognised", ylabel="", title=least)
        left.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    wrong = confusion - np.diag(np.diagonal(confusion))
    most = np.argsort(-wrong, axis=None, kind="stable")[: 20 if classes > 20 else 12]
    labelled, predicted = np.unravel_index(most[wrong.flat[most] > 0], wrong.shape)
    _draw_bars(right, [
        (f"{names[i]} as {names[j]}", wrong[i, j], f"{rates[i, j]:.0%}")
        for i, j in zip(labelled, predicted, strict=True)
    ])  # fmt: skip
    title = "confused most often"
    style.dress(right, xlabel="examples, % of label", ylabel="", title=title)
    figure.savefig(path)


def _draw_matrix(
    ax: Axes, confusion: np.ndarray, rates: np.ndarray, names: Sequence[str]
) -> None:
    style.dress(ax, xlabel="prediction", ylabel="label",
                title="examples and % of the label's")  # fmt: skip
    ax.grid(visible=False)
    ax.imshow(rates, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    classes = range(len(names))
    ax.set_xticks(classes, names, rotation=90, **style.LITERAL)
    ax.set_yticks(classes, names, **style.LITERAL)
    for row, column in np.argwhere(confusion):
        text = f"{100 * rates[row, column]:.0f}"
        if len(names) <= 12:
            text = f"{confusion[row, column]:,}\n{text} %"
        ax.text(column, row, text, ha="center", va="center", fontsize=style.SMALL - 2,
                color="white" if rates[row, column] > 0.5 else "black")  # fmt: skip


def _draw_bars(ax: Axes, bars: Sequence[tuple[str, float, str]]) -> None:
    """Bars from top to bottom: their names, lengths, and what is written at the end."""
    names, lengths, texts = zip(*bars, strict=True) if bars else ((), (), ())
    drawn = ax.barh(range(len(bars)), lengths, color=style.BLUE)
    ax.bar_label(drawn, texts, padding=2, fontsize=style.SMALL - 1)
    ax.set_yticks(range(len(bars)), names, **style.LITERAL)
    ax.margins(x=0.2)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.invert_yaxis()


def draw_amplification(
    path: Path, history: Sequence[Mapping[str, Any]], title: str
) -> None:
    """Draws which layers were amplified when, and their scores."""
    analyses = [m for m in history if m.get("analysis")]
    if not analyses:
        return
    names = by_depth([row["layer"] for row in analyses[0]["analysis"]])
    amplified = np.array([[n in m["amplified"] for m in history] for n in names])
    figure = style.figure(title, 2.2 + 0.2 * len(names))
    when, scores = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    style.dress(when, xlabel="epoch", ylabel="", title="amplified layers (blue)")
    style.dress(scores, xlabel="score", ylabel="", title="agreement of gradients")
    white_and_blue = ListedColormap(["white", style.BLUE])
    _heat_map(when, amplified, names, history, cmap=white_and_blue, vmin=0, vmax=1)
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
        color=style.VERMILION,
        ls="--",
        lw=1.2,
        label="noise floor",
    )
    when.set_ylim(len(names) - 0.5, -0.5)
    scores.set_xlim(0, None)
    style.legend(figure)
    figure.savefig(path)


def draw_layers(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws the signal-to-noise ratio of gradients, by layer and epoch."""
    watched = [m for m in history if m.get("layers")]
    if not watched:
        return
    names = by_depth([row["layer"] for row in watched[-1]["layers"]])
    columns = [{row["layer"]: row["snr"] for row in m["layers"]} for m in watched]
    values = np.array(
        [[c.get(name) for c in columns] for name in names], float
    )  # None is NaN
    figure = style.figure(title, 1.8 + min(0.2 * len(names), 8.0))
    ax = figure.subplots()
    what = "a layer's gradient in one step: signal (bright) or noise (dark)"
    style.dress(ax, xlabel="epoch", ylabel="", title=what)
    ax.set_facecolor("0.85")  # where there is no number
    scale = LogNorm(1e-3, 1, clip=True)
    image = _heat_map(ax, values, names, watched, cmap="viridis", norm=scale)
    bar = figure.colorbar(image, ax=ax, extend="both")
    bar.set_label("signal-to-noise ratio", fontsize=style.TEXT)
    bar.set_ticks(
        [1e-3, 1e-2, 1e-1, 1],
        labels=["0.001: noise", "0.01", "0.1", "1: signal"],
        fontsize=style.SMALL,
    )
    figure.savefig(path)


def _heat_map(
    ax: Axes,
    values: np.ndarray,
    names: Sequence[str],
    epochs: Sequence[Mapping[str, Any]],
    **colours: Any,
) -> AxesImage:
    """Values [layers, epochs]: layers by depth from the top, epochs from the left."""
    ax.grid(visible=False)
    first, last = epochs[0]["epoch"], epochs[-1]["epoch"]
    extent = (first - 0.5, last + 0.5, len(names) - 0.5, -0.5)
    every = -(-len(names) // 40)  # so that names do not overlap
    ax.set_yticks(range(0, len(names), every), names[::every])
    return ax.imshow(
        values, aspect="auto", interpolation="nearest", extent=extent, **colours
    )


def _shown(names: Sequence[str]) -> list[str]:
    """Names of classes, shortened; the number of one that the font cannot show."""
    short = [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}\u2026" for n in names]
    return [n if style.has_glyphs(n) else str(i) for i, n in enumerate(short)]
