"""The stability chart: where prediction is stable, over momentum and curvature."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, ListedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from experiments import figures
from experiments.figures import Look
from experiments.stability import PLAIN, Cycle, growth, plp_cycle

_TOP = 4.0  # learning rate x curvature; the limit of plain heavy ball is at most 4
_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # momenta
_POINTS = 400

# Growth per step. The colours are light, so that lines on them stand out.
_LEVELS = np.linspace(0.9, 1.1, 41)
_COLORS = ListedColormap(mpl.colormaps["BrBG_r"](np.linspace(0.15, 0.85, 256)))

# What differs from PLP's defaults (step 1, window 3, period 4): cycle, color, line.
_SETTINGS: dict[str, tuple[Cycle, str, str]] = {
    "PLP (step 1, window 3, period 4)": (plp_cycle(), figures.BLUE, "-"),
    "with period 3": (plp_cycle(period=3), figures.SKY, "-"),
    "with period 8": (plp_cycle(period=8), figures.GREEN, "-"),
    "with step 0.5": (plp_cycle(0.5), "#B8A600", "--"),
    "with step 2": (plp_cycle(2.0), figures.ORANGE, "--"),
    "with window 2": (plp_cycle(window=2), figures.PURPLE, ":"),
    "with window 5, period 5": (plp_cycle(window=5, period=5), figures.GREY, ":"),
}


def grid() -> tuple[np.ndarray, np.ndarray]:
    """The chart's momenta and learning rates x curvature, ascending, ``[points]``."""
    # Evenly spaced in the logarithm of 1/(1 - momentum), the time constant in steps.
    memory = np.geomspace(1, 1 / (1 - _TICKS[-1]), _POINTS)
    return 1 - 1 / memory, np.linspace(_TOP / _POINTS, _TOP, _POINTS)


def chart(cycle: Cycle, *, nesterov: bool = False, rate: float = 1.0) -> np.ndarray:
    """Growth of an error for each optimizer step, over the chart.

    Args:
      cycle: The cycle.
      nesterov: Nesterov momentum, not heavy ball.
      rate: The cycle's learning rate, in units of the one on the axis.

    Returns:
      ``[curvatures, momenta]``, of :func:`grid`; unstable above 1.
    """
    momenta, curvatures = grid()
    return growth(
        cycle, rate * curvatures[:, None], momenta[None, :], nesterov=nesterov
    )


def draw() -> Figure:
    """Draws growth and limits of PLP for heavy-ball and Nesterov momentum.

    Above: how PLP with its defaults grows or shrinks an error, and the limits of the
    plain optimizer at PLP's rate and at the matched one. Below: the first limits of
    PLP with other settings. All axes are in units of PLP's own learning rate.
    """
    figure = figures.figure("Stability of PLP on a quadratic", 10.5, 8.6)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for column, nesterov in enumerate((False, True)):
        kind = "Nesterov momentum" if nesterov else "heavy ball"
        above, below = axes[:, column]
        figures.dress(above, xlabel="", ylabel="", title=f"growth with PLP, {kind}")
        figures.dress(
            below, xlabel="momentum", ylabel="", title=f"first unstable value, {kind}"
        )
        surface = _growth(above, nesterov)
        _limits(below, nesterov)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate x curvature")
    memory = [1 / (1 - momentum) for momentum in _TICKS]
    axes[0, 0].set(xscale="log", xlim=(1, memory[-1]), ylim=(0, _TOP))
    axes[0, 0].set_xticks(memory, [f"{momentum:g}" for momentum in _TICKS])
    axes[0, 0].minorticks_off()
    axes[0, 1].legend(loc="upper right", title="edge of stability", fontsize=8.5)
    axes[1, 1].legend(loc="upper right", fontsize=8.5)
    bar = figure.colorbar(surface, ax=axes[0], ticks=[0.9, 0.95, 1, 1.05, 1.1])
    bar.set_label("growth of an error per step")
    return figure


def _growth(ax: Axes, nesterov: bool) -> QuadContourSet:
    momenta, curvatures = grid()
    x, ours = 1 / (1 - momenta), chart(plp_cycle(), nesterov=nesterov)
    surface = ax.contourf(
        *(x, curvatures, ours, _LEVELS),
        cmap=_COLORS,
        norm=CenteredNorm(1, 0.1),
        extend="both",
    )
    plain = chart(PLAIN, nesterov=nesterov)
    matched = chart(PLAIN, nesterov=nesterov, rate=plp_cycle().rate_multiplier)
    for label, (color, line, _), values in (
        ("PLP", figures.COLORED[0], ours),
        ("plain", figures.PLAIN, plain),
        ("plain at the matched rate", Look(figures.VERMILION, "--", "^"), matched),
    ):
        ax.contour(
            x, curvatures, values, [1], colors=[color], linestyles=[line], linewidths=2
        )
        ax.plot([], [], color=color, ls=line, label=label)
    return surface


def _limits(ax: Axes, nesterov: bool) -> None:
    momenta, curvatures = grid()
    for label, (cycle, color, line) in _SETTINGS.items():
        unstable = chart(cycle, nesterov=nesterov) > 1 + 1e-9
        first = np.where(
            unstable.any(axis=0), curvatures[unstable.argmax(axis=0)], np.nan
        )
        ax.plot(1 / (1 - momenta), first, color=color, ls=line, lw=1.6, label=label)
