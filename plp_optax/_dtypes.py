"""Dtypes that sums and products are computed in."""

from typing import Any

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
