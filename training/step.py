"""One training step and one evaluation step, as each device sees them."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import plp_optax
from plp_optax.linen import propagate_amplification
from training import data, parallel
from training.errors import ConfigError


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: Steps taken; int32 scalar.
      params: The network's parameters.
      batch_stats: Its running statistics; empty if it has none.
      opt_state: The optimizer's state, the prediction window included.
      key: The run's random key; constant.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What ``module.apply`` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Preprocess(NamedTuple):
    """What happens to images between storage and the network."""

    mean: Any
    std: Any
    dtype: jax.typing.DTypeLike
    crop_padding: int
    flips: bool

    def __call__(
        self,
        images: jax.Array,
        key: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Augments if given a key, and normalises."""
        if key is not None and positions is not None:
            images = data.augment(
                key,
                images,
                positions,
                crop_padding=self.crop_padding,
                flips=self.flips,
            )
        return data.normalize(images, self.mean, self.std, self.dtype)


def initial_state(
    module: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: int,
    dtype: jax.typing.DTypeLike,
) -> TrainState:
    """Draws the initial parameters from ``seed``.

    Raises:
      ConfigError: If the optimizer's options do not fit the network's layers.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))

    def init(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *image_shape), dtype), train=False)

    variables = jax.jit(init)(init_key)
    try:
        opt_state = jax.jit(tx.init)(variables["params"])
    except ValueError as error:  # an option that does not fit this network's layers
        raise ConfigError(f"the optimizer does not fit the network: {error}") from error
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=opt_state,
        key=jax.random.key_data(run_key),
    )


def make_train_step(
    module: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    preprocess: Preprocess,
    *,
    augment: bool = False,
    propagate: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns ``train_step(state, examples, indices) -> (state, metrics)``.

    With ``propagate`` amplification happens in back-propagation, by the factors in the
    optimizer's state, and the gradient that metrics tell of is the amplified one.

    ``examples`` is the whole training part, ``indices`` of shape [batch of this
    device] picks from it. Metrics are means over the batch, in the given precision:
    ``loss`` (cross-entropy, nats), ``accuracy``, and the norms of the gradient, of
    the update that the whole chain makes of it, and of the new parameters.
    """

    def train_step(
        state: TrainState, examples: data.Examples, indices: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        device = parallel.device_index()
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        images = preprocess(
            examples.images[indices],
            augment_key if augment else None,
            # Places in the global batch, so that augmentation does not depend on
            # how many devices share it.
            device * indices.size + jnp.arange(indices.size),
        )
        labels = examples.labels[indices]

        def amplified(params: Any) -> contextlib.AbstractContextManager[None]:
            names = plp_optax.layer_names(params)
            factors = optax.tree.get(state.opt_state, "factors")
            return propagate_amplification(dict(zip(names, factors, strict=True)))

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            with amplified(params) if propagate else contextlib.nullcontext():
                logits, mutated = module.apply(
                    {"params": params, "batch_stats": state.batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": jax.random.fold_in(dropout_key, device)},
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, mutated.get("batch_stats", {}))

        (loss, (logits, batch_stats)), gradient = jax.value_and_grad(
            loss_fn, has_aux=True
        )(state.params)
        accuracy = jnp.mean(logits.argmax(-1) == labels, dtype=loss.dtype)
        loss, accuracy, gradient, batch_stats = jax.lax.pmean(
            (loss, accuracy, gradient, batch_stats), parallel.AXIS
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "parameter_norm": optax.tree.norm(params),
        }
        state = TrainState(state.step + 1, params, batch_stats, opt_state, state.key)
        return state, metrics

    return train_step


class Batch(NamedTuple):
    """A padded batch of an evaluation.

    Attributes:
      images: uint8 [n, height, width, channels].
      labels: int32 [n].
      mask: False for padding; bool [n].
    """

    images: Any
    labels: Any
    mask: Any


def make_eval_step(
    module: nn.Module, preprocess: Preprocess
) -> Callable[..., dict[str, jax.Array]]:
    """Returns ``eval_step(variables, batch) -> sums``.

    Sums over the batch's real examples on all devices: ``loss`` (cross-entropy,
    nats), ``top1`` and ``top5`` (correct predictions), ``count``.
    """

    def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        logits: Any = module.apply(variables, preprocess(batch.images), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        rank = _rank(logits, batch.labels)
        sums = {
            "loss": jnp.where(batch.mask, losses, 0).sum(),
            "top1": (batch.mask & (rank < 1)).sum(),
            "top5": (batch.mask & (rank < 5)).sum(),
            "count": batch.mask.sum(),
        }
        return jax.lax.psum(sums, parallel.AXIS)

    return eval_step


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Place of each label among its logits, from 0; among equals the lower class wins.

    A label whose logit is NaN comes last.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1])[None] < labels[:, None]
    ahead = (logits > own) | ((logits == own) & before)
    return jnp.where(jnp.isnan(own[:, 0]), logits.shape[-1], ahead.sum(-1))
