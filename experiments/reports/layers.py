"""Pictures of amplification: which layers when, why, and what came of it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from experiments import style
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs
from experiments.study import Arm

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
    found = amplified(runs, model, arms)
    names = layer_names(found.values())
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
    measures: dict[str, str] = {}
    for arm, (first, *_) in amplified(runs, model, arms).items():
        config = runs.config(first)
        if config["amplify_select"] == "scores":
            measures.setdefault(config["amplify_measure"], arm)
    found = amplified(runs, model, list(measures.values()))
    names = layer_names(found.values())
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
        threshold = runs.config(records[0])["amplify_threshold"]
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


class Setting(NamedTuple):
    """A setting of amplification that a group of arms varies.

    Attributes:
      group: The group.
      label: What the setting is called.
      unset: Its value where a configuration leaves it open.
    """

    group: str
    label: str
    unset: float = 0.0


def responses(
    runs: Runs, model: str, settings: Sequence[Setting], control: str
) -> Picture | None:
    """Draws test accuracy over settings of amplification, a panel for each.

    Args:
      runs: The study's runs.
      model: The network.
      settings: The settings; those without a finished run are left out. A panel has a
        line for each arm that is varied.
      control: The arm without the method, drawn as a level.

    Returns:
      The picture; None if there is nothing to draw.
    """
    drawn = {
        setting: lines
        for setting in settings
        if (lines := _responses(runs, model, setting))
    }
    if not drawn:
        return None
    figure = style.figure(
        f"Test accuracy over settings of amplification, {runs.place(model)}",
        1.6 + 3.0 * len(drawn),
        3.6,
    )
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    level = runs.values(model, control, "test_accuracy")
    for ax, (setting, lines) in zip(axes, drawn.items(), strict=True):
        style.dress(ax, xlabel=setting.label, ylabel=style.LABELS["test_accuracy"])
        ax.label_outer()
        if level.size:
            color = runs.looks[control].color
            ax.axhline(level.mean(), color=color, label=runs.label(control))
            ax.axhspan(level.min(), level.max(), color=color, alpha=0.1, lw=0)
        _draw_responses(ax, runs, lines)
    style.legend(figure)
    counts = (
        f"{sum(bool(runs.finished(model, arm.name)) for arm in varied)} of "
        f"{len(varied)} in {setting.group}"
        for setting in drawn
        if (varied := _varied(runs, model, setting))
    )
    return Picture(
        f"settings-{model}",
        figure,
        f"Means over the finished runs, and their range from the lowest to the highest "
        f"run; as a level, {runs.label(control)}. Arms that were run: "
        f"{', '.join(counts)}.",
    )


def _varied(runs: Runs, model: str, setting: Setting) -> list[Arm]:
    """The arms that vary a setting for a network."""
    return [
        arm
        for arm in runs.study.arms
        if arm.group == setting.group and arm.varies and arm.trains(model)
    ]


def _responses(
    runs: Runs, model: str, setting: Setting
) -> dict[str, dict[float, np.ndarray]]:
    """Test accuracies by the name of the varied arm, and by the setting's value."""
    lines: dict[str, dict[float, np.ndarray]] = {}
    for arm in _varied(runs, model, setting):
        assert arm.variant_of is not None
        assert arm.varies is not None
        for name in (arm.name, arm.variant_of):
            finished = runs.finished(model, name)
            if finished and runs.finished(model, arm.name):
                value = runs.config(finished[0])[arm.varies]
                x = setting.unset if value is None else float(value)
                accuracies = runs.values(model, name, "test_accuracy")
                lines.setdefault(arm.variant_of, {})[x] = accuracies
    return lines


def _draw_responses(
    ax: Axes, runs: Runs, lines: dict[str, dict[float, np.ndarray]]
) -> None:
    settings = sorted({x for points in lines.values() for x in points})
    if len(settings) <= _MOST_TICKS:
        ax.set_xticks(settings, [f"{x:g}" for x in settings], fontsize=8)
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
            **look._asdict(),
            ms=4.5,
            elinewidth=1,
            label=runs.label(name),
        )


def amplified(runs: Runs, model: str, arms: Sequence[str]) -> dict[str, list[Record]]:
    """The finished runs of each arm that amplifies."""
    found = {arm: runs.finished(model, arm) for arm in arms}
    return {
        arm: records
        for arm, records in found.items()
        if any("amplified" in m for r in records for m in r.history)
    }


def layer_names(runs: Iterable[Sequence[Record]]) -> list[str]:
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
