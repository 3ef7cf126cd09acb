"""Checks of arguments, made when a transformation is built."""

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

State = TypeVar("State")


def check_int(name: str, value: Any, *, low: int) -> None:
    """Raises unless ``value`` is an int from ``low`` up that fits into int32."""
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "an int", value))
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < low:
        raise ValueError(f"{name} must be an int of at least {low}, got {value!r}")
    if number > np.iinfo(np.int32).max:
        raise ValueError(f"{name} must fit into int32, got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "a bool", value))
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def check_number(
    name: str,
    value: Any,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> None:
    """Raises unless ``value`` is a finite number within its bounds, or a jax scalar.

    ``low`` and ``high`` are allowed values, ``above`` and ``below`` are not. The values
    of jax arrays are not checked: they may be tracers.
    """
    if isinstance(value, jax.Array):
        if value.shape:
            raise ValueError(f"{name} must be a scalar, got an array of {value.shape}")
        return
    if not is_finite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    bounds = [
        ("at least", low, operator.ge),
        ("above", above, operator.gt),
        ("at most", high, operator.le),
        ("below", below, operator.lt),
    ]
    given = [(word, bound, holds) for word, bound, holds in bounds if bound is not None]
    if not all(holds(value, bound) for _, bound, holds in given):
        valid = " and ".join(f"{word} {bound}" for word, bound, _ in given)
        raise ValueError(f"{name} must be {valid}, got {value!r}")


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a finite number, or a NumPy scalar of one."""
    scalar = isinstance(value, np.ndarray) and not value.shape
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        return (scalar or number) and math.isfinite(value)
    except OverflowError:
        return False


def check_average(power: Any, decay: Any) -> None:
    """Raises unless one at most is given: a power from 0 up, a decay in [0, 1)."""
    if power is not None and decay is not None:
        raise ValueError(f"give power or decay, not both, got {power!r} and {decay!r}")
    if power is not None:
        check_number("power", power, low=0)
    if decay is not None:
        check_number("decay", decay, low=0, below=1)


def check_predicate(name: str, value: object) -> None:
    """Raises unless ``value`` is None or a function from a step count to a scalar."""
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "a function", value))
    if value is not None and not callable(value):
        raise ValueError(
            f"{name} must be a function of the step count or None, got {value!r}"
        )
    if callable(value):
        count = jax.ShapeDtypeStruct((), jnp.int32)
        result = jax.eval_shape(lambda n: jnp.asarray(value(n), bool), count)
        if result.shape:
            raise ValueError(
                f"{name} must return a scalar, but {value!r} returns an array of "
                f"{result.shape}"
            )


def check_float_dtype(name: str, value: Any) -> None:
    """Raises unless ``value`` is a floating-point dtype or None."""
    if value is None:
        return
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "a dtype", value))
    try:
        floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(
            f"{name} must be a floating-point dtype or None, got {value!r}"
        )


def check_accumulator_dtype(value: Any) -> None:
    """Raises unless ``value`` is float32, a wider floating-point dtype, or None."""
    check_float_dtype("accumulator_dtype", value)
    if value is not None and jnp.dtype(value).itemsize < 4:
        raise ValueError(
            f"accumulator_dtype must be float32 or wider, got {value!r}: sums over an "
            f"epoch lose small gradients in a dtype of 8 or 11 significant bits"
        )


def check_coefficients(coefficients: object) -> np.ndarray:
    """Returns coefficients as a float64 array; raises unless they sum to 1."""
    try:
        c = np.asarray(coefficients, np.float64)
    except (TypeError, ValueError):
        c = np.empty(0)
    if c.ndim != 1 or c.size < 2:
        raise ValueError(
            f"coefficients must be at least two numbers c_0, ..., c_k, "
            f"got {coefficients!r}"
        )
    if not np.isfinite(c).all():
        raise ValueError(f"coefficients must be finite, got {c.tolist()}")
    # The tolerance allows coefficients that were computed in float32.
    if not abs(c.sum() - 1) <= 1e-6 * max(1.0, np.abs(c).sum()):
        raise ValueError(
            f"coefficients must sum to 1, got {c.tolist()} (sum {c.sum()})"
        )
    return c


def check_period(period: Any, k: int) -> None:
    """Raises unless ``period`` is an int that holds the ``k`` steps of a window."""
    check_int("period", period, low=1)
    if period < k:
        raise ValueError(
            f"period must be at least {k}, the steps that the window spans, "
            f"got {period!r}"
        )


def check_unstacked(scalar: Any) -> None:
    """Raises for a scalar of a state that has become an array."""
    if jnp.ndim(scalar):
        raise ValueError(
            f"the state is of several members, {jnp.shape(scalar)}, as under vmap or "
            f"pmap: take one of them, or read it inside of jax.vmap"
        )


def only_state(state: Any, kind: type[State]) -> State:
    """The one state of this kind inside a state; raises unless there is one."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    found = [leaf for leaf in leaves if isinstance(leaf, kind)]
    if len(found) != 1:
        raise ValueError(
            f"the state must contain one {kind.__name__}, and contains {len(found)}"
        )
    return found[0]


def _static_argument(name: str, kind: str, value: jax.Array) -> str:
    return (
        f"{name} must be {kind}, got a jax array ({value!r}). Under "
        f"optax.inject_hyperparams, which turns numbers, functions and dtypes into "
        f"arrays, name {name!r} in static_args."
    )
