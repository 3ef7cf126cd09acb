"""One training step and one evaluation step, as each device sees them."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale

import plp_optax
from plp_optax.linen import propagate_amplification
from training import data, parallel
from training.errors import ConfigError


class Health(NamedTuple):
    """Whether training goes well: of the last steps, finite or not.

    Attributes:
      attempted: Steps tried so far; int32 scalar.
      skipped_in_a_row: How many of the last ones were left out since the loss, the
        gradient or the update was not finite; int32 scalar.
      recent: Loss, norm of the gradient and norm of the update of the last 8 steps;
        that of step i (from 0) is row i modulo 8.
    """

    attempted: jax.Array
    skipped_in_a_row: jax.Array
    recent: jax.Array

    @classmethod
    def zero(cls, dtype: jax.typing.DTypeLike) -> Self:
        """Before the first step; ``dtype`` is the loss's."""
        nothing = jnp.zeros((), jnp.int32)
        return cls(nothing, nothing, jnp.zeros((8, 3), dtype))

    def after(self, step: jax.Array, finite: jax.Array) -> Self:
        """After a step of which the row ``step`` is recorded."""
        return self._replace(
            attempted=self.attempted + 1,
            skipped_in_a_row=jnp.where(finite, 0, self.skipped_in_a_row + 1),
            recent=self.recent.at[self.attempted % len(self.recent)].set(step),
        )

    def last(self) -> np.ndarray:
        """The rows of the last steps, the oldest first; fetches them."""
        attempted = int(self.attempted)
        count = min(attempted, len(self.recent))
        rows = np.arange(attempted - count, attempted) % len(self.recent)
        return np.asarray(self.recent)[rows]


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: Steps taken, without those left out; int32 scalar.
      params: The network's parameters.
      batch_stats: Its running statistics; empty if it has none.
      opt_state: The optimizer's state, the prediction window included.
      key: The run's random key; constant.
      health: The last steps' losses and norms.
      loss_scale: Of float16, where small gradients would vanish; else None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: jax.Array
    health: Health
    loss_scale: DynamicScale | None = None

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


