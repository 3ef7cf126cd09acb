"""For Flax linen modules: amplification inside back-propagation, batch statistics.

Multiplying a layer's gradient (:func:`plp_optax.amplify_layers`) changes that layer
alone. Here the cotangent of the layer's output is multiplied inside back-propagation,
so that the layers before it are amplified too, and several factors compound.

``plp_optax.linen`` is imported at its first use. It needs flax, the extra ``[flax]``.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plp_optax import _batch_stats
from plp_optax._trees import scale


@jax.custom_vjp
def amplify_cotangent(x: Any, factor: jax.typing.ArrayLike) -> Any:
    """The identity on ``x``, whose cotangent is multiplied by ``factor``.

    Its derivative is defined in reverse mode only (``jax.grad``, ``jax.vjp``,
    ``jax.jacrev``); forward mode (``jax.jvp``, ``jax.jacfwd``) raises a ``TypeError``.

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

    def amplified(c: jax.Array) -> jax.Array:
        # An integer output has a cotangent of float0, which has no products.
        return c if c.dtype == jax.dtypes.float0 else scale(c, factor)

    return jax.tree.map(amplified, cotangent), jnp.zeros_like(factor)


amplify_cotangent.defvjp(_forward, _backward)


@contextlib.contextmanager
def propagate_amplification(
    factors: Mapping[str, jax.typing.ArrayLike],
) -> Iterator[None]:
    """A context in which linen modules amplify the cotangents of their outputs.

    The models are not edited: calls of modules are intercepted while a loss is traced.
    So the context belongs **inside** the function that is compiled. Around a compiled
    function it does nothing if the function was traced before (an error, as no module
    is called), and stays in effect afterwards if it was first traced inside. Factors
    may be traced values; they then change without compiling again::

        tx = optax.chain(amplify_layers(strategy, apply=False), optax.sgd(0.1))
        names = plp_optax.layer_names(params)

        @jax.jit
        def step(params, opt_state, images, labels):
            factors = dict(zip(names, optax.tree.get(opt_state, "factors")))

            def loss_fn(params):
                with propagate_amplification(factors):
                    logits = module.apply({"params": params}, images)
                ...

    Modules under ``nn.jit`` are refused: its cache of traces ignores their names.
    ``nn.remat``, ``nn.scan`` and ``nn.vmap`` are fine, and a factor then serves all
    slices of a stacked module. Modules that return their parameters, as those inside
    ``nn.OptimizedLSTMCell`` do, are refused, too: ``nn.LSTMCell`` computes the same.

    A module that is used several times amplifies each use. So the lookup of a tied
    embedding, which lies before its ``attend``, is amplified twice.

    Args:
      factors: A factor for the output of each named module. The names are the
        modules' paths, such as ``stage1/block0/conv1``, which
        :func:`plp_optax.layer_names` gives. Other modules keep their cotangents.

    Yields:
      Nothing.

    Raises:
      ValueError: If no module is called under a name, a module is under ``nn.jit``,
        or one that is named returns its parameters.

    Examples:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> dense, x = nn.Dense(1, use_bias=False), jnp.ones((1, 2))
      >>> params = dense.init(jax.random.key(0), x)
      >>> @jax.jit
      ... def gradient(params, factor):
      ...     def loss(params):
      ...         with propagate_amplification({".": factor}):
      ...             return dense.apply(params, x).sum()
      ...
      ...     return jax.grad(loss)(params)["params"]["kernel"].ravel()
      >>> gradient(params, 1.0).tolist(), gradient(params, 3.0).tolist()
      ([1.0, 1.0], [3.0, 3.0])
    """
    seen = set()
    under_way: list[str] = []  # the modules of the calls that contain this one

    def interceptor(
        call: Any,
        args: tuple,
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        if _is_under_nn_jit(type(module)):
            raise ValueError(
                f"propagate_amplification cannot name modules under nn.jit, whose "
                f"traces are shared between modules of different names: use "
                f"{type(module).__name__} without nn.jit"
            )
        name = "/".join(module.path) or "."
        # A call counts once, whatever methods of its module it goes through. Besides
        # __call__ there are others that use the parameters, such as nn.Embed.attend.
        is_outermost = name not in under_way
        under_way.append(name)
        try:
            output = call(*args, **kwargs)
        finally:
            under_way.pop()
        is_output = context.method_name == "__call__" or (
            context.method_name != "setup"
            and all(isinstance(x, jax.Array) for x in jax.tree.leaves(output))
        )
        if name not in factors or not is_outermost or not is_output:
            return output
        if _returns_parameters(module, output):
            raise ValueError(
                f"{name} is a {type(module).__name__}, which returns its parameters "
                f"and no output whose cotangent could be amplified, as in "
                f"nn.OptimizedLSTMCell: use nn.LSTMCell, or leave {name} out of the "
                f"factors"
            )
        seen.add(name)
        return amplify_cotangent(output, factors[name])

    with nn.intercept_methods(interceptor):
        yield
    if missing := sorted(set(factors) - seen):
        raise ValueError(
            f"no module was called under the names {', '.join(missing)}: factors are "
            f"named by the paths of linen modules"
        )


def _returns_parameters(module: nn.Module, output: Any) -> bool:
    """Whether one of a module's own parameters is part of an output."""
    own = jax.tree.leaves(module.variables.get("params", {}))
    return any(x is p for x in jax.tree.leaves(output) for p in own)


def _is_under_nn_jit(module: type) -> bool:
    """Whether ``nn.jit`` wraps a module's class or its ``__call__``.

    Flax does not say so. Among its lifted transformations only ``nn.jit``, which caches
    its traces, keeps the transformed function in a closure.
    """
    method: Any = module.__call__
    while method is not None:
        code = getattr(method, "__code__", None)
        if code is not None and "trafo_fn" in code.co_freevars:
            return code.co_filename == nn.transforms.__file__
        method = getattr(method, "__wrapped__", None)
    return False


def recompute_batch_stats(
    apply: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
) -> dict[str, Any]:
    """Variables with the batch statistics of their parameters, over some batches.

    Batch normalisation's running statistics lag behind the parameters, and averaged
    parameters have none (precise batch norm, Wu and Johnson 2021). These are exact over
    the batches given, and do not depend on the statistics before. Call it before each
    evaluation, and for both sides of a comparison.

    Args:
      apply: The model in training mode: maps variables and a batch to the output and
        the mutated ``batch_stats``, as ``module.apply(..., mutable=["batch_stats"])``
        returns them. Compile it (``jax.jit``, or mapped over devices): it is called as
        it is, once a batch, and once more for the first one.
      variables: ``params`` and ``batch_stats``, and other collections.
      batches: Batches of training examples; 20 of them are enough as a rule. Arrays
        have the examples along their first axis.

    Returns:
      The variables with new ``batch_stats``.

    Raises:
      ValueError: If there is no batch, there are no statistics or they have other names
        than ``mean`` and ``var``, or the model is not in training mode.

    Examples:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> norm = nn.BatchNorm(use_running_average=False)
      >>> variables = norm.init(jax.random.key(0), jnp.ones((2, 1)))
      >>> apply = jax.jit(lambda v, x: norm.apply(v, x, mutable=["batch_stats"]))
      >>> batches = [jnp.array([[1.0], [2.0]]), jnp.array([[6.0]])]
      >>> fresh = recompute_batch_stats(apply, variables, batches)["batch_stats"]
      >>> [f"{float(fresh[name][0]):.3f}" for name in ("mean", "var")]
      ['3.000', '4.667']

    References:
      Wu and Johnson, `Rethinking "Batch" in BatchNorm
      <https://arxiv.org/abs/2105.07576>`_, 2021
    """
    if "batch_stats" not in variables:
        raise ValueError("the variables have no batch_stats: nothing to compute again")

    def follow(stats: Any, batch: Any) -> Any:
        return apply({**variables, "batch_stats": stats}, batch)[1]["batch_stats"]

    stats = _batch_stats.recompute(follow, variables["batch_stats"], batches)
    return {**variables, "batch_stats": stats}
