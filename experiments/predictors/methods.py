"""The optimizers that are compared, and the drift of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import plp_optax

Rate = jax.typing.ArrayLike

WINDOW = 11  # updates: Anderson's depth 10
MOMENTA = (0.8, 0.9, 0.95, 0.98, 0.99)
# Multiples of the reciprocal of the largest curvature at the start: two decades.
MULTIPLES = tuple(0.3 * 10 ** (i / 3) for i in range(7))
ADAM_RATES = tuple(1e-3 * 10 ** (i / 3) for i in range(7))
_BETA, _GAMMA = 0.5, 0.9
_ETA, _MU, _K = 0.7, 0.9, 10


class Method(NamedTuple):
    """An optimizer with a rate and a momentum.

    Attributes:
      make: Maps a rate and a momentum to the optimizer.
      base: The method that it is based on; itself for a plain one.
      momenta: The momenta to try.
      drift: How much further it moves on steady updates than its base; None if it has
        no such number, and the ratio of the lengths of its updates is taken.
    """

    make: Callable[[Rate, Rate], optax.GradientTransformation]
    base: str
    momenta: tuple[float, ...] = (0.0,)
    drift: float | None = 1.0


def _sgd(rate: Rate, momentum: Rate) -> optax.GradientTransformation:
    del momentum
    return optax.sgd(rate)


def _nesterov(rate: Rate, momentum: Rate) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum, nesterov=True)


def _after(
    base: Callable[[Rate, Rate], optax.GradientTransformation],
    make_link: Callable[..., optax.GradientTransformation],
    *args: Any,
    **kwargs: Any,
) -> Callable[[Rate, Rate], optax.GradientTransformation]:
    return lambda rate, momentum: optax.chain(
        base(rate, momentum), make_link(*args, **kwargs)
    )


_window = plp_optax.adaptive_window
METHODS = {
    "gd": Method(_sgd, "gd"),
    "nesterov": Method(_nesterov, "nesterov", MOMENTA),
    "adam": Method(lambda rate, momentum: optax.adam(rate), "adam"),
    "lbfgs": Method(lambda rate, momentum: optax.lbfgs(), "lbfgs"),
    "plp": Method(_after(_sgd, plp_optax.plp), "gd", drift=9 / 8),
    "ema": Method(
        _after(_sgd, plp_optax.ema_nesterov, _BETA, decay=_GAMMA),
        "gd",
        drift=1 / (1 - _BETA),
    ),
    "outer": Method(
        _after(_sgd, plp_optax.outer_nesterov, _ETA, momentum=_MU, period=_K),
        "gd",
        drift=_ETA / (1 - _MU),
    ),
    "sliding": Method(_after(_sgd, _window, WINDOW), "gd", drift=None),
    "revert": Method(_after(_sgd, _window, WINDOW, revert=True), "gd", drift=None),
    "restarted": Method(_after(_sgd, _window, WINDOW, period=WINDOW), "gd", drift=None),
    "restarted-nesterov": Method(
        _after(_nesterov, _window, WINDOW, period=2 * WINDOW),
        "nesterov",
        MOMENTA,
        drift=None,
    ),
}
