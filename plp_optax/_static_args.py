"""What ``optax.inject_hyperparams`` must leave as it is."""

import inspect
from collections.abc import Callable

_STATIC = frozenset(
    (
        *("accumulator_dtype", "active", "apply", "axis_name", "fit", "inner"),
        *("layers", "mask", "measure", "mu_dtype", "nesterov", "period"),
        *("prediction", "reselect_every", "revert", "select", "start"),
        *("steps_per_epoch", "store", "strategy", "window"),
    )
)


def static_args(factory: Callable[..., object]) -> tuple[str, ...]:
    """Names for the argument ``static_args`` of ``optax.inject_hyperparams``.

    ``inject_hyperparams`` turns numbers into arrays and functions into schedules. That
    is right for a learning rate and wrong for a period, a predicate or a dtype.

    Args:
      factory: A public transformation of this library.

    Returns:
      The names of its arguments that cannot be injected.

    Examples:
      >>> import jax.numpy as jnp, optax, plp_optax
      >>> static = plp_optax.static_args(plp_optax.plp)
      >>> tx = optax.inject_hyperparams(plp_optax.plp, static)(step=0.5)
      >>> tx.init(jnp.zeros(3)).hyperparams
      {'step': Array(0.5, dtype=float32)}
    """
    return tuple(n for n in inspect.signature(factory).parameters if n in _STATIC)
