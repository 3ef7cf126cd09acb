"""Running statistics of averaged parameters, for Flax nnx modules.

``plp_optax.nnx`` is imported at its first use. It needs flax, the extra ``[flax]``.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from plp_optax import _batch_stats


def _call(model: Any, batch: Any) -> Any:
    return model(batch)


def recompute_batch_stats(
    model: nnx.Module,
    batches: Iterable[Any],
    apply: Callable[[Any, Any], Any] = _call,
) -> None:
    """Sets a model's batch statistics to those of its parameters, over some batches.

    Batch normalisation's running statistics lag behind the parameters, and averaged
    parameters have none (precise batch norm, Wu and Johnson 2021). These are exact over
    the batches given, and do not depend on the statistics before. Call it before each
    evaluation, and for both sides of a comparison.

    Args:
      model: The model, in training mode (``model.train()``). Its ``nnx.BatchStat``
        variables are replaced; parameters are unchanged.
      batches: Batches of training examples; 20 of them are enough as a rule. Arrays
        have the examples along their first axis.
      apply: Calls the model on a batch. It is compiled once for each function: define
        it outside of the loop.

    Raises:
      ValueError: If there is no batch, statistics have other names than ``mean`` and
        ``var``, or the model is not in training mode.

    Examples:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
      >>> recompute_batch_stats(model, [jnp.array([[1.0], [2.0]]), jnp.array([[6.0]])])
      >>> f"{model.mean[0]:.3f} {model.var[0]:.3f}"
      '3.000 4.667'

    References:
      Wu and Johnson, `Rethinking "Batch" in BatchNorm
      <https://arxiv.org/abs/2105.07576>`_, 2021
    """
    graph, stats, *rest = nnx.split(model, nnx.BatchStat, ...)
    follow = functools.partial(_follow, graph, apply, stats, rest)
    fresh = _batch_stats.recompute(follow, nnx.to_pure_dict(stats), batches)
    nnx.replace_by_pure_dict(stats, fresh)
    nnx.update(model, stats)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _follow(
    graph: Any,
    apply: Callable[[Any, Any], Any],
    stats: Any,
    rest: Any,
    pure: Any,
    batch: Any,
) -> Any:
    """The statistics after a batch; ``stats`` gives ``pure`` ones their containers."""
    nnx.replace_by_pure_dict(stats, pure)
    model = nnx.merge(graph, stats, *rest)
    apply(model, batch)
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
