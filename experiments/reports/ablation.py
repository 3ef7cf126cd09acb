"""The report of the ablation: what each setting of prediction does."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from experiments import style
from experiments.comparisons import METRICS, Compared, Metric
from experiments.figures import Picture
from experiments.runs import Runs
from experiments.statistics import PairedDifference

# Settings that are numbers, and the defaults that a reader must know.
_SETTINGS = {
    "plp_step": "step",
    "plp_period": "period",
    "plp_window": "window (at period 5)",
}


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Differences from both controls over step, period and window."""
    return [
        "## Step, period and window",
        *(
            _over_settings(runs, model, metric, found)
            for model in runs.models
            for metric in METRICS[:2]
        ),
    ]


def _over_settings(
    runs: Runs, model: str, metric: Metric, found: Sequence[Compared]
) -> Picture | None:
    of_both = [c for c in found if c.model == model and c.metric is metric]
    panels = {
        setting: lines
        for setting in _SETTINGS
        if (lines := _lines(runs, setting, of_both))
    }
    if not panels:
        return None
    figure = style.figure(
        f"{metric.title} over settings of prediction, {runs.place(model)}",
        9.2,
        3.6,
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (setting, lines) in zip(axes, panels.items(), strict=True):
        style.dress(ax, xlabel=_SETTINGS[setting], ylabel="")
        ax.axhline(0, color="0.3", lw=1)
        # Evenly spaced, whatever the setting.
        values = sorted({value for points in lines.values() for value in points})
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        for label, points in lines.items():
            _draw(ax, values, points, label)
    better = "up" if metric.higher_is_better else "down"
    axes[0].set_ylabel(f"difference ({metric.unit}; better: {better})")
    style.legend(figure)
    return Picture(
        f"settings-{metric.name.replace('_', '-')}-{model}",
        figure,
        "PLP with one setting changed, minus plain SGD and minus SGD at the matched "
        "rate of that setting: mean of the paired differences and 95 % interval. The "
        "other settings have their defaults: step 1, period 4, window 3.",
    )


def _lines(
    runs: Runs, setting: str, found: Sequence[Compared]
) -> dict[str, dict[float, PairedDifference]]:
    """Differences by value of a setting, from plain SGD and from the matched rate."""
    varied = [arm for arm in runs.study.arms if arm.varies == setting]
    names = {arm.name for arm in varied} | {arm.variant_of for arm in varied}
    lines: dict[str, dict[float, PairedDifference]] = {}
    for arm in runs.study.arms:
        if arm.name in names:
            for label, control in (
                ("minus SGD", arm.baseline),
                ("minus SGD at the matched rate", arm.matched),
            ):
                for c in found:
                    if (c.arm, c.control) == (arm.name, control) and c.difference.n:
                        value = float(arm.fields[setting])
                        lines.setdefault(label, {})[value] = c.difference
    return lines


def _draw(
    ax: Axes,
    values: Sequence[float],
    points: dict[float, PairedDifference],
    label: str,
) -> None:
    is_matched = "matched" in label
    look = style.MATCHED if is_matched else style.PLAIN
    # Next to each other, so that no interval hides another.
    shift = 0.07 if is_matched else -0.07
    places = {value: values.index(value) + shift for value in sorted(points)}
    for value, x in places.items():
        if (interval := points[value].interval) is not None:
            ax.plot([x, x], interval, color=look.color, lw=1.5)
    ax.plot(
        list(places.values()),
        [points[value].mean for value in places],
        **look._asdict(),
        label=label,
    )
