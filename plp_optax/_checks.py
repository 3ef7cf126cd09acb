"""Checks of arguments, made when a transformation is built."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_int(name: str, value: Any, *, at_least: int) -> None:
    """Raises unless ``value`` is a Python int of at least ``at_least``."""
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "an int", value))
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < at_least:
        raise ValueError(f"{name} must be an int of at least {at_least}, got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raises unless ``value`` is True or False."""
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "a bool", value))
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}"
        )


def check_finite(name: str, value: Any) -> None:
    """Raises unless ``value`` is a finite number or a scalar jax array.

    Values of jax arrays are not looked at: they may be tracers.
    """
    if isinstance(value, jax.Array):
        if value.shape:
            raise ValueError(f"{name} must be a scalar, got an array of {value.shape}")
        return
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError):
        finite = False
    if not finite or isinstance(value, bool):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_callable(name: str, value: object) -> None:
    """Raises unless ``value`` is a function or None."""
    if isinstance(value, jax.Array):
        raise ValueError(_static_argument(name, "a function", value))
    if value is not None and not callable(value):
        raise ValueError(
            f"{name} must be a function of the step count or None, got {value!r}"
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
    total = math.fsum(c)
    # Room for coefficients that were computed in float32.
    if not abs(total - 1) <= 1e-6 * max(1.0, np.abs(c).sum()):
        raise ValueError(f"coefficients must sum to 1, got {c.tolist()} (sum {total})")
    return c


def check_period(period: Any, k: int) -> None:
    """Raises unless ``period`` is an int that holds the ``k`` steps of a window."""
    check_int("period", period, at_least=1)
    if period < k:
        raise ValueError(
            f"period must be at least {k}, the steps that the window spans, "
            f"got {period!r}"
        )


def _static_argument(name: str, kind: str, value: jax.Array) -> str:
    return (
        f"{name} must be {kind}, got a jax array ({value!r}). Under "
        f"optax.inject_hyperparams, which turns numbers, functions and dtypes into "
        f"arrays, name {name!r} in static_args."
    )
