"""Arithmetic on trees of arrays, in float32 at least."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AxisName = str | tuple[str, ...]


def is_complex(x: Any) -> bool:
    """Whether an array, or a dtype, is complex."""
    return jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)


def widened(x: Any) -> Any:
    """The dtype of an array, or a dtype, in float32 at least."""
    dtype = jnp.result_type(x)
    if jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32:
        return dtype
    return jnp.dtype(jnp.float32)


def arrays(tree: Any) -> Any:
    """The same tree of jax arrays; a restored state has NumPy's."""
    return jax.tree.map(jnp.asarray, tree)


def zeros(params: Any, accumulator_dtype: Any = None) -> Any:
    """Zeros like the parameters; real ones in ``accumulator_dtype``, if it is given."""

    def like(p: Any) -> jax.Array:
        own = jnp.result_type(p)
        wanted = jnp.issubdtype(own, jnp.floating) and accumulator_dtype
        return jnp.zeros_like(p, wanted or own)

    return jax.tree.map(like, params)


def combine(*terms: tuple[jax.typing.ArrayLike, Any], like: Any = None) -> Any:
    """The linear combination ``weight * tree + ...`` of terms ``(weight, tree)``.

    It is computed in the widest dtype among the trees, float32 at least, and rounded
    once, to the dtypes of ``like``, if that is given.
    """
    weights, trees = zip(*terms, strict=True)

    def of_leaves(*leaves: jax.typing.ArrayLike) -> jax.Array:
        # NumPy's rules serve under jax_numpy_dtype_promotion="strict" too.
        dtype = functools.reduce(np.promote_types, map(widened, leaves))
        products = (
            jnp.asarray(weight, dtype) * jnp.asarray(x).astype(dtype)
            for weight, x in zip(weights, leaves, strict=True)
        )
        return functools.reduce(operator.add, products)

    total = jax.tree.map(of_leaves, *trees)
    return total if like is None else jax.tree.map(_cast, total, like)


def select(here: jax.Array, new: Any, old: Any) -> Any:
    """``new`` where the scalar ``here`` is true, else ``old``, whose dtypes it keeps.

    A selection and not a product with 0 or 1, which a NaN would pass.
    """
    return jax.tree.map(lambda x, y: jnp.where(here, _cast(x, y), y), new, old)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """An array times a factor, in its own dtype."""
    dtype = widened(x)
    return (x.astype(dtype) * factor.astype(dtype)).astype(x.dtype)


def _cast(x: jax.typing.ArrayLike, like: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(x).astype(jnp.result_type(like))
