"""What was measured of curvature and paths, and pictures of it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from experiments import paths, stability, style
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs
from experiments.studies.mechanism import METHODS, PERIOD, REGIMES, Regime

PLP = stability.plp_cycle(period=PERIOD)
# Part of a run's measurements that counts as its end.
_END = 0.25
_LOOKS = {"sgd": style.PLAIN, "plp": style.METHOD, "matched": style.MATCHED}


class Measured(NamedTuple):
    """What was measured along a run, finished or diverged.

    Attributes:
      record: The run.
      rate: Its learning rate.
      steps: Optimizer steps of the measurements, ``[times]``.
      curvature: The top eigenvalue of the Hessian there, ``[times]``.
      path: Sketches of the displacement from the start, ``[times, dimensions]``.
    """

    record: Record
    rate: float
    steps: np.ndarray
    curvature: np.ndarray
    path: np.ndarray

    @property
    def products(self) -> np.ndarray:
        """Learning rate times curvature, ``[times]``."""
        return self.rate * self.curvature

    def end(self, values: np.ndarray) -> float:
        """The mean of the last quarter of values along the run."""
        return float(values[-max(1, round(_END * len(values))) :].mean())


# By method and seed.
ByMethod = Mapping[str, Mapping[int, Measured]]


def measured(runs: Runs, model: str, regime: Regime) -> ByMethod:
    """What was measured in a regime."""
    found: dict[str, dict[int, Measured]] = {}
    for method in METHODS:
        found[method] = {}
        for record in runs.of(model, f"{method}-{regime.name}"):
            if measures := record.measures:
                steps = np.array(measures["step"], np.float64)
                found[method][record.seed] = Measured(
                    record,
                    float(runs.config(record)["learning_rate"]),
                    steps,
                    np.array(measures["top_eigenvalue"], np.float64),
                    paths.unpack(measures["path"], len(steps)),
                )
    return found


def limit(method: str, regime: Regime) -> float:
    """The first unstable value of learning rate times curvature of an arm."""
    cycle = PLP if method == "plp" else stability.PLAIN
    return stability.stability_limit(cycle, regime.momentum, nesterov=regime.nesterov)


def pairs(found: ByMethod, method: str) -> dict[int, tuple[Measured, Measured]]:
    """PLP's and another method's runs, on the seeds on which both finished."""
    ours, theirs = found["plp"], found[method]
    both = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
    return {s: p for s, p in both.items() if not any(m.record.diverged for m in p)}


def distance(ours: Measured, theirs: Measured) -> np.ndarray:
    """The distance of two paths as a part of the length of the first displacement."""
    return paths.distance(ours.path, theirs.path)


# -- Pictures --------------------------------------------------------------------------


def products(runs: Runs, model: str) -> Picture | None:
    """Draws learning rate x curvature along training, a panel for each regime."""
    return _picture(
        runs,
        model,
        "curvature",
        "Learning rate x top eigenvalue",
        "rate x eigenvalue",
        _draw_products,
        "Each arm's learning rate times the top eigenvalue of the Hessian of the "
        "training loss. Lines are means over the finished runs, bands reach from the "
        "lowest to the highest run. Thin lines that end in a cross are runs that "
        "diverged. Dotted: the first unstable value of SGD at any rate (black) and of "
        "PLP (blue), unless far above. Shaded: where theory says that PLP is unstable.",
    )


def _draw_products(ax: Axes, found: ByMethod, regime: Regime) -> None:
    for method, by_seed in found.items():
        values = {seed: m.products for seed, m in by_seed.items()}
        _lines(ax, method, by_seed, values)
    is_wide = style.logarithmic_if_wide(ax, ratio=50)
    for method in ("sgd", "plp"):
        level = limit(method, regime)
        if level < 2 * ax.get_ylim()[1]:
            ax.axhline(level, color=_LOOKS[method].color, ls=":", lw=1.4)
    top = ax.get_ylim()[1]
    for low, high in stability.unstable_bands(
        PLP, regime.momentum, nesterov=regime.nesterov
    ):
        if low < top:
            color = _LOOKS["plp"].color
            ax.axhspan(low, min(high, top), color=color, alpha=0.1, lw=0)
    ax.set_ylim(ax.get_ylim()[0] if is_wide else 0, top)


def distances(runs: Runs, model: str) -> Picture | None:
    """Draws how far PLP's path is from those of its controls."""
    return _picture(
        runs,
        model,
        "distance",
        "Distance of PLP from its controls",
        "distance (%)",
        _draw_distances,
        "Distance of PLP's parameters from those of SGD, and of SGD at the matched "
        "rate, from the same start on the same data, in percent of the distance that "
        "PLP has moved. Lines are means over the seeds, bands reach from the lowest to "
        "the highest.",
    )


def _draw_distances(ax: Axes, found: ByMethod, regime: Regime) -> None:
    del regime
    for method in ("sgd", "matched"):
        both = pairs(found, method)
        values = {s: 100 * distance(*pair)[1:] for s, pair in both.items()}
        _lines(ax, method, {s: ours for s, (ours, _) in both.items()}, values)
    ax.set_ylim(0, None)


def _picture(
    runs: Runs,
    model: str,
    name: str,
    title: str,
    ylabel: str,
    draw: Callable[[Axes, ByMethod, Regime], None],
    caption: str,
) -> Picture | None:
    """A panel for each regime that was run."""
    found = {regime: measured(runs, model, regime) for regime in REGIMES}
    ran = {regime: f for regime, f in found.items() if any(f.values())}
    if not ran:
        return None
    columns = min(3, len(ran))
    rows = -(-len(ran) // columns)
    figure = style.figure(
        f"{title}, {runs.place(model)}",
        max(6.0, 0.4 + 3.1 * columns),
        0.8 + 2.5 * rows,
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(ran) :]:
        ax.set_axis_off()
    for number, (ax, (regime, f)) in enumerate(zip(axes, ran.items(), strict=False)):
        left = ylabel if number % columns == 0 else ""
        style.dress(ax, xlabel="step", ylabel=left, title=regime.label)
        draw(ax, f, regime)
    style.legend(figure)
    return Picture(f"{name}-{model}", figure, caption)


def _lines(
    ax: Axes,
    method: str,
    runs: Mapping[int, Measured],
    values: Mapping[int, np.ndarray],
) -> None:
    """The mean of finished runs, and the diverged ones, against the last steps."""
    look, label = _LOOKS[method], METHODS[method]
    finished = [seed for seed, m in runs.items() if not m.record.diverged]
    if finished:
        drawn = np.stack([values[seed] for seed in finished])
        steps = runs[finished[0]].steps[-drawn.shape[1] :]
        style.mean_line(ax, steps, drawn, look, label)
    for seed, m in runs.items():
        if m.record.diverged:
            line = values[seed]
            steps = m.steps[-len(line) :]
            ax.plot(steps, line, color=look.color, lw=0.7)
            ax.plot(steps[-1:], line[-1:], "x", color=look.color, label=label)
