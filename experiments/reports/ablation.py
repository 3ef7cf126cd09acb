"""The report of the ablation: what each setting of prediction does."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from experiments import style
from experiments.page import Picture, Section
from experiments.pairing import Metric
from experiments.reports import shared
from experiments.reports.comparisons import Compared
from experiments.reports.runs import Runs
from experiments.statistics import PairedDifference


class _Setting(NamedTuple):
    """A setting that takes numbers.

    Attributes:
      group: The arms that vary it.
      field: It, as a field of a configuration.
      base: The arm of another group that belongs between them.
      value: That arm's setting.
    """

    group: str
    field: str
    base: str
    value: float


_SETTINGS = (
    _Setting("step", "plp_step", "plp", 1),
    _Setting("period", "plp_period", "plp", 4),
    _Setting("window", "plp_window", "period-5", 3),
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[Section]:
    """Differences to both controls over the settings; the rest is shared."""
    pictures = [
        _responses(model, metric, runs, [c for c in found if c.model == model])
        for model in runs.models
        for metric in found[0].differences
    ]
    own = [Section("Step, period and window", pictures)]
    return shared.sections(runs, found, own=own)


def _responses(
    model: str, metric: Metric, runs: Runs, found: Sequence[Compared]
) -> Picture:
    figure = style.figure(9.2, 3.6)
    axes = figure.subplots(1, len(_SETTINGS), sharey=True)
    for setting, ax in zip(_SETTINGS, axes, strict=True):
        style.dress(ax, xlabel=setting.group, ylabel="")
        ax.axhline(0, color="0.3", lw=1)
        lines = {
            matched: _points(setting, metric, runs, found, matched=matched)
            for matched in (False, True)
        }
        # Evenly spaced, whatever the setting.
        values = sorted({value for points in lines.values() for value, _ in points})
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        for matched, points in lines.items():
            _draw(ax, values, points, matched=matched)
    axes[0].set_ylabel(f"difference in\n{metric.label} ({metric.unit})")
    style.legend(figure)
    better = "above" if metric.higher_is_better else "below"
    return Picture(
        f"settings-{metric.field.replace('_', '-')}-{model}",
        figure,
        f"{model}: PLP minus plain SGD, and minus SGD at the matched rate, by setting: "
        f"mean and 95 % interval; better is {better} 0. All else is the default: step "
        f"1, period 4, window 3; windows stand beside period 5.",
    )


def _points(
    setting: _Setting,
    metric: Metric,
    runs: Runs,
    found: Sequence[Compared],
    *,
    matched: bool,
) -> list[tuple[float, PairedDifference]]:
    """Differences by setting, from plain SGD or from SGD at the matched rate."""
    points = []
    for c in found:
        arm = runs.study.arm(c.comparison.arm)
        is_base = arm.name == setting.base
        difference = c.differences[metric]
        if not difference.n or not (is_base or arm.group == setting.group):
            continue
        # Where no rate has to be raised, plain SGD is its own match.
        controls = [o for o in found if o.comparison.arm == arm.name]
        if c.comparison.control.startswith("matched") is matched or len(controls) == 1:
            value = setting.value if is_base else arm.fields[setting.field]
            points.append((value, difference))
    return sorted(points, key=lambda point: point[0])


def _draw(
    ax: Axes,
    values: Sequence[float],
    points: Sequence[tuple[float, PairedDifference]],
    *,
    matched: bool,
) -> None:
    look = style.look("matched" if matched else "sgd")
    # Side by side, so that none hides the other.
    aside = 0.07 if matched else -0.07
    places = [values.index(value) + aside for value, _ in points]
    for place, (_, difference) in zip(places, points, strict=True):
        if difference.interval is not None:
            ax.plot([place, place], difference.interval, color=look.color, lw=1.5)
    ax.plot(
        places,
        [difference.mean for _, difference in points],
        color=look.color,
        ls=look.linestyle,
        marker=look.marker,
        label="minus SGD at the matched rate" if matched else "minus SGD",
    )
