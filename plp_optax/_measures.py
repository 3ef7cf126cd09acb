"""Measures: how consistently a layer's gradients point one way.

``places`` says which layers each leaf of a tree counts for, where None, for a gradient
that does not exist, has a position too.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plp_optax._layers import Place
from plp_optax._trees import is_complex, scale, widened

Measure = Literal["g1", "g1_per_weight", "g2"]
MEASURES = ("g1", "g1_per_weight", "g2")
Leaves = list[Any]

_TINY = float(np.finfo(np.float32).tiny)


class Sums(NamedTuple):
    """Sums over iterations, for L layers.

    Attributes:
      signed: Sums of gradients: one ``[L]`` for ``"g1"``, else like the parameters.
      absolute: Sums of absolute gradients: like the parameters for ``"g2"``, else one
        ``[L]``.
      counted: How many gradients of each layer they hold, or the sum of their weights;
        ``[L]``.
    """

    signed: Any
    absolute: Any
    counted: jax.Array


def init_sums(
    measure: Measure,
    params: Any,
    layers: int,
    dtype: jax.typing.DTypeLike | None,
    counted: jax.typing.DTypeLike = jnp.int32,
) -> Sums:
    """Zeros, as trees: per weight, or per layer where that is enough."""

    def absolute(p: Any) -> jax.Array:
        own = jnp.finfo(jnp.result_type(p)).dtype if is_complex(p) else widened(p)
        return jnp.zeros_like(p, dtype or own)

    def signed(p: Any) -> jax.Array:
        zeros = absolute(p)
        return jax.lax.complex(zeros, zeros) if is_complex(p) else zeros

    def per_layer(kind: Any) -> jax.Array:
        return jnp.zeros(layers, kind)

    return Sums(
        per_layer(_layer_dtype(jax.tree.leaves(params)))
        if measure == "g1"
        else jax.tree.map(signed, params),
        jax.tree.map(absolute, params) if measure == "g2" else per_layer(float),
        jnp.zeros(layers, counted),
    )


def finite_layers(
    measure: Measure,
    gradients: Any,
    places: Sequence[Place | None],
    layers: int,
    axis_name: Any = None,
) -> jax.Array:
    """Which layers have a gradient whose entries are all finite; bool ``[L]``."""
    leaves = tree_leaves(gradients)
    # "g2" takes the plain sum: magnitudes that are used twice would be stored.
    values = leaves if measure == "g2" else _each(jnp.abs, leaves)
    total = sum_by_layer(values, places, layers, axis_name)
    exists = weights_by_layer(leaves, places, layers) > 0
    return jnp.isfinite(total) & jnp.asarray(exists)


def add_to_sums(
    measure: Measure,
    gradients: Any,
    places: Sequence[Place | None],
    sums: Sums,
    *,
    begins: jax.Array,
    counts: jax.Array,
    decay: float | jax.Array | None = None,
    axis_name: Any = None,
) -> Sums:
    """Adds a step's gradients.

    Args:
      measure: Which sums are kept per weight.
      gradients: The step's gradients.
      places: Where each of them counts.
      sums: The sums so far.
      begins: Whether the sums start again with this step; true for the first.
      counts: The layers whose gradients count, bool ``[L]``; the sums of others stay.
      decay: The factor of earlier gradients, for an exponential average.
      axis_name: Mapped axes over which each layer's parameters are split.
    """
    layers, leaves = sums.counted.size, tree_leaves(gradients)
    magnitudes = _each(jnp.abs, leaves)
    (starts,) = unstack(begins.reshape(1))
    by_layer = unstack(counts)

    # Gates are selections, not products with 0 or 1: a NaN must not pass them.
    def add(
        old: jax.Array, value: jax.Array, counts: jax.Array, start: Any = 0
    ) -> jax.Array:
        base = jnp.where(starts, jnp.full_like(old, start), old)
        kept = base if decay is None else jnp.asarray(decay, _real(old)) * base
        total = kept + value.astype(old.dtype)
        if start and decay is not None:
            # Without a gradient the decay would bring it to 0 in the end.
            total = jnp.maximum(total, start)
        return jnp.where(counts, total, base)

    def add_per_weight(old: Any, values: Leaves, start: Any = 0) -> Any:
        total = [
            o
            if p is None or v is None
            else add(o, v, entries(counts, by_layer, p, v.ndim), start)
            for o, v, p in zip(tree_leaves(old), values, places, strict=True)
        ]
        return with_leaves(old, total)

    if measure == "g1":
        total = sum_by_layer(leaves, places, layers, axis_name)
        signed = add(sums.signed, total, counts)
    else:
        signed = add_per_weight(sums.signed, leaves)
    if measure == "g2":
        # Never quite 0, so that the ratio of the sums needs no guard, for which the
        # CPU compiler would store a copy.
        absolute = add_per_weight(sums.absolute, magnitudes, _TINY)
    else:
        total = sum_by_layer(magnitudes, places, layers, axis_name)
        absolute = add(sums.absolute, total, counts)
    counted = add(sums.counted, jnp.ones_like(sums.counted), counts)
    return Sums(signed, absolute, counted)


def layer_scores(
    measure: Measure,
    sums: Sums,
    places: Sequence[Place | None],
    axis_name: Any = None,
) -> jax.Array:
    """The measure of each layer, from its sums; ``[L]``, in [0, 1]."""
    layers = sums.counted.size
    if measure == "g1":
        # The paper's equation 4.
        scores = _ratio(jnp.abs(sums.signed), sums.absolute)
    elif measure == "g1_per_weight":
        moved = _each(jnp.abs, tree_leaves(sums.signed))
        scores = _ratio(sum_by_layer(moved, places, layers, axis_name), sums.absolute)
    else:
        absolute = tree_leaves(sums.absolute)
        ratios = [
            None if s is None else jnp.abs(s) / a
            for s, a in zip(tree_leaves(sums.signed), absolute, strict=True)
        ]
        # The mean over weights that have had a gradient: those of a tap that only sees
        # padding, or of a unit that is dead, say nothing about consistency. Their sums
        # are still _TINY, so that this ratio is 1, and about 0 for all others.
        without = _each(lambda a: _TINY / a, absolute)
        weights = jnp.asarray(weights_by_layer(ratios, places, layers), float)
        if axis_name is not None:
            weights = jax.lax.psum(weights, axis_name)
        weights -= sum_by_layer(without, places, layers, axis_name)
        scores = _ratio(sum_by_layer(ratios, places, layers, axis_name), weights)
    return jnp.minimum(scores, 1)  # sums may round past each other


def standardize(scores: jax.Array, counts: jax.Array) -> jax.Array:
    """Scores ``[L]`` less their mean, over their population standard deviation.

    Layers that do not count (bool ``[L]``) take no part and get 0.

    Equal scores get 0: rounding leaves them a deviation of about 1e-8, also where
    sums cancel to a score of 0, which would make every z-score about 1. Scores are in
    [0, 1], so the tolerance is absolute.
    """
    number = jnp.maximum(counts.sum(dtype=scores.dtype), 1)
    mean = jnp.where(counts, scores, 0).sum() / number
    centered = jnp.where(counts, scores - mean, 0)
    std = jnp.sqrt((centered * centered).sum() / number)
    equal = std <= 1e-6
    return jnp.where(equal, 0, centered / jnp.where(equal, 1, std))


def unstack(values: jax.Array) -> list[jax.Array]:
    """The entries of ``[L]`` as separate scalars.

    Were they slices, the compiler would fuse each with what uses it, and compile as
    many different loops as there are parameters: 3.2 s for 200, and 0.3 s for the few
    loops that differ in shape. So they are the results of reductions, 64 at a time,
    over a second axis of an entry and a zero.
    """
    if values.dtype == bool:
        return [x > 0 for x in unstack(values.astype(jnp.int32))]
    pairs = jnp.stack([values, jnp.zeros_like(values)])
    scalars = []
    for i in range(0, values.size, 64):
        columns = tuple(pairs[:, j] for j in range(i, min(i + 64, values.size)))
        scalars += jax.lax.reduce(
            columns,
            tuple(jnp.zeros((), values.dtype) for _ in columns),
            _add,
            (0,),
        )
    return scalars


def entries(
    values: jax.Array, by_layer: list[jax.Array], place: Place, ndim: int
) -> jax.Array:
    """A leaf's entries of ``[L]``, to be broadcast against the leaf.

    Args:
      values: All entries.
      by_layer: The same from :func:`unstack`.
      place: Where the leaf counts.
      ndim: The leaf's number of dimensions.
    """
    if place.axis is None:
        return by_layer[place.start]
    shape = [1] * ndim
    shape[place.axis] = place.size
    return values[place.start : place.start + place.size].reshape(shape)


def weights_by_layer(
    leaves: Leaves, places: Sequence[Place | None], layers: int
) -> np.ndarray:
    """How many weights each layer has; ``[L]``."""
    weights = np.zeros(layers, np.int64)
    for leaf, place in zip(leaves, places, strict=True):
        if leaf is not None and place is not None:
            weights[place.start : place.start + place.size] += leaf.size // place.size
    return weights


def sum_by_layer(
    leaves: Leaves,
    places: Sequence[Place | None],
    layers: int,
    axis_name: Any = None,
) -> jax.Array:
    """The sum over each layer's weights; ``[L]``."""
    dtype = _layer_dtype([x for x in leaves if x is not None])
    totals: dict[int, jax.Array] = {}  # of the layers from this one on
    for leaf, place in zip(leaves, places, strict=True):
        if leaf is not None and place is not None:
            # [1], or one sum for each slice of a stacked leaf.
            axes = [a for a in range(leaf.ndim) if a != place.axis]
            total = leaf.sum(axes, dtype=widened(leaf)).astype(dtype).reshape(-1)
            before = totals.get(place.start)
            totals[place.start] = total if before is None else before + total
    if not totals:
        return jnp.zeros(layers, dtype)
    # Layers without gradients have no entry: their places stay 0.
    end, parts = 0, []
    for start in sorted(totals):
        parts += [jnp.zeros(start - end, dtype), totals[start]]
        end = start + totals[start].size
    parts.append(jnp.zeros(layers - end, dtype))
    sums = jnp.concatenate(parts)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def scale_layers(
    updates: Any, factors: jax.Array, places: Sequence[Place | None]
) -> Any:
    """Updates times the factor of their layer, ``[L]``."""
    by_layer = unstack(factors)
    scaled = [
        u
        if u is None or place is None
        else scale(u, entries(factors, by_layer, place, u.ndim))
        for u, place in zip(tree_leaves(updates), places, strict=True)
    ]
    return with_leaves(updates, scaled)


