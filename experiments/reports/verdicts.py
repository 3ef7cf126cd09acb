"""A picture that says at once which method is ahead of what, and where."""

from collections.abc import Callable, Mapping, Sequence

from matplotlib.patches import Rectangle

from experiments import style
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.runs import Runs
from experiments.statistics import BETTER, NOT_SHOWN, TOO_FEW, WORSE

_COLORS = {
    BETTER: style.SKY,
    WORSE: style.VERMILION,
    NOT_SHOWN: "#dddddd",
    TOO_FEW: "#ffffff",
}


def verdicts(
    runs: Runs,
    found: Sequence[Compared],
    columns: Mapping[str, Metric],
    controls: Mapping[str, Callable[[str], str | None]],
    effect: Callable[[Compared], str],
) -> Picture:
    """Draws the verdicts of all comparisons: a row a method, a panel a control.

    Args:
      runs: The study's runs.
      found: Its comparisons.
      columns: What each setup has a column for: labels, and metrics.
      controls: Titles of the panels, and functions that map an arm's name to its
        control there, or to None.
      effect: What is written into a cell.
    """
    arms = [arm.name for arm in runs.study.arms if arm.baseline]
    places = [(model, name) for model in runs.models for name in columns]
    by_key = {(c.model, c.metric.name, c.arm, c.control): c for c in found}
    figure = style.figure(
        "Who is ahead",
        2.2 + max(2.6, 0.62 * len(places)) * len(controls),
        1.6 + 0.36 * len(arms),
    )
    axes = figure.subplots(1, len(controls), sharey=True, squeeze=False)[0]
    for ax, (title, control_of) in zip(axes, controls.items(), strict=True):
        for y, arm in enumerate(arms):
            for x, (model, name) in enumerate(places):
                key = (model, columns[name].name, arm, control_of(arm) or "")
                # A control whose runs all diverged is in the first metric alone.
                if (c := by_key.get(key)) is None:
                    continue
                color = _COLORS[c.difference.verdict]
                ax.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=color))
                text = effect(c) if c.difference.n else "control\ndiverged"
                if c.difference.n and c.diverged[0]:
                    text += f"\n{c.diverged[0]} div."
                ax.text(x, y, text, ha="center", va="center", fontsize=6.5)
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_xlim(-0.5, len(places) - 0.5)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        labels = ["\n".join(filter(None, place)) for place in places]
        ax.set_xticks(range(len(places)), labels, fontsize=7, rotation=90)
        ax.set_yticks(range(len(arms)), map(runs.label, arms), fontsize=8.5)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    return Picture(
        "verdicts",
        figure,
        "Blue: better than the control. Red: worse. Grey: no difference shown. White: "
        "too few seeds on which both finished. *div.*: runs that diverged.",
    )
