"""The propagated form of amplification, for Flax linen modules.

Multiplying a layer's gradient (:func:`plp_optax.amplify_layers`) changes that layer
alone. Here the cotangent of the layer's output is multiplied inside back-propagation,
so that the layers before it are amplified too, and several factors compound.

Imported by itself, ``import plp_optax.linen``: it needs flax, the extra ``[flax]``.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def amplify_cotangent(x: Any, factor: jax.typing.ArrayLike) -> Any:
    """The identity on ``x``, whose cotangent is multiplied by ``factor``.

    Args:
      x: A tree of arrays.
      factor: A scalar; no gradient flows to it.

    Returns:
      ``x``.

    Examples:
      >>> import jax
      >>> float(jax.grad(lambda x: amplify_cotangent(x, 3.0) ** 2)(1.0))
      6.0
    """
    del factor
    return x


def _forward(x: Any, factor: jax.typing.ArrayLike) -> tuple[Any, jax.Array]:
    return x, jnp.asarray(factor)


def _backward(factor: jax.typing.ArrayLike, cotangent: Any) -> tuple[Any, jax.Array]:
    factor = jnp.asarray(factor)  # a number again under rematerialisation

    def scale(c: jax.Array) -> jax.Array:
        if c.dtype == jax.dtypes.float0:  # of an integer output
            return c
        wide = jnp.promote_types(c.dtype, factor.dtype)
        return (c.astype(wide) * factor.astype(wide)).astype(c.dtype)

    return jax.tree.map(scale, cotangent), jnp.zeros_like(factor)


amplify_cotangent.defvjp(_forward, _backward)


@contextlib.contextmanager
def propagate_amplification(
    factors: Mapping[str, jax.typing.ArrayLike],
) -> Iterator[None]:
    """Within it, linen modules amplify the cotangents of their outputs.

    The models are not edited: calls of modules are intercepted while a loss is traced.
    The factors may be traced values, so that they change without compiling again::

        tx = optax.chain(amplify_layers(strategy, apply=False), optax.sgd(0.1))
        names = plp_optax.layer_names(params)

        def loss_fn(params):
            factors = optax.tree.get(opt_state, "factors")
            with propagate_amplification(dict(zip(names, factors))):
                logits = module.apply({"params": params}, images)
            ...

    Args:
      factors: A factor for the output of each named module. The names are the
        modules' paths, such as ``stage1/block0/conv1``, which
        :func:`plp_optax.layer_names` gives. Other modules keep their cotangents.

    Yields:
      Nothing.
    """
    seen = set()

    def interceptor(
        call: Any,
        args: tuple,
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        output = call(*args, **kwargs)
        name = "/".join(context.module.path) or "."
        if context.method_name != "__call__" or name not in factors:
            return output
        seen.add(name)
        return amplify_cotangent(output, factors[name])

    with nn.intercept_methods(interceptor):
        yield
    if missing := sorted(set(factors) - seen):
        raise ValueError(
            f"no module was called under the names {', '.join(missing)}: factors are "
            f"named by the paths of linen modules"
        )