def tree_leaves(tree: Any) -> Leaves:
    """Leaves as :func:`assign_layers` counts them, with those that are None."""
    return jax.tree.leaves(tree, is_leaf=lambda x: x is None)


def with_leaves(tree: Any, leaves: Leaves) -> Any:
    """The tree with other leaves."""
    treedef = jax.tree.structure(tree, is_leaf=lambda x: x is None)
    return jax.tree.unflatten(treedef, leaves)


def check_layers_of_state(names: Sequence[str], layers: int) -> None:
    """Raises if ``update`` finds other layers than ``init``."""
    if len(names) != layers:
        raise ValueError(
            f"update finds {len(names)} layers, and init found {layers}: if gradients "
            f"are None, pass the parameters, as in tx.update(grads, state, params)"
        )


def _add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> Any:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _each(function: Callable[[jax.Array], jax.Array], leaves: Leaves) -> Leaves:
    return [None if x is None else function(x) for x in leaves]


def _real(x: jax.Array) -> Any:
    return jnp.finfo(x.dtype).dtype if is_complex(x) else x.dtype


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    # 0/0 counts as 0, since numerators never exceed their denominators.
    return numerator / jnp.maximum(denominator, _TINY)


def _layer_dtype(leaves: Leaves) -> Any:
    return complex if any(map(is_complex, leaves)) else float
