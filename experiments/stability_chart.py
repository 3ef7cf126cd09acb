"""The stability chart: what curvature prediction bears, over momentum."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, ListedColormap
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from experiments import style
from experiments.stability import PLAIN, Cycle, growth, plp_cycle

_TOP = 4.0  # learning rate x curvature: plain heavy ball bears 2 (1 + momentum)
_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # momenta
_POINTS = 400

# Growth a step, in levels as close as the eye needs; lighter than lines on it.
_LEVELS = np.linspace(0.9, 1.1, 41)
_COLORS = ListedColormap(mpl.colormaps["BrBG_r"](np.linspace(0.15, 0.85, 256)))
_DEFAULT = "PLP (step 1, window 3, period 4)"

# What differs from PLP's defaults: label, cycle, color, line.
_SETTINGS: tuple[tuple[str, Cycle, str, str], ...] = (
    (_DEFAULT, plp_cycle(), style.BLUE, "-"),
    ("with period 3", plp_cycle(period=3), style.SKY, "-"),
    ("with period 8", plp_cycle(period=8), style.GREEN, "-"),
    ("with step 0.5", plp_cycle(0.5), style.YELLOW, "--"),
    ("with step 2", plp_cycle(2.0), style.ORANGE, "--"),
    ("with window 2", plp_cycle(window=2), style.PURPLE, ":"),
    ("with window 5, period 5", plp_cycle(window=5, period=5), style.GREY, ":"),
)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """The chart's momenta and learning rates x curvature, ascending, ``[points]``."""
    # Evenly spread in the logarithm of 1/(1 - momentum), the steps it remembers.
    memory = np.geomspace(1, 1 / (1 - _TICKS[-1]), _POINTS)
    return 1 - 1 / memory, np.linspace(_TOP / _POINTS, _TOP, _POINTS)


def chart(cycle: Cycle, *, nesterov: bool = False, rate: float = 1.0) -> np.ndarray:
    """Growth of an error for each optimizer step, over the chart.

    Args:
      cycle: The cycle.
      nesterov: Nesterov momentum, not heavy ball.
      rate: What the cycle's learning rate is, of that on the axis.

    Returns:
      ``[curvatures, momenta]``, of :func:`grid`; unstable above 1.
    """
    momenta, curvatures = grid()
    return growth(
        cycle, rate * curvatures[:, None], momenta[None, :], nesterov=nesterov
    )


def draw() -> Figure:
    """Draws growth and limits of PLP for heavy ball and Nesterov momentum.

    Above: how PLP at its defaults grows or shrinks an error, and the limits of the
    plain optimizer at PLP's rate and at the matched one. Below: the first limits of
    PLP with other settings. All over PLP's own learning rate x curvature.
    """
    figure = style.figure(10.5, 8.4)
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for column, nesterov in enumerate((False, True)):
        kind = "Nesterov momentum" if nesterov else "heavy ball"
        above, below = axes[:, column]
        style.dress(above, xlabel="", ylabel="", title=f"growth with PLP, {kind}")
        style.dress(below, xlabel="momentum", ylabel="", title=f"first limit, {kind}")
        surface = _growth(above, nesterov)
        _limits(below, nesterov)
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate x curvature")
    memory = [1 / (1 - momentum) for momentum in _TICKS]
    axes[0, 0].set(xscale="log", xlim=(1, memory[-1]), ylim=(0, _TOP))
    axes[0, 0].set_xticks(memory, [f"{momentum:g}" for momentum in _TICKS])
    axes[0, 0].minorticks_off()
    bar = figure.colorbar(surface, ax=axes[0], ticks=[0.9, 0.95, 1, 1.05, 1.1])
    bar.set_label("growth of an error in a step")
    style.legend(figure)
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
    for label, method, values in (
        (_DEFAULT, "plp", ours),
        ("plain", "sgd", chart(PLAIN, nesterov=nesterov)),
        (
            "plain at the matched rate",
            "matched",
            chart(PLAIN, nesterov=nesterov, rate=plp_cycle().drift),
        ),
    ):
        color, line, _ = style.look(method)
        ax.contour(
            x, curvatures, values, [1], colors=[color], linestyles=[line], linewidths=2
        )
        ax.plot([], [], color=color, ls=line, label=label)
    return surface


def _limits(ax: Axes, nesterov: bool) -> None:
    momenta, curvatures = grid()
    for label, cycle, color, line in _SETTINGS:
        unstable = chart(cycle, nesterov=nesterov) > 1 + 1e-9
        first = np.where(
            unstable.any(axis=0), curvatures[unstable.argmax(axis=0)], np.nan
        )
        ax.plot(1 / (1 - momenta), first, color=color, ls=line, lw=1.6, label=label)
