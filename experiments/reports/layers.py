"""Pictures of amplification: which layers when, why, and what came of it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from experiments import style
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs

_SHARE = LinearSegmentedColormap.from_list("share", ["white", style.BLUE])
_MOST_NAMES = 24  # layers' names that are legible on an axis
_MOST_TICKS = 6  # settings that each have a tick


def timeline(runs: Runs, model: str, arms: Sequence[str]) -> Picture | None:
    """Draws which layers were amplified when, a panel for each arm.

    Args:
      runs: The study's runs.
      model: The network.
      arms: Names of arms; those without a finished run with amplification are left
        out.

    Returns:
      The picture; None if there is no such run.
    """
    found = _amplified(runs, model, arms)
    names = _layers(found.values())
    if not names:
        return None
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = style.figure(
        f"Amplified layers by epoch, {runs.place(model)}",
        10,
        1.0 + rows * (0.9 + min(5, 0.13 * len(names))),
    )
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(found) :]:
        ax.set_axis_off()
    for ax, (arm, records) in zip(axes.flat, found.items(), strict=False):
        histories = [record.history for record in records]
        epochs = min(map(len, histories))
        share = np.mean(
            [
                [[n in m.get("amplified", ()) for m in h[:epochs]] for n in names]
                for h in histories
            ],
            axis=0,
        )
        image = ax.imshow(
            share,
            aspect="auto",
            interpolation="nearest",
            cmap=_SHARE,
            vmin=0,
            vmax=1,
            extent=(0.5, epochs + 0.5, len(names) - 0.5, -0.5),
        )
        ax.set_title(runs.label(arm), fontsize=9, loc="left")
        for metrics in histories[0]:
            if metrics.get("analysis"):
                ax.axvline(metrics["epoch"], color=style.VERMILION, ls=":", lw=1)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    for ax in axes[:, 0]:
        _name_layers(ax, names)
    figure.colorbar(image, ax=axes, label="fraction of seeds", shrink=0.6, pad=0.01)
    return Picture(
        f"layers-{model}",
        figure,
        "Which layers were amplified in which epoch, from the input (top) to the head "
        "(bottom), as a fraction of the finished runs. Dotted: epochs of analysis.",
    )


def scores(runs: Runs, model: str, arms: Sequence[str]) -> Picture | None:
    """Draws how far layers' scores are from their mean, a panel for each measure.

    Args:
      runs: The study's runs.
      model: The network.
      arms: Names of arms; of those with the same measure the first one is drawn.

    Returns:
      The picture; None if none of them has a finished run with an analysis.
    """
    measures = {}
    for arm in reversed(arms):
        fields = runs.study.arm(arm).fields
        if "amplify_threshold" in fields:
            measures[fields["amplify_measure"]] = arm
    found = _amplified(runs, model, list(reversed(measures.values())))
    names = _layers(found.values())
    if not names:
        return None
    figure = style.figure(
        f"Standardised scores of layers, {runs.place(model)}",
        9.2,
        1.4 + min(9, 0.2 * len(names)),
    )
    axes = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (arm, records) in zip(axes, found.items(), strict=True):
        style.dress(ax, xlabel="z-score", ylabel="", title=runs.label(arm))
        analyses = [[m for m in r.history if m.get("analysis")] for r in records]
        stages = list(zip(*analyses, strict=False))
        for number, stage in enumerate(stages):
            by_run = [
                {row["layer"]: row["z_score"] for row in metrics["analysis"]}
                for metrics in stage
            ]
            values = np.array([[rows[name] for name in names] for rows in by_run])
            ax.plot(
                values.mean(axis=0),
                range(len(names)),
                color=runs.looks[arm].color,
                alpha=(number + 1) / len(stages),
                marker="o",
                ms=3.5,
                lw=0.8,
                label=f"epoch {stage[0]['epoch']}",
            )
        threshold = runs.study.arm(arm).fields["amplify_threshold"]
        ax.axvline(threshold, color="0.3", ls="--", lw=1, label="threshold")
        ax.legend(fontsize=7.5)
    _name_layers(axes[0], names)
    return Picture(
        f"scores-{model}",
        figure,
        "How far the layers' scores are from the mean over layers, in standard "
        "deviations, at each analysis: means over the finished runs. Layers to the "
        "right of the threshold are amplified.",
    )


def responses(
    runs: Runs, model: str, group: str, control: str, xlabel: str
) -> Picture | None:
    """Draws test accuracy over a setting of amplification.

    Args:
      runs: The study's runs.
      model: The network.
      group: The arms that vary the setting; a line for each arm that they vary.
      control: The arm without the setting, drawn as a level.
      xlabel: The setting.

    Returns:
      The picture; None if no arm of the group has a finished run.
    """
    varied = [arm for arm in runs.study.arms if arm.group == group]
    lines: dict[str, dict[float, np.ndarray]] = {}
    for arm in varied:
        assert arm.variant_of is not None
        assert arm.varies is not None
        base = runs.study.arm(arm.variant_of)
        for point in (arm, base):
            values = runs.values(model, point.name, "test_accuracy")
            if values.size and runs.finished(model, arm.name):
                x = float(point.fields.get(arm.varies, 0))
                lines.setdefault(base.name, {})[x] = values
    if not lines:
        return None
    figure = style.figure(
        f"Test accuracy over {xlabel.partition(' (')[0]}, {runs.place(model)}"
    )
    ax = figure.subplots()
    style.dress(ax, xlabel=xlabel, ylabel=style.LABELS["test_accuracy"])
    level = runs.values(model, control, "test_accuracy")
    if level.size:
        color = runs.looks[control].color
        ax.axhline(level.mean(), color=color, label=runs.label(control))
        ax.axhspan(level.min(), level.max(), color=color, alpha=0.1, lw=0)
    settings = sorted({x for points in lines.values() for x in points})
    if len(settings) <= _MOST_TICKS:
        ax.set_xticks(settings)
    # Next to each other, so that no range hides another.
    width = 0.1 * float(np.diff(settings).min(initial=1))
    for number, (name, points) in enumerate(lines.items()):
        look = runs.looks[name]
        xs = sorted(points)
        means = np.array([points[x].mean() for x in xs])
        ax.errorbar(
            np.array(xs) + width * (number - (len(lines) - 1) / 2),
            means,
            [
                means - [points[x].min() for x in xs],
                np.array([points[x].max() for x in xs]) - means,
            ],
            color=look.color,
            ls=look.linestyle,
            marker=look.marker,
            ms=4.5,
            elinewidth=1,
            label=runs.label(name),
        )
    style.legend(figure)
    ran = sum(bool(runs.finished(model, arm.name)) for arm in varied)
    return Picture(
        f"{group}-{model}",
        figure,
        f"Means over the finished runs, and their range from the lowest to the highest "
        f"run; as a level, {runs.label(control)}. {ran} of {len(varied)} settings were "
        f"run.",
    )


def _amplified(runs: Runs, model: str, arms: Sequence[str]) -> dict[str, list[Record]]:
    """The finished runs of each arm that amplifies."""
    found = {arm: runs.finished(model, arm) for arm in arms}
    return {
        arm: records
        for arm, records in found.items()
        if any("amplified" in m for r in records for m in r.history)
    }


def _layers(runs: Iterable[Sequence[Record]]) -> list[str]:
    """The layers that an analysis looked at, from the input to the head."""
    analyses = (
        m["analysis"]
        for records in runs
        for record in records
        for m in record.history
        if m.get("analysis")
    )
    return sorted((row["layer"] for row in next(analyses, [])), key=_depth)


def _depth(name: str) -> tuple[Any, ...]:
    """Sorts names by their place in the network: stem, numbered stages, head."""
    part = {"stem": 0, "head": 2}.get(name.partition("/")[0], 1)
    return part, [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)]


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    every = -(-len(names) // _MOST_NAMES)
    ax.set_yticks(range(0, len(names), every), names[::every], fontsize=6.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
