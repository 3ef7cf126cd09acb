"""How consistently a layer's gradients point one way.

Trees come as lists of leaves in which None, for a gradient that does not exist, has a
position too. ``places`` says which layers each leaf counts for.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plp_optax._dtypes import is_complex, widened
from plp_optax._layers import Place

Measure = Literal["g1", "g1_per_weight", "g2"]
MEASURES = ("g1", "g1_per_weight", "g2")
Leaves = list[Any]


class Sums(NamedTuple):
    """Sums over the iterations of an analysis epoch, for L layers.

    Attributes:
      signed: Of gradients: ``[L]`` for ``"g1"``, else leaves like the parameters.
      absolute: Of absolute gradients: leaves like the parameters for ``"g2"``, else
        ``[L]``.
    """

    signed: Any
    absolute: Any


def init_sums(
    measure: Measure,
    params: Any,
    layers: int,
    dtype: jax.typing.DTypeLike | None,
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
    )


def add_to_sums(
    measure: Measure,
    gradients: Leaves,
    places: Sequence[Place | None],
    sums: Sums,
    layers: int,
    *,
    begins: jax.Array,
    collects: jax.Array,
    axis_name: Any = None,
) -> Sums:
    """Adds a step's gradients, except for entries that are not finite.

    Args:
      measure: Which sums are kept per weight.
      gradients: The step's gradients.
      places: Where each of them counts.
      sums: The sums so far.
      layers: L.
      begins: Whether the sums start from zero with this step.
      collects: Whether this step counts; else the sums stay.
      axis_name: Mapped axes over which each layer's parameters are split.
    """
    gates = unstack(jnp.stack([begins, collects]).astype(jnp.int32))
    begins, collects = gates[0] > 0, gates[1] > 0

    # One infinity, as loss scaling gives now and then, must not spoil an epoch. Gates
    # are selections, not products with 0 or 1, which a NaN would pass.
    def contribution(gradient: jax.Array) -> jax.Array:
        counts = jnp.isfinite(gradient) & collects
        return jnp.where(counts, gradient, jnp.zeros_like(gradient))

    def add(old: jax.Array, value: jax.Array) -> jax.Array:
        base = jnp.where(begins, jnp.zeros_like(old), old)
        return base + value.astype(old.dtype)

    def add_per_weight(old: Leaves, values: Leaves) -> Leaves:
        return [
            o if p is None or v is None else add(o, v)
            for o, v, p in zip(old, values, places, strict=True)
        ]

    def add_per_layer(old: jax.Array, values: Leaves) -> jax.Array:
        return add(old, sum_by_layer(values, places, layers, axis_name))

    values = _each(contribution, gradients)
    magnitudes = _each(jnp.abs, values)
    return Sums(
        (add_per_layer if measure == "g1" else add_per_weight)(sums.signed, values),
        (add_per_weight if measure == "g2" else add_per_layer)(
            sums.absolute, magnitudes
        ),
    )


def layer_scores(
    measure: Measure,
    sums: Sums,
    places: Sequence[Place | None],
    layers: int,
    axis_name: Any = None,
) -> jax.Array:
    """The measure of each layer, from its sums; ``[L]``, in [0, 1]."""
    if measure == "g1":
        scores = _ratio(jnp.abs(sums.signed), sums.absolute)
    elif measure == "g1_per_weight":
        totals = sum_by_layer(_each(jnp.abs, sums.signed), places, layers, axis_name)
        scores = _ratio(totals, sums.absolute)
    else:
        ratios = [
            None if s is None else _ratio(jnp.abs(s), a)
            for s, a in zip(sums.signed, sums.absolute, strict=True)
        ]
        weights = jnp.asarray(weights_by_layer(ratios, places, layers), float)
        if axis_name is not None:
            weights = jax.lax.psum(weights, axis_name)
        scores = _ratio(sum_by_layer(ratios, places, layers, axis_name), weights)
    return jnp.minimum(scores, 1)  # sums may round past each other


def standardize(scores: jax.Array, present: np.ndarray) -> jax.Array:
    """Scores ``[L]`` less their mean, over their population standard deviation.

    Layers that are not present (bool ``[L]``) take no part and get 0.

    Equal scores get 0: rounding leaves them a deviation of about 1e-8, also where
    sums cancel to a score of 0, which would make every z-score about 1. Scores are in
    [0, 1], so the tolerance is absolute.
    """
    number = jnp.asarray(max(int(present.sum()), 1), scores.dtype)
    mean = jnp.where(present, scores, 0).sum() / number
    centered = jnp.where(present, scores - mean, 0)
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
    pairs = jnp.stack([values, jnp.zeros_like(values)])
    entries = []
    for i in range(0, values.size, 64):
        columns = tuple(pairs[:, j] for j in range(i, min(i + 64, values.size)))
        entries += jax.lax.reduce(
            columns,
            tuple(jnp.zeros((), values.dtype) for _ in columns),
            _add,
            (0,),
        )
    return entries


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
            axes = [a for a in range(leaf.ndim) if a != place.axis]
            total = leaf.sum(axes, dtype=widened(leaf)).astype(dtype).reshape(-1)
            before = totals.get(place.start)
            totals[place.start] = total if before is None else before + total
    if not totals:
        return jnp.zeros(layers, dtype)
    # Layers without gradients have no entry: their places stay 0.
    end, entries = 0, []
    for start in sorted(totals):
        entries += [jnp.zeros(start - end, dtype), totals[start]]
        end = start + totals[start].size
    entries.append(jnp.zeros(layers - end, dtype))
    sums = jnp.concatenate(entries)
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def _add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> Any:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _each(function: Callable[[jax.Array], jax.Array], leaves: Leaves) -> Leaves:
    return [None if x is None else function(x) for x in leaves]


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    # 0/0 counts as 0, since numerators never exceed their denominators. An addition,
    # not a maximum, for which the CPU compiler would make parameter-sized temporaries.
    return numerator / (denominator + jnp.finfo(denominator.dtype).tiny)


def _layer_dtype(leaves: Leaves) -> Any:
    return complex if any(map(is_complex, leaves)) else float
