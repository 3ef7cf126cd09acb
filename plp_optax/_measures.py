"""How consistently a layer's gradients point one way."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

Measure = Literal["g1", "g1_per_weight", "g2"]
MEASURES = ("g1", "g1_per_weight", "g2")


def init_sums(
    measure: Measure,
    params: Any,
    layers: int,
    dtype: jax.typing.DTypeLike | None,
) -> tuple[Any, Any]:
    """Zeros for sum_i g and sum_i |g|: per weight, or per layer where that will do."""

    def per_weight() -> Any:
        return jax.tree.map(lambda p: jnp.zeros_like(p, _sum_dtype(p, dtype)), params)

    def per_layer() -> jax.Array:
        return jnp.zeros(layers)

    return (
        per_layer() if measure == "g1" else per_weight(),
        per_weight() if measure == "g2" else per_layer(),
    )


def add_to_sums(
    measure: Measure,
    gradients: Any,
    index: Sequence[int | None],
    sums: tuple[Any, Any],
    *,
    begins: jax.Array,
    collects: jax.Array,
) -> tuple[Any, Any]:
    """Adds a step's gradients to sum_i g and sum_i |g|.

    Args:
      measure: Which sums are kept per weight.
      gradients: The step's gradients.
      index: The layer of each leaf.
      sums: Both sums so far.
      begins: Whether they begin anew with this step.
      collects: Whether this step counts; else the sums stay.
    """

    # Gates are selections, not products with 0 or 1: a NaN must not pass them.
    def add(total: jax.Array, value: jax.Array) -> jax.Array:
        value = value.astype(total.dtype)
        return jnp.where(collects, jnp.where(begins, value, total + value), total)

    def add_per_weight(total: Any, values: Any) -> Any:
        leaves, treedef = jax.tree.flatten(total)
        added = [
            t if i is None else add(t, v)
            for t, v, i in zip(leaves, jax.tree.leaves(values), index, strict=True)
        ]
        return jax.tree.unflatten(treedef, added)

    def add_per_layer(total: jax.Array, values: Any) -> jax.Array:
        return add(total, _sum_by_layer(jax.tree.leaves(values), index, total.size))

    signed, absolute = sums

    def magnitude(g: jax.Array, total: jax.Array) -> jax.Array:
        # Never quite 0, so that the ratio of the sums needs no guard: there the CPU
        # compiler would make parameter-sized temporaries of it.
        return jnp.maximum(jnp.abs(g).astype(total.dtype), _floor(total.dtype))

    if measure == "g2":
        magnitudes = jax.tree.map(magnitude, gradients, absolute)
    else:
        magnitudes = jax.tree.map(jnp.abs, gradients)
    return (
        (add_per_layer if measure == "g1" else add_per_weight)(signed, gradients),
        (add_per_weight if measure == "g2" else add_per_layer)(absolute, magnitudes),
    )


def layer_scores(
    measure: Measure,
    signed: Any,
    absolute: Any,
    index: Sequence[int | None],
    layers: int,
) -> jax.Array:
    """The measure of each layer, from its sums; ``[layers]``, in [0, 1]."""
    if measure == "g1":
        scores = _ratio(jnp.abs(signed), absolute)
    elif measure == "g1_per_weight":
        magnitudes = [jnp.abs(s) for s in jax.tree.leaves(signed)]
        scores = _ratio(_sum_by_layer(magnitudes, index, layers), absolute)
    else:
        ratios = [
            jnp.abs(s) / a  # NaN before the first analysis, which nobody reads
            for s, a in zip(
                jax.tree.leaves(signed), jax.tree.leaves(absolute), strict=True
            )
        ]
        weights = [0] * layers
        for r, i in zip(ratios, index, strict=True):
            if i is not None:
                weights[i] += r.size
        totals = _sum_by_layer(ratios, index, layers)
        scores = _ratio(totals, jnp.asarray(weights, totals.dtype))
    return jnp.minimum(scores, 1)  # sums may round past each other


def _sum_by_layer(
    leaves: Sequence[jax.Array], index: Sequence[int | None], layers: int
) -> jax.Array:
    parts: list[list[jax.Array]] = [[] for _ in range(layers)]
    for leaf, i in zip(leaves, index, strict=True):
        if i is not None:
            parts[i].append(leaf.sum(dtype=_sum_dtype(leaf, None)).astype(float))
    return jnp.stack([sum(p) for p in parts]) if parts else jnp.zeros(0)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    # 0/0 counts as 0, since numerators never exceed their denominators. NaN stays NaN,
    # so that nothing is selected by it.
    return numerator / jnp.maximum(denominator, jnp.finfo(denominator.dtype).tiny)


def _floor(dtype: Any) -> Any:
    """What counts as 0: float32 loses its subnormals, float16 cannot do without."""
    info = jnp.finfo(dtype)
    return info.smallest_subnormal if dtype == jnp.float16 else info.tiny


def _sum_dtype(x: Any, dtype: jax.typing.DTypeLike | None) -> Any:
    return dtype or jnp.promote_types(jnp.result_type(x), jnp.float32)
