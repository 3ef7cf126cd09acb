"""The state of training: what a step changes, and how it starts."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from flax.training.dynamic_scale import DynamicScale

import plp_optax
from training.engine import parallel
from training.errors import ConfigError

# Variables by path, such as "params/stem/conv/kernel".
Given = Mapping[str, Any]


def variable_shapes(module: Any, image_shape: tuple[int, ...]) -> Any:
    """Shapes and dtypes of a network's variables."""
    init = functools.partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *image_shape)))


def split_frozen(
    tree: Any, module: Any, image_shape: tuple[int, ...], collection: str = "params"
) -> tuple[Any, Any]:
    """Splits a collection in what a run changes, and what belongs to frozen blocks.

    See :class:`models.blocks.BlockNetwork`; ``tree`` has the variables of a collection,
    ``params`` or ``batch_stats``.
    """
    if not getattr(module, "frozen", 0):
        return tree, {}
    shapes = variable_shapes(module.clone(cut=module.frozen), image_shape)
    flat, frozen = traverse_util.flatten_dict(tree), {}
    for path in traverse_util.flatten_dict(shapes.get(collection, {})):
        if path[0] != "head":
            frozen[path] = flat.pop(path)
    return traverse_util.unflatten_dict(flat), traverse_util.unflatten_dict(frozen)


def merge_frozen(tree: Any, frozen: Any) -> Any:
    """The network's variables again."""
    if not frozen:
        return tree
    flat = traverse_util.flatten_dict(tree) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


class Metrics(NamedTuple):
    """Measurements of a training step, or their sums over steps."""

    loss: Any  # mean cross-entropy of the batch, in nats
    accuracy: Any  # part of the batch that is classified correctly
    gradient_norm: Any
    update_norm: Any  # of the update that the complete optimizer makes
    taken: Any  # number of steps taken
    # Number of steps skipped because one of the above was not finite. They do not count
    # in the other sums.
    skipped: Any


class Monitor(NamedTuple):
    """How training is going."""

    epoch: Metrics  # sums over the steps of the current epoch so far
    last: Metrics  # the last step's, finite or not
    skipped_in_a_row: jax.Array  # number of steps skipped since the last one taken

    @classmethod
    def zero(cls, dtype: jax.typing.DTypeLike) -> Self:
        """Before the first step; ``dtype`` is that of the loss."""

        # Separate arrays, since donation takes each only once.
        def metrics() -> Metrics:
            means = (jnp.zeros((), dtype) for _ in range(4))
            counts = (jnp.zeros((), jnp.int32) for _ in range(2))
            return Metrics(*means, *counts)

        return cls(metrics(), metrics(), jnp.zeros((), jnp.int32))


class TrainState(NamedTuple):
    """Everything that a training step changes."""

    step: jax.Array  # steps taken; int32 scalar
    params: Any  # the parameters that are trained
    batch_stats: Any  # the network's running statistics; empty if it has none
    opt_state: optax.OptState  # with the window of the prediction
    key: jax.Array  # the run's random key data; constant
    monitor: Monitor
    # For float16, in which small gradients would vanish.
    loss_scale: DynamicScale | None = None
    # The mean of the parameters since the block began (--block-means).
    block: plp_optax.TailAverageState | None = None
    frozen: Any = None  # the parameters of the network's frozen blocks, not trained

    @property
    def variables(self) -> dict[str, Any]:
        """The variables as ``module.apply`` takes them."""
        params = merge_frozen(self.params, self.frozen)
        return {"params": params, "batch_stats": self.batch_stats}

    def averaged(self, average: Any) -> dict[str, Any]:
        """The variables with averaged parameters: those of ``opt_state`` or ``block``.

        The batch statistics remain those of the last parameters.
        """
        params = _averaged_params(average, self.params)
        return self._replace(params=params).variables


# The mean of a block's parameters, to be followed by the training step.
BLOCK_MEAN = plp_optax.tail_average(0.0)

# Compiled as one function: the first call otherwise compiles several for each shape.
_averaged_params = jax.jit(plp_optax.averaged_params)


def make_initial_state(
    module: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
    *,
    with_block: bool = False,
) -> Callable[..., TrainState]:
    """Returns ``initial_state(key, given)``, which draws the initial variables.

    Those that are ``given`` replace the ones drawn. It raises ConfigError if the
    optimizer's options do not fit the network's layers. ``dtype`` is the type of the
    network's arithmetic; with ``with_block`` the state has the mean of a block.
    """

    def init_variables(key: jax.Array) -> Any:
        init_key, _ = jax.random.split(key)
        return module.init(init_key, jnp.zeros((1, *image_shape), dtype), train=False)

    def make_state(variables: Any, key: jax.Array) -> TrainState:
        _, run_key = jax.random.split(key)
        params, frozen = split_frozen(variables["params"], module, image_shape)
        scale = None
        if dtype == jnp.float16:
            scale = DynamicScale(
                fin_steps=jnp.zeros((), jnp.int32),  # type: ignore[arg-type]
                scale=jnp.full((), 2.0**16),  # type: ignore[arg-type]
            )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
            key=jax.random.key_data(run_key),
            monitor=Monitor.zero(jnp.promote_types(dtype, jnp.float32)),
            loss_scale=scale,
            block=BLOCK_MEAN.init(params) if with_block else None,
            frozen=frozen,
        )

    # Compiled separately, since init_variables is the same for every optimizer; and on
    # a CPU with little optimisation, since it runs once and would take long to compile.
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    init_variables = jax.jit(
        init_variables, out_shardings=parallel.replicated(), compiler_options=options
    )
    make_state = jax.jit(make_state, out_shardings=parallel.replicated())

    def initial_state(key: jax.Array, given: Given | None = None) -> TrainState:
        variables = init_variables(key)
        if given:
            drawn = traverse_util.flatten_dict(variables, sep="/")
            variables = traverse_util.unflatten_dict(
                drawn | parallel.replicate(given), sep="/"
            )
        try:
            return make_state(variables, key)
        except ValueError as error:  # an option that does not fit the layers
            raise ConfigError(
                f"the optimizer does not fit the network: {error}"
            ) from error

    return initial_state
