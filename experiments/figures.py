"""The pictures that reports share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import style
from experiments.comparisons import Compared, Metric
from experiments.runs import Runs, history
from experiments.statistics import (
    BETTER,
    NOT_SHOWN,
    TOO_FEW,
    WORSE,
    PairedDifference,
)


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


# -- Comparisons -----------------------------------------------------------------------

_VERDICTS = {
    BETTER: (style.BLUE, "^", True),
    WORSE: (style.VERMILION, "v", True),
    NOT_SHOWN: (style.GREY, "o", True),
    TOO_FEW: (style.GREY, "o", False),
}


def differences(
    runs: Runs, found: Sequence[Compared], metric: Metric
) -> Picture | None:
    """Draws the comparisons in a metric as dots on intervals, a column a network.

    Args:
      runs: The study's runs.
      found: Comparisons, of this metric and others.
      metric: What to draw.

    Returns:
      The picture; None if there is no comparison in this metric.
    """
    drawn = [c for c in found if c.metric is metric and c.difference.n]
    if not drawn:
        return None
    controls: dict[str, dict[str, None]] = {}
    for c in drawn:
        controls.setdefault(c.arm, {})[c.control] = None
    lines: list[tuple[str, str | None]] = []  # an arm as a heading, then its controls
    for arm, of_arm in controls.items():
        lines += [(arm, None), *((arm, control) for control in of_arm)]
    better = "right" if metric.higher_is_better else "left"
    models = list(dict.fromkeys(c.model for c in drawn))
    figure = style.figure(
        ", on ".join((f"{metric.title}: arm minus control", *runs.datasets)),
        4.6 + 2.2 * len(models),
        1.4 + 0.2 * len(lines),
    )
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, model in zip(axes, models, strict=True):
        style.dress(ax, xlabel=f"{metric.unit} (better: {better})", ylabel="")
        ax.set_title(model, fontsize=10)
        ax.grid(visible=False, axis="y")
        ax.axvline(0, color="0.3", lw=1)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="y", length=0)
        rows = {lines.index((c.arm, c.control)): c for c in drawn if c.model == model}
        _draw_differences(ax, rows)
    names = [
        runs.label(arm) if control is None else f"minus {runs.label(control)}"
        for arm, control in lines
    ]
    axes[0].set_yticks(range(len(lines)), names, fontsize=8.5)
    for tick, (_, control) in zip(axes[0].get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if control is None else "normal")
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    style.legend(figure)
    return Picture(
        f"differences-{metric.name.replace('_', '-')}",
        figure,
        "Mean of the paired differences and 95 % interval. An arrow at the edge: the "
        "mean is off the axis.",
    )


def _draw_differences(ax: Axes, rows: Mapping[int, Compared]) -> None:
    ends = [x for c in rows.values() for x in _ends(c.difference)]
    # One extreme arm must not flatten the others.
    limit = 12 * float(np.median(np.abs(ends))) or 1.0
    low, high = np.clip([min(*ends, 0), max(*ends, 0)], -limit, limit)
    margin = 0.05 * (high - low) or 1.0
    ax.set_xlim(low - margin, high + margin)
    for y, c in rows.items():
        d = c.difference
        color, marker, is_filled = _VERDICTS[d.verdict]
        x = d.mean
        if not low <= x <= high:
            x, marker, side = (high, ">", "right") if x > high else (low, "<", "left")
            text = f"   {d.mean:+.3g}   "
            ax.text(x, y, text, ha=side, va="center", fontsize=8)
        elif d.interval is not None:
            ax.plot(d.interval, [y, y], color=color, lw=1.8)
        face = color if is_filled else "white"
        ax.plot(*(x, y, marker), color=color, mfc=face, ms=5, ls="", label=d.verdict)


def _ends(d: PairedDifference) -> tuple[float, ...]:
    return d.mean, *(d.interval or ())


# -- Curves ----------------------------------------------------------------------------

_MOST_BANDS = 6  # more bands than this hide each other


def curves(
    runs: Runs, model: str, arms: Sequence[str], control: str, quantity: str
) -> Picture | None:
    """Draws a quantity by epoch, and its paired differences from a control.

    Training on the left; to its right validation and test, where the runs have them.

    Args:
      runs: The study's runs.
      model: The network.
      arms: Names of arms; those without a run are left out.
      control: The arm to subtract, seed by seed.
      quantity: ``accuracy`` or ``loss``.

    Returns:
      The picture; None if there is nothing to draw.
    """
    arms = [arm for arm in arms if runs.of(model, arm)]
    names = [
        name
        for name in (f"{part}_{quantity}" for part in ("train", "validation", "test"))
        if any(
            np.isfinite(history(record, name)).any()
            for arm in arms
            for record in runs.of(model, arm)
        )
    ]
    if not names:
        return None
    figure = style.figure(
        f"{quantity.capitalize()} by epoch, {runs.place(model)}", 4.4 * len(names), 5.8
    )
    axes = figure.subplots(2, len(names), squeeze=False, sharex=True)
    has_bands = len(arms) <= _MOST_BANDS
    unit = "points" if quantity == "accuracy" else "nats"
    for name, (above, below) in zip(names, axes.T, strict=True):
        style.dress(above, xlabel="", ylabel=style.LABELS[name])
        part = style.LABELS[name].partition(" ")[0]
        style.dress(
            below, xlabel="epoch", ylabel=f"difference in\n{part} {quantity} ({unit})"
        )
        below.axhline(0, color=runs.looks[control].color, lw=1)
        for arm in arms:
            _curve(above, runs, model, arm, name, has_bands)
            if arm != control:
                _difference(below, runs, model, arm, control, name, has_bands)
        if quantity == "loss" and style.logarithmic_if_wide(above):
            style.logarithmic_beyond(below)
    style.legend(figure)
    return Picture(
        f"{quantity}-{model}",
        figure,
        f"Above: {quantity} by epoch. Below: arm minus {runs.label(control)}, seed by "
        f"seed. Lines are means over the finished runs"
        f"{', bands reach from the lowest to the highest run' if has_bands else ''}. "
        f"Thin lines that end in a cross are runs that diverged.",
    )


def _curve(
    ax: Axes, runs: Runs, model: str, arm: str, name: str, has_band: bool
) -> None:
    label, look = runs.label(arm), runs.looks[arm]
    diverged = runs.diverged(model, arm)
    if diverged:
        label += f" ({len(diverged)} of {len(runs.of(model, arm))} diverged)"
    if finished := runs.finished(model, arm):
        values = np.stack([history(record, name) for record in finished])
        style.mean_line(ax, _epochs(values), values, look, label, has_band=has_band)
    for record in diverged:
        values = history(record, name)
        values = values[np.isfinite(values)]
        ax.plot(_epochs(values), values, color=look.color, lw=0.7, alpha=0.7)
        ax.plot(_epochs(values)[-1:], values[-1:], "x", color=look.color, label=label)


def _difference(
    ax: Axes,
    runs: Runs,
    model: str,
    arm: str,
    control: str,
    name: str,
    has_band: bool,
) -> None:
    pairs = [
        history(ours, name) - history(theirs, name)
        for ours, theirs in runs.pairs(model, arm, control)
        if not (ours.diverged or theirs.diverged)
    ]
    if pairs:
        values = np.stack(pairs) * (100 if name.endswith("accuracy") else 1)
        look, label = runs.looks[arm], runs.label(arm)
        style.mean_line(ax, _epochs(values), values, look, label, has_band=has_band)


def _epochs(values: np.ndarray) -> np.ndarray:
    return np.arange(1, values.shape[-1] + 1)
