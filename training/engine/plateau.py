"""A learning rate that is divided by ten when the validation loss stalls."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

_FACTOR = 0.1


def scale_on_plateau(patience: int, window: int) -> optax.GradientTransformation:
    """Multiplies updates by the scale of :func:`optax.contrib.reduce_on_plateau`.

    That takes a loss with every update. Here the scale changes only in
    :func:`observe`, which takes the validation loss after an epoch, and divides the
    scale by ten after ``patience`` epochs without a lower one. Losses are means over
    ``window`` epochs, one after the other.
    """

    def update(
        updates: optax.Updates, state: ReduceLROnPlateauState, params: Any = None
    ) -> tuple[optax.Updates, ReduceLROnPlateauState]:
        del params
        scaled = jax.tree.map(lambda u: state.scale.astype(u.dtype) * u, updates)
        return scaled, state

    init = _rule(patience, window).init
    return optax.GradientTransformation(init, update)


def observe(opt_state: Any, loss: float, patience: int, window: int) -> Any:
    """Returns an optimizer's state after the validation loss of an epoch."""

    def advance(leaf: Any) -> Any:
        if not _is_plateau(leaf):
            return leaf
        new = _advance(patience, window)(jax.device_get(leaf), loss)
        # Back on the devices: a step refuses arrays that are placed otherwise.
        return jax.tree.map(lambda n, old: jax.device_put(n, old.sharding), new, leaf)

    return jax.tree.map(advance, opt_state, is_leaf=_is_plateau)


def scale(opt_state: Any) -> float:
    """The scale in an optimizer's state; 1 if there is none."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_plateau)
    return next((float(leaf.scale) for leaf in leaves if _is_plateau(leaf)), 1.0)


def drops(opt_state: Any) -> int:
    """How often the rate has been divided."""
    return round(math.log(scale(opt_state), _FACTOR))


def _rule(patience: int, window: int) -> optax.GradientTransformationExtraArgs:
    epochs = max(1, patience // window)
    return reduce_on_plateau(_FACTOR, epochs, accumulation_size=window)


@functools.cache
def _advance(patience: int, window: int) -> Callable[..., Any]:
    rule = _rule(patience, window)
    return jax.jit(lambda state, loss: rule.update({}, state, value=loss)[1])


def _is_plateau(leaf: Any) -> bool:
    return isinstance(leaf, ReduceLROnPlateauState)