def make_initial_state(
    module: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike,
) -> Callable[[jax.Array], TrainState]:
    """Returns ``initial_state(key)``, which draws the initial parameters.

    ``initial_state`` raises ConfigError if the optimizer's options do not fit the
    network's layers.
    """

    def draw(key: jax.Array) -> Any:
        return module.init(key, jnp.zeros((1, *image_shape), dtype), train=False)

    def assemble(variables: Any, key: jax.Array) -> TrainState:
        scale = None
        if dtype == jnp.float16:
            scale = DynamicScale(
                fin_steps=jnp.zeros((), jnp.int32),  # type: ignore[arg-type]
                scale=jnp.full((), 2.0**16),  # type: ignore[arg-type]
            )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(variables["params"]),
            key=jax.random.key_data(key),
            health=Health.zero(jnp.promote_types(dtype, jnp.float32)),
            loss_scale=scale,
        )

    # Compiled apart, since drawing is the same for every optimizer; and on a CPU with
    # little optimisation, since it runs once and would take long to compile.
    quick = {"xla_backend_optimization_level": 0}
    options = quick if jax.default_backend() == "cpu" else None
    draw = jax.jit(draw, out_shardings=parallel.replicated(), compiler_options=options)
    assemble = jax.jit(assemble, out_shardings=parallel.replicated())

    def initial_state(key: jax.Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        variables = draw(init_key)
        try:
            return assemble(variables, run_key)
        except ValueError as error:  # an option that does not fit the layers
            raise ConfigError(
                f"the optimizer does not fit the network: {error}"
            ) from error

    return initial_state


def make_train_step(
    module: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    preprocess: Preprocess,
    *,
    augment: bool = False,
    propagate: bool = False,
    accumulate: int = 1,
    unroll: bool = True,
    most_skipped: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns ``train_step(state, images, labels) -> (state, metrics)``.

    ``images`` (uint8) and ``labels`` are this device's part of the batch. Metrics are
    means over the batch: ``loss`` (cross-entropy, nats), ``accuracy``, the norms of the
    gradient and of the update that the whole chain makes of it, and ``skipped``, 1 if
    the step was left out since one of these was not finite. Such a step changes
    nothing but the loss scale and ``health``: momentum, windows, sums, statistics and
    schedules go on as if it had not been.

    Args:
      module: The network.
      tx: The optimizer.
      preprocess: What happens to images ahead of the network.
      augment: Whether it augments them.
      propagate: Whether amplification happens in back-propagation, by the factors in
        the optimizer's state. Metrics then tell of the amplified gradient.
      accumulate: In how many parts the batch is computed, one after the other. Their
        mean gradient is that of the whole batch, except that batch normalisation sees
        a part at a time.
      unroll: Whether the parts are unrolled, or a loop on the device: on a CPU a
        convolution's backward pass is many times slower inside a loop.
      most_skipped: After so many steps in a row that were left out, nothing changes
        any more.
    """
    unrolled = unroll or accumulate == 1

    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        device = parallel.device_index()
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        pixels = preprocess(
            images,
            augment_key if augment else None,
            # Places in the global batch, so that augmentation does not depend on
            # how many devices share it.
            device * labels.size + jnp.arange(labels.size),
        )

        def amplified(params: Any) -> contextlib.AbstractContextManager[None]:
            if not propagate:
                return contextlib.nullcontext()
            names = plp_optax.layer_names(params)
            factors = optax.tree.get(state.opt_state, "factors")
            return propagate_amplification(dict(zip(names, factors, strict=True)))

        def loss_fn(params: Any, batch_stats: Any, part: _Part) -> Any:
            dropout = jax.random.fold_in(dropout_key, device * accumulate + part.number)
            with amplified(params):
                logits, mutated = module.apply(
                    {"params": params, "batch_stats": batch_stats},
                    part.images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": dropout},
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, part.labels
            )
            accuracy = jnp.mean(logits.argmax(-1) == part.labels, dtype=losses.dtype)
            return losses.mean(), (accuracy, mutated.get("batch_stats", {}))

        def add_part(carry: _Sums, part: _Part) -> tuple[_Sums, None]:
            """Adds one part's gradient to the sums."""
            if carry.scale is None:
                (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
                    state.params, carry.batch_stats, part
                )
                scale, finite = None, carry.finite
            else:
                scale, ok, (loss, aux), gradient = carry.scale.value_and_grad(
                    loss_fn, has_aux=True, axis_name=parallel.AXIS
                )(state.params, carry.batch_stats, part)
                finite = carry.finite & ok
            accuracy, batch_stats = aux
            return _Sums(
                carry.loss + loss,
                carry.accuracy + accuracy,
                gradient
                if carry.gradient is None
                else jax.tree.map(jnp.add, carry.gradient, gradient),
                batch_stats,
                scale,
                finite,
            ), None

        size = labels.size // accumulate
        parts = _Part(
            jnp.arange(accumulate),
            pixels.reshape(accumulate, size, *pixels.shape[1:]),
            labels.reshape(accumulate, size),
        )
        zero = jnp.zeros((), jnp.promote_types(pixels.dtype, jnp.float32))
        sums = _Sums(
            zero,
            zero,
            # A loop needs something to add to from the start.
            None if unrolled else jax.tree.map(jnp.zeros_like, state.params),
            state.batch_stats,
            state.loss_scale,
            jnp.ones((), bool),
        )
        if unrolled:
            for number in range(accumulate):
                part = jax.tree.map(lambda x, n=number: x[n], parts)
                sums, _ = add_part(sums, part)
        else:
            sums, _ = jax.lax.scan(add_part, sums, parts)

        loss, accuracy, gradient, batch_stats = jax.lax.pmean(
            (*jax.tree.map(lambda x: x / accumulate, sums[:3]), sums.batch_stats),
            parallel.AXIS,
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
        }
        row = jnp.stack([loss, metrics["gradient_norm"], metrics["update_norm"]])
        finite = sums.finite & jnp.isfinite(row).all()
        going = state.health.skipped_in_a_row < most_skipped
        kept = state._replace(
            health=_where(going, state.health.after(row, finite), state.health),
            loss_scale=_where(going, sums.scale, state.loss_scale),
        )
        after = kept._replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        after = _where(finite & going, after, kept)
        metrics = _where(finite & going, metrics, jax.tree.map(jnp.zeros_like, metrics))
        metrics["skipped"] = 1 - (finite & going).astype(loss.dtype)
        return after, metrics

    return train_step


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


class _Part(NamedTuple):
    number: Any
    images: Any
    labels: Any


class _Sums(NamedTuple):
    """What accumulates over the parts of a batch."""

    loss: Any
    accuracy: Any
    gradient: Any
    batch_stats: Any
    scale: DynamicScale | None
    finite: Any


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
