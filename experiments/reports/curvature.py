"""What was measured of curvature and paths, and pictures of it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import paths, stability, style
from experiments.page import Picture
from experiments.records import Record
from experiments.reports.runs import NOT_RUN, Runs
from experiments.studies.mechanism import METHODS, PERIOD, REGIMES, Regime

PLP = stability.plp_cycle(period=PERIOD)
# What part of a run's measurements counts as its end.
_END = 0.25


class Seen(NamedTuple):
    """What was measured along a run, finished or diverged.

    Attributes:
      record: The run.
      steps: Optimizer steps at which it was looked at, ``[times]``.
      curvature: The top eigenvalue of the Hessian there, ``[times]``.
      path: Sketches of the displacement from the start, ``[times, dimensions]``.
    """

    record: Record
    steps: np.ndarray
    curvature: np.ndarray
    path: np.ndarray

    @property
    def products(self) -> np.ndarray:
        """Learning rate times curvature, ``[times]``."""
        return float(self.record.config["learning_rate"]) * self.curvature

    def end(self, values: np.ndarray) -> float:
        """The mean of the last quarter of values along the run."""
        return float(values[-max(1, round(_END * len(values))) :].mean())


def look(runs: Runs, model: str, regime: Regime) -> dict[str, dict[int, Seen]]:
    """What was measured in a regime, by method and seed."""
    found: dict[str, dict[int, Seen]] = {}
    for method in METHODS:
        found[method] = {}
        for record in runs.of(model, f"{method}-{regime.name}"):
            if measures := record.measures:
                steps = np.array(measures["step"], np.float64)
                curvature = np.array(measures["top_eigenvalue"], np.float64)
                path = paths.unpack(measures["path"], len(steps))
                found[method][record.seed] = Seen(record, steps, curvature, path)
    return found


def limit(method: str, regime: Regime) -> float:
    """The learning rate times curvature from which on an arm is unstable."""
    cycle = PLP if method == "plp" else stability.PLAIN
    return stability.stability_limit(cycle, regime.momentum, nesterov=regime.nesterov)


def unstable(regime: Regime) -> list[tuple[float, float]]:
    """The intervals of learning rate times curvature in which PLP is unstable."""
    return stability.unstable_bands(PLP, regime.momentum, nesterov=regime.nesterov)


def together(
    ours: Mapping[int, Seen], theirs: Mapping[int, Seen]
) -> dict[int, tuple[Seen, Seen]]:
    """The runs of two arms on the seeds on which both finished."""
    pairs = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
    return {
        seed: pair
        for seed, pair in pairs.items()
        if not any(seen.record.diverged for seen in pair)
    }


def apart(ours: Seen, theirs: Seen) -> np.ndarray:
    """The distance of two paths as a part of the way that the first has come."""
    return paths.distance(ours.path, theirs.path)


# -- Pictures --------------------------------------------------------------------------


def along(runs: Runs, model: str) -> Picture:
    """Draws learning rate x curvature along training, a panel for each regime."""
    figure, panels = _panels(runs, model, "rate x curvature")
    for regime, ax in panels:
        for method, by_seed in look(runs, model, regime).items():
            values = {seed: seen.products for seed, seen in by_seed.items()}
            _lines(ax, method, by_seed, values)
        highest = ax.get_ylim()[1]
        for method in ("sgd", "plp"):
            level, color = limit(method, regime), style.look(method).color
            if level < 2 * highest:
                ax.axhline(level, color=color, ls=":", lw=1.4)
        highest = ax.get_ylim()[1]
        for low, high in unstable(regime):
            if low < highest:
                color = style.look("plp").color
                ax.axhspan(low, min(high, highest), color=color, alpha=0.1, lw=0)
        ax.set_ylim(0, highest)
    style.legend(figure)
    return Picture(
        f"curvature-{model}",
        figure,
        f"{model}: learning rate (each arm's own) x top eigenvalue of the Hessian of "
        f"the training loss along training. Lines: means over the finished runs; "
        f"bands: one standard deviation; thin lines with a cross: runs that diverged. "
        f"Dotted: the first limit of SGD at any rate (black) and of PLP (blue), unless "
        f"far above. Shaded: where theory calls PLP unstable.",
    )


def distances(runs: Runs, model: str) -> Picture:
    """Draws how far PLP's path is from those of its controls."""
    figure, panels = _panels(runs, model, "distance / way (%)")
    for regime, ax in panels:
        found = look(runs, model, regime)
        for method in ("sgd", "matched"):
            pairs = together(found["plp"], found[method])
            values = {s: 100 * apart(*pair)[1:] for s, pair in pairs.items()}
            _lines(ax, method, {s: ours for s, (ours, _) in pairs.items()}, values)
        ax.set_ylim(0, None)
    style.legend(figure)
    return Picture(
        f"distance-{model}",
        figure,
        f"{model}: the distance of PLP's parameters from those of SGD and of SGD at "
        f"the matched rate, from the same start on the same data, as a part of the way "
        f"that PLP has come. Lines: means over the seeds; bands: one standard "
        f"deviation.",
    )


def _panels(
    runs: Runs, model: str, ylabel: str
) -> tuple[Figure, list[tuple[Regime, Axes]]]:
    """A figure, and the panels of the regimes that have runs."""
    figure = style.figure(9.6, 5.8)
    axes = figure.subplots(2, 3).ravel()
    for ax in axes[len(REGIMES) :]:
        ax.set_axis_off()
    panels = []
    for number, (regime, ax) in enumerate(zip(REGIMES, axes, strict=False)):
        left = ylabel if number % 3 == 0 else ""
        style.dress(ax, xlabel="step", ylabel=left, title=regime.label)
        if any(look(runs, model, regime).values()):
            panels.append((regime, ax))
        else:
            ax.text(0.5, 0.5, NOT_RUN, transform=ax.transAxes, ha="center")
            ax.set(xticks=[], yticks=[])
    return figure, panels


def _lines(
    ax: Axes, method: str, runs: Mapping[int, Seen], values: Mapping[int, np.ndarray]
) -> None:
    """The mean of finished runs, and those that diverged; the last of their steps."""
    finished = [seed for seed, seen in runs.items() if not seen.record.diverged]
    if finished:
        of = np.stack([values[seed] for seed in finished])
        steps = runs[finished[0]].steps[-of.shape[1] :]
        style.mean_line(ax, steps, of, arm=method, label=METHODS[method])
    for seed, seen in runs.items():
        if seen.record.diverged:
            color, line = style.look(method).color, values[seed]
            steps = seen.steps[-len(line) :]
            ax.plot(steps, line, color=color, lw=0.7)
            ax.plot(steps[-1:], line[-1:], "x", color=color, label=METHODS[method])
