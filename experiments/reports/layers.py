"""Pictures of amplification: which layers when, why, and what came of it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from experiments import style
from experiments.page import Picture
from experiments.records import Record
from experiments.reports.runs import Runs
from training.amplification import by_depth

_SHARE = LinearSegmentedColormap.from_list("share", ["white", style.BLUE])
_MOST_NAMES = 24  # so many layers' names are legible on an axis
_MOST_TICKS = 6  # so many settings, each with a tick


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
    found = {
        arm: finished
        for arm in arms
        if (finished := runs.finished(model, arm))
        and "amplified" in finished[0].history[0]
    }
    names = _layers([record for records in found.values() for record in records])
    if not names:
        return None
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    figure = style.figure(10, 0.8 + rows * (0.9 + min(5, 0.13 * len(names))))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(found) :]:
        ax.set_axis_off()
    for ax, (arm, records) in zip(axes.flat, found.items(), strict=False):
        history = [record.history for record in records]
        epochs = min(map(len, history))
        share = np.mean(
            [
                [[n in m["amplified"] for m in h[:epochs]] for n in names]
                for h in history
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
        ax.set_title(runs.study.arm(arm).label, fontsize=9, loc="left")
        for metrics in history[0]:
            if metrics.get("analysis"):
                ax.axvline(metrics["epoch"], color=style.VERMILION, ls=":", lw=1)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    for ax in axes[:, 0]:
        _name_layers(ax, names)
    figure.colorbar(image, ax=axes, label="share of seeds", shrink=0.6, pad=0.01)
    return Picture(
        f"layers-{model}",
        figure,
        f"{model}: which layers were amplified in which epoch, from the input (top) to "
        f"the head (bottom), as a share of the finished runs; dotted: epochs of "
        f"analysis.",
    )


def scores(runs: Runs, model: str, arms: Mapping[str, float]) -> Picture | None:
    """Draws by how much layers stood out, a panel for each arm.

    Args:
      runs: The study's runs.
      model: The network.
      arms: The thresholds of arms, by their names.

    Returns:
      The picture; None if none of them has a finished run with an analysis.
    """
    found = {arm: finished for arm in arms if (finished := runs.finished(model, arm))}
    names = _layers([record for records in found.values() for record in records])
    if not names:
        return None
    figure = style.figure(9.2, 1.2 + min(9, 0.2 * len(names)))
    axes = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (arm, records) in zip(axes, found.items(), strict=True):
        style.dress(
            ax, xlabel="standardised score", ylabel="", title=runs.study.arm(arm).label
        )
        analyses = [[m for m in r.history if m.get("analysis")] for r in records]
        stages = list(zip(*analyses, strict=False))
        for number, stage in enumerate(stages):
            by_seed = [
                {row["layer"]: row["z_score"] for row in metrics["analysis"]}
                for metrics in stage
            ]
            values = np.array([[rows[name] for name in names] for rows in by_seed])
            ax.plot(
                values.mean(axis=0),
                range(len(names)),
                color=style.look(arm).color,
                alpha=(number + 1) / len(stages),
                marker="o",
                ms=3.5,
                lw=0.8,
                label=f"epoch {stage[0]['epoch']}",
            )
        ax.axvline(arms[arm], color="0.3", ls="--", lw=1, label="threshold")
        ax.legend(fontsize=7.5)
    _name_layers(axes[0], names)
    return Picture(
        f"scores-{model}",
        figure,
        f"{model}: how far the layers' scores lie from the mean over layers, in "
        f"standard deviations, at each analysis: means over the finished runs. Layers "
        f"to the right of the threshold are amplified.",
    )


def responses(
    runs: Runs,
    model: str,
    series: Mapping[str, Sequence[tuple[float, str]]],
    *,
    control: str,
    name: str,
    xlabel: str,
) -> Picture:
    """Draws test accuracy over a setting of amplification.

    Args:
      runs: The study's runs.
      model: The network.
      series: By the name of the arm that gives a line its look, the values of the
        setting and the arms that have them; arms without a finished run are left out.
      control: The arm without the setting, drawn as a level.
      name: Of the picture, before the network's.
      xlabel: The setting.
    """
    figure = style.figure(8, 4)
    ax = figure.subplots()
    style.dress(ax, xlabel=xlabel, ylabel=style.LABELS["test_accuracy"])
    level = runs.values(model, control, "test_accuracy")
    if level.size:
        color = style.look(control).color
        ax.axhline(level.mean(), color=color, label=runs.label(model, control))
        if level.size > 1:
            mean, spread = level.mean(), level.std(ddof=1)
            ax.axhspan(mean - spread, mean + spread, color=color, alpha=0.1, lw=0)
    # Side by side, so that no interval hides another.
    settings = {x for points in series.values() for x, _ in points}
    if len(settings) <= _MOST_TICKS:
        ax.set_xticks(sorted(settings))
    width = 0.1 * float(np.diff(sorted(settings)).min(initial=1))
    for number, (base, points) in enumerate(series.items()):
        shift = width * (number - (len(series) - 1) / 2)
        _response(ax, runs, model, base, points, shift=shift)
    style.legend(figure)
    return Picture(
        f"{name}-{model}",
        figure,
        f"{model}: test accuracy over the {xlabel}; means and standard deviations over "
        f"the finished runs, and as a level {runs.study.arm(control).label}.",
    )


def _response(
    ax: Axes,
    runs: Runs,
    model: str,
    base: str,
    points: Sequence[tuple[float, str]],
    *,
    shift: float,
) -> None:
    found = [
        (x, values)
        for x, arm in sorted(points)
        if (values := runs.values(model, arm, "test_accuracy")).size
    ]
    if not found:
        return
    color, linestyle, marker = style.look(base)
    ax.errorbar(
        [x + shift for x, _ in found],
        [values.mean() for _, values in found],
        [values.std(ddof=1) if values.size > 1 else 0 for _, values in found],
        color=color,
        ls=linestyle,
        marker=marker,
        ms=4.5,
        elinewidth=1,
        label=runs.study.arm(base).label,
    )


def _layers(records: Sequence[Record]) -> list[str]:
    """The layers that an analysis looked at, from the input to the head."""
    analyses = (m["analysis"] for r in records for m in r.history if m.get("analysis"))
    return by_depth([row["layer"] for row in next(analyses, [])])


def _name_layers(ax: Axes, names: Sequence[str]) -> None:
    every = -(-len(names) // _MOST_NAMES)
    ax.set_yticks(range(0, len(names), every), names[::every], fontsize=6.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
