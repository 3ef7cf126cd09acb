"""The optimizers that are compared, and the drift of each."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import plp_optax
from experiments.tuning import Method

Rate = jax.typing.ArrayLike

WINDOW = 11  # updates: Anderson's depth 10
MOMENTA = (0.8, 0.9, 0.95, 0.98, 0.99)
# Multiples of the reciprocal of the largest curvature at the start: two decades.
MULTIPLES = tuple(0.3 * 10 ** (i / 3) for i in range(7))
ADAM_RATES = tuple(1e-3 * 10 ** (i / 3) for i in range(7))
_BETA, _GAMMA = 0.5, 0.9
_ETA, _MU, _K = 0.7, 0.9, 10


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


_window = plp_optax.anderson
METHODS = {
    "gd": Method("gradient descent", _sgd, "gd"),
    "nesterov": Method("Nesterov", _nesterov, "nesterov", momenta=MOMENTA),
    "adam": Method("Adam", lambda rate, momentum: optax.adam(rate), "adam"),
    "lbfgs": Method("L-BFGS", lambda rate, momentum: optax.lbfgs(), "lbfgs"),
    "plp": Method("PLP", _after(_sgd, plp_optax.plp), "gd", drift=9 / 8),
    "ema": Method(
        "EMA-Nesterov",
        _after(_sgd, plp_optax.ema_nesterov, _BETA, decay=_GAMMA),
        "gd",
        drift=1 / (1 - _BETA),
    ),
    "outer": Method(
        "outer Nesterov",
        _after(_sgd, plp_optax.outer_nesterov, _ETA, momentum=_MU, period=_K),
        "gd",
        drift=_ETA / (1 - _MU),
    ),
    "sliding": Method(
        "sliding window", _after(_sgd, _window, WINDOW), "gd", drift=None
    ),
    "revert": Method(
        "sliding window, revert",
        _after(_sgd, _window, WINDOW, revert=True),
        "gd",
        drift=None,
    ),
    "restarted": Method(
        "restarted window",
        _after(_sgd, _window, WINDOW, period=WINDOW),
        "gd",
        drift=None,
    ),
    "restarted-nesterov": Method(
        "restarted window on Nesterov",
        _after(_nesterov, _window, WINDOW, period=2 * WINDOW),
        "nesterov",
        momenta=MOMENTA,
        drift=None,
    ),
}
