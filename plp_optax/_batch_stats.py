"""Running statistics of batch normalisation, computed again (precise batch norm)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def recompute(
    follow: Callable[[Any, Any], Any], stats: Any, batches: Iterable[Any]
) -> Any:
    """Means and variances over all examples, by layer.

    Args:
      follow: Maps running statistics and a batch to those after it: an exponential
        average with any decay.
      stats: Nested dicts that end in ``mean`` and ``var``, of the shapes and dtypes.
      batches: Batches, whose arrays have the examples along their first axis.

    Raises:
      ValueError: If there is no batch, statistics have other names, or they do not
        follow the batches.
    """
    zeros, ones = (jax.tree.map(f, stats) for f in (jnp.zeros_like, jnp.ones_like))
    jax.eval_shape(to_moments, zeros)  # raises for other names
    parts, total, count = None, None, 0
    for batch in batches:
        after = follow(zeros, batch)
        if parts is None:
            # From 0 and from 1 an average r <- m r + (1 - m) b gives m, and so b.
            parts = jax.tree.map(_part, after, follow(ones, batch))
        size = len(jax.tree.leaves(batch)[0])
        # In float64: the square of a large mean would take a small variance's digits.
        own = jax.tree.map(lambda x, y: np.asarray(x, np.float64) / y, after, parts)
        weighted = jax.tree.map(lambda x, size=size: size * x, to_moments(own))
        total = weighted if total is None else jax.tree.map(np.add, total, weighted)
        count += size
    if total is None:
        raise ValueError("there are no batches to compute statistics from")
    means = from_moments(jax.tree.map(lambda x: x / count, total))
    # In the containers of stats, such as a FrozenDict.
    leaves, structure = jax.tree.flatten(stats)
    fresh = zip(jax.tree.leaves(means), leaves, strict=True)
    return jax.tree.unflatten(
        structure, [jnp.asarray(new, old.dtype) for new, old in fresh]
    )


def _part(from_zero: Any, from_one: Any) -> float:
    """1 - m. The median, as rounding is relative to each channel's statistics."""
    kept = np.asarray(from_one, np.float64) - np.asarray(from_zero, np.float64)
    part = float(1 - np.median(kept))
    if not part > 0:
        raise ValueError(
            "batch statistics do not change: call the model in training mode"
        )
    return part


def to_moments(stats: Any) -> Any:
    """Variances become mean squares, which can be averaged over batches.

    Raises:
      ValueError: If statistics have other names than ``mean`` and ``var``.
    """
    return _by_layer(stats, lambda mean, var: var + mean**2)


def from_moments(moments: Any) -> Any:
    """The inverse of :func:`to_moments`."""
    return _by_layer(moments, lambda mean, square: (square - mean**2).clip(0))


def _by_layer(tree: Any, make_var: Callable[[Any, Any], Any]) -> Any:
    if not isinstance(tree, Mapping):
        raise ValueError("batch statistics must be in dicts that end in mean and var")
    if set(tree) == {"mean", "var"}:
        return {"mean": tree["mean"], "var": make_var(tree["mean"], tree["var"])}
    return {name: _by_layer(branch, make_var) for name, branch in tree.items()}
