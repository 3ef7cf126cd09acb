"""Arithmetic on trees of arrays, in float32 at least."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

AxisName = str | tuple[str, ...]


def wide_count(count: jax.Array) -> jax.Array:
    """A step count that schedules read: from int32 they would compute in float32."""
    return count.astype(int)


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


def rounded(updates: Any) -> Any:
    """The same tree of jax arrays, those of half precision rounded to their dtype.

    A compiler computes them wider. Where an offset follows updates that are passed on,
    the parameters would take others.
    """

    def one(u: Any) -> jax.Array:
        u = jnp.asarray(u)
        if u.dtype not in (jnp.bfloat16, jnp.float16):
            return u
        info = jnp.finfo(u.dtype)
        return jax.lax.reduce_precision(u, info.nexp, info.nmant)

    return jax.tree.map(one, updates)


def zeros(params: Any, accumulator_dtype: Any = None, *, wide: bool = False) -> Any:
    """Zeros like the parameters; real ones in ``accumulator_dtype``, if it is given.

    ``wide`` ones are in float32 at least, where increments are small.
    """

    def like(p: Any) -> jax.Array:
        own = widened(p) if wide else jnp.result_type(p)
        wanted = jnp.issubdtype(own, jnp.floating) and accumulator_dtype
        return jnp.zeros_like(p, wanted or own)

    return jax.tree.map(like, params)


def movement(updates: Any, params: Any | None, *, of_wide: bool = True) -> Any:
    """The change of the parameters by ``optax.apply_updates``, after rounding.

    The compiler keeps a copy of the parameters for it. Without ``of_wide`` those of
    float32 and wider are taken to follow their updates.

    Raises:
      ValueError: If updates are in half precision and there are no parameters.
    """
    if params is None:
        if any(
            u.dtype in (jnp.bfloat16, jnp.float16) for u in jax.tree.leaves(updates)
        ):
            raise ValueError(
                "in half precision parameters round and do not follow their updates: "
                "pass them, as in update(updates, state, params)"
            )
        return updates

    def moved(u: jax.Array, p: Any) -> jax.Array:
        own = jnp.result_type(p)
        is_wide = widened(own) == own
        if not jnp.issubdtype(own, jnp.floating) or (is_wide and not of_wide):
            return u
        dtype, info = np.promote_types(widened(own), widened(u)), jnp.finfo(own)
        p = jnp.asarray(p).astype(dtype)
        # A cast to the parameters' dtype and back is removed by XLA.
        after = jax.lax.reduce_precision(p + u.astype(dtype), info.nexp, info.nmant)
        return after - p

    return jax.tree.map(moved, updates, params)


def fall_back(offset: Any, update: Any, rho: jax.typing.ArrayLike) -> Any:
    """How far an average falls back behind what it averages: u + rho (o - u).

    The average's ``offset`` o from a point that moves by u, and that it then follows
    with the weight rho, becomes (1 - rho) (o - u), which is o minus this. In that form
    a small rho would be lost to rounding, always in the same direction.
    """
    return combine((1 - rho, update), (rho, offset))


def map_params(fn: Callable[..., Any], params: Any, tree: Any, *more: Any) -> Any:
    """``fn`` of each parameter and the leaves of the trees that belong to it.

    Parameters that the trees mask (``optax.MaskedNode``) stay as they are, in buffers
    of their own. Trees whose containers differ, such as the states of an
    ``nnx.Optimizer`` and of its model, or a restored tree of dicts, are paired by the
    names on the paths to their leaves.

    Raises:
      ValueError: If the trees do not belong together.
    """

    def one(path: _Path, p: Any, *xs: Any) -> Any:
        if any(map(_is_masked, xs)):
            return own_copy(p)
        for x in xs:
            if jnp.shape(x) != jnp.shape(p):
                raise ValueError(
                    f"the state is of other parameters: shape {jnp.shape(x)} there, "
                    f"{jnp.shape(p)} here, at {'/'.join(path) or 'the root'}"
                )
        return fn(p, *xs)

    paths, leaves, structure = _by_path(params)
    columns = [_like(paths, x) for x in (tree, *more)]
    return jax.tree.unflatten(structure, map(one, paths, leaves, *columns))


def own_copy(x: Any) -> Any:
    """An array that lives on if the one that is given is donated."""
    return jnp.copy(x) if isinstance(x, jax.Array) else x


_Path = tuple[str, ...]
_VALUE = jax.tree_util.GetAttrKey("value")


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _by_path(tree: Any) -> tuple[list[_Path], list[Any], Any]:
    """The names on the paths to the leaves, the leaves, and the structure."""
    found, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
    return [_names(path) for path, _ in found], [leaf for _, leaf in found], structure


def _names(path: Sequence[Any]) -> _Path:
    # A variable of nnx is a node around its array, which a tree of arrays lacks.
    *outer, last = path or (_VALUE,)
    keys = outer if last == _VALUE else path
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _like(paths: Sequence[_Path], tree: Any) -> list[Any]:
    """The leaves of a tree in the order of paths; one mask for all paths below it."""
    own_paths, leaves, _ = _by_path(tree)
    by_path = dict(zip(own_paths, leaves, strict=True))
    masked = {path for path, leaf in by_path.items() if _is_masked(leaf)}

    def place(path: _Path) -> _Path:
        above = (path[:n] for n in range(len(path) + 1))
        return next((p for p in above if p in masked), path)

    places = [place(path) for path in paths]
    missing = [path for path in places if path not in by_path]
    known = {*places, *masked}
    more = [path for path in own_paths if path not in known]
    for unknown, whose in ((missing, "the state does"), (more, "the parameters do")):
        if unknown:
            name = "/".join(unknown[0]) or "an array"
            raise ValueError(
                f"the state is of other parameters: {whose} not have {name}"
            )
    return [by_path[path] for path in places]


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

    A selection and not a product with 0 or 1, which a NaN would pass, nor a
    ``lax.cond``, for which XLA copies the trees and takes 6 to 30 times as long.
    """
    return jax.tree.map(lambda x, y: jnp.where(here, _cast(x, y), y), new, old)


def scale(x: jax.Array, factor: jax.Array) -> jax.Array:
    """An array times a factor, in its own dtype."""
    dtype = widened(x)
    return (x.astype(dtype) * factor.astype(dtype)).astype(x.dtype)


def _cast(x: jax.typing.ArrayLike, like: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(x).astype(jnp.result_type(like))
