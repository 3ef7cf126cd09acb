"""Dtypes that sums and products are computed in."""

from typing import Any

import jax
import jax.numpy as jnp


def is_complex(x: Any) -> bool:
    """Whether an array, or a dtype, is complex."""
    return jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)


def widened(x: Any) -> Any:
    """The dtype of an array, or a dtype, in float32 at least.

    Unlike ``jnp.promote_types`` it also serves under
    ``jax_numpy_dtype_promotion="strict"``.
    """
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32:
        return dtype
    return jnp.dtype(jnp.float32)


def zeros(params: Any, accumulator_dtype: Any = None) -> Any:
    """Zeros like the parameters; real ones in ``accumulator_dtype``, if it is given."""

    def like(p: Any) -> jax.Array:
        own = jnp.result_type(p)
        wanted = jnp.issubdtype(own, jnp.floating) and accumulator_dtype
        return jnp.zeros_like(p, wanted or own)

    return jax.tree.map(like, params)
