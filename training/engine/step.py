"""Steps of training and of evaluation, as each device sees them."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.dynamic_scale import DynamicScale

import plp_optax
from plp_optax.linen import propagate_amplification
from training import data
from training.data.pixels import augment, normalize
from training.engine import parallel
from training.engine.state import (
    BLOCK_MEAN,
    Metrics,
    Monitor,
    TrainState,
    merge_frozen,
    split_frozen,
)


class Preprocess(NamedTuple):
    """From stored images to the network's input: augmentation and normalisation."""

    dataset: data.Dataset  # of which it takes the facts about images
    dtype: jax.typing.DTypeLike  # type of the network's arithmetic
    augment: bool = False  # in training

    def evaluation(self, images: jax.Array) -> jax.Array:
        """Normalises a device's images."""
        mean, std = self.dataset.mean, self.dataset.std
        return normalize(images, mean, std, self.dtype)

    def training(
        self, images: jax.Array, state: TrainState
    ) -> tuple[jax.Array, jax.Array]:
        """Augments and normalises a device's images, at the step of a state.

        Returns:
          The images, and a key for the step's dropout.
        """
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        if self.augment:
            # Positions in the global batch, so that augmentation does not depend on
            # the number of devices.
            count = len(images)
            positions = parallel.device_index() * count + jnp.arange(count)
            images = augment(
                augment_key,
                images,
                positions,
                crop_padding=self.dataset.crop_padding,
                flips=self.dataset.flips,
            )
        return self.evaluation(images), dropout_key


# -- Training --------------------------------------------------------------------------


def make_train_step(
    module: nn.Module,
    tx: optax.GradientTransformationExtraArgs,
    preprocess: Preprocess,
    *,
    propagate: str | None = None,
    parts: int = 1,
    unroll: bool = True,
    label_smoothing: float = 0.0,
    most_skipped: int = 1,
) -> Callable[[TrainState, jax.Array, jax.Array], TrainState]:
    """Returns ``train_step(state, images, labels) -> state``.

    ``images`` (uint8) and ``labels`` are this device's part of the batch.

    Args:
      module: The network.
      tx: The optimizer.
      preprocess: From stored images to the network's input.
      propagate: The rule for layers by which amplification happens inside
        back-propagation, with the factors in the optimizer's state; None for the usual
        form. ``gradient_norm`` is then that of the amplified gradient.
      parts: In how many parts the batch is computed, one after the other. Their mean
        gradient is that of the batch, except that batch normalisation sees one part at
        a time.
      unroll: Whether the parts are unrolled, or a loop on the device: on a CPU a
        convolution's backward pass is many times slower inside a loop.
      label_smoothing: Part of the target's probability that is spread evenly over all
        classes.
      most_skipped: After this many skipped steps in a row nothing changes any more.
    """
    loss_fn = _make_loss_fn(module, propagate, label_smoothing)

    def train_step(
        state: TrainState, images: jax.Array, labels: jax.Array
    ) -> TrainState:
        pixels, dropout_key = preprocess.training(images, state)
        size = labels.size // parts
        split = _Part(
            parallel.device_index() * parts + jnp.arange(parts),
            pixels.reshape(parts, size, *pixels.shape[1:]),
            labels.reshape(parts, size),
        )
        sums = _sum_gradients(loss_fn, state, split, dropout_key, unroll=unroll)
        loss, accuracy, gradient, batch_stats = jax.lax.pmean(
            (*jax.tree.map(lambda x: x / parts, sums[:3]), sums.batch_stats),
            parallel.AXIS,
        )
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        after = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        if state.block is not None:
            _, block = BLOCK_MEAN.update(updates, state.block, state.params)
            after = after._replace(block=block)
        metrics = Metrics(
            loss=loss,
            accuracy=accuracy,
            gradient_norm=optax.tree.norm(gradient),
            update_norm=optax.tree.norm(updates),
            taken=jnp.ones((), jnp.int32),
            skipped=jnp.zeros((), jnp.int32),
        )
        after = _skip_nonfinite(state, after, metrics, sums.finite, most_skipped)
        return after._replace(loss_scale=sums.loss_scale)

    return train_step


class _Part(NamedTuple):
    """A part of a device's batch; ``number`` counts over all devices."""

    number: Any
    images: Any
    labels: Any


class _Sums(NamedTuple):
    """Sums over the parts of a batch, and what is passed from part to part."""

    loss: Any
    accuracy: Any
    gradient: Any
    batch_stats: Any
    loss_scale: DynamicScale | None
    finite: Any


def _make_loss_fn(
    module: nn.Module, propagate: str | None, label_smoothing: float
) -> Callable[..., Any]:
    """Returns ``loss_fn(params, batch_stats, state, part, key)``.

    It returns the loss and, as auxiliary output, accuracy and running statistics.
    """

    def amplified(params: Any, opt_state: Any) -> Any:
        if propagate is None:
            return contextlib.nullcontext()
        names = plp_optax.layer_names(params, propagate)
        factors = optax.tree.get(opt_state, "factors")
        return propagate_amplification(dict(zip(names, factors, strict=True)))

    def loss_fn(
        params: Any, batch_stats: Any, state: TrainState, part: _Part, key: jax.Array
    ) -> Any:
        with amplified(params, state.opt_state):
            logits, mutated = module.apply(
                state._replace(params=params, batch_stats=batch_stats).variables,
                part.images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(key, part.number)},
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, part.labels)
        if label_smoothing:
            even = -jax.nn.log_softmax(logits).mean(-1)
            losses = (1 - label_smoothing) * losses + label_smoothing * even
        accuracy = jnp.mean(_predict(logits) == part.labels, dtype=losses.dtype)
        return losses.mean(), (accuracy, mutated.get("batch_stats", {}))

    return loss_fn


def _sum_gradients(
    loss_fn: Callable[..., Any],
    state: TrainState,
    parts: _Part,
    key: jax.Array,
    *,
    unroll: bool,
) -> _Sums:
    """Sums loss, accuracy and gradient over the parts of a batch."""

    def add(sums: _Sums, part: _Part) -> tuple[_Sums, None]:
        arguments = (state.params, sums.batch_stats, state, part, key)
        grad_fn: Any
        if sums.loss_scale is None:
            grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, aux), gradient = grad_fn(*arguments)
            loss_scale, finite = None, sums.finite
        else:
            grad_fn = sums.loss_scale.value_and_grad(
                loss_fn, has_aux=True, axis_name=parallel.AXIS
            )
            loss_scale, is_finite, (loss, aux), gradient = grad_fn(*arguments)
            finite = sums.finite & is_finite
        accuracy, batch_stats = aux
        if sums.gradient is not None:
            gradient = jax.tree.map(jnp.add, sums.gradient, gradient)
        return _Sums(
            sums.loss + loss,
            sums.accuracy + accuracy,
            gradient,
            batch_stats,
            loss_scale,
            finite,
        ), None

    count = parts.labels.shape[0]
    unroll |= count == 1
    zero = jnp.zeros((), state.monitor.last.loss.dtype)
    # A loop on the device needs a gradient to add to from the start.
    nothing = None if unroll else jax.tree.map(jnp.zeros_like, state.params)
    sums = _Sums(
        zero, zero, nothing, state.batch_stats, state.loss_scale, jnp.ones((), bool)
    )
    if not unroll:
        return jax.lax.scan(add, sums, parts)[0]
    for i in range(count):
        sums, _ = add(sums, jax.tree.map(lambda x, i=i: x[i], parts))
    return sums


def _skip_nonfinite(
    before: TrainState,
    after: TrainState,
    metrics: Metrics,
    finite: jax.Array,
    most_skipped: int,
) -> TrainState:
    """Keeps the state before a step whose loss, gradient or update is not finite.

    Momentum, windows, sums, statistics and schedules continue as if the step had not
    been. After ``most_skipped`` of them in a row every step is skipped.
    """
    monitor = before.monitor
    # Loss, accuracy and both norms, in which every value that is not finite shows.
    finite &= jnp.isfinite(jnp.stack(metrics[:4])).all()
    # Calls are dispatched before the host has seen the metrics of those before them.
    # Once the run has to stop, the steps in them must not change the state.
    stopped = monitor.skipped_in_a_row >= most_skipped
    taken = finite & ~stopped
    # A skipped step adds nothing to the epoch's sums but its count.
    nothing = Monitor.zero(metrics.loss.dtype).epoch
    counted = optax.tree.where(taken, metrics, nothing)._replace(
        skipped=(~finite & ~stopped).astype(jnp.int32)
    )
    # Not lax.cond, which would copy both states.
    return optax.tree.where(taken, after, before)._replace(
        monitor=Monitor(
            epoch=jax.tree.map(jnp.add, monitor.epoch, counted),
            # For the error message: the metrics of the step at which training stopped.
            last=optax.tree.where(stopped, monitor.last, metrics),
            skipped_in_a_row=jnp.where(taken, 0, monitor.skipped_in_a_row + 1),
        )
    )


# -- Evaluation ------------------------------------------------------------------------


class Batch(NamedTuple):
    """A padded batch for evaluation."""

    images: Any  # uint8 [n, height, width, channels]
    labels: Any  # int32 [n]
    mask: Any  # bool [n]; False for padding


def make_eval_step(
    module: nn.Module, preprocess: Preprocess
) -> Callable[..., dict[str, jax.Array]]:
    """Returns ``eval_step(variables, batch) -> sums``.

    The sums are those of :func:`measure` over all devices.
    """

    def eval_step(variables: Any, batch: Batch) -> dict[str, jax.Array]:
        logits: Any = module.apply(
            variables, preprocess.evaluation(batch.images), train=False
        )
        return jax.lax.psum(measure(logits, batch.labels, batch.mask), parallel.AXIS)

    return eval_step


def make_statistics_step(
    module: nn.Module, preprocess: Preprocess
) -> Callable[..., tuple[None, dict[str, Any]]]:
    """Returns ``statistics_step(variables, batch) -> (None, {"batch_stats": ...})``.

    The model in training mode, for ``plp_optax.linen.recompute_batch_stats``, without
    augmentation. ``variables["frozen"]`` has the statistics of the network's frozen
    blocks, which follow no batch.
    """

    def statistics_step(variables: Any, batch: Batch) -> tuple[None, dict[str, Any]]:
        stats = merge_frozen(variables["batch_stats"], variables["frozen"])
        # Dropout as in training; with a constant key, so that nothing depends on when
        # an evaluation takes place.
        key = jax.random.fold_in(jax.random.key(0), parallel.device_index())
        _, mutated = module.apply(
            {"params": variables["params"], "batch_stats": stats},
            preprocess.evaluation(batch.images),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        shape = batch.images.shape[1:]
        followed, _ = split_frozen(
            mutated["batch_stats"], module, shape, collection="batch_stats"
        )
        return None, {"batch_stats": jax.lax.pmean(followed, parallel.AXIS)}

    return statistics_step


def measure(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Sums of measurements over the examples that a mask leaves.

    ``loss`` (cross-entropy, nats), ``top1`` and ``top5`` (correct predictions),
    ``count``, and ``confusion``: examples by label and prediction. Its last column,
    [classes, classes + 1], is for those without a prediction, whose logits have a NaN.
    They are never classified correctly.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    predictions, classes = _predict(logits), logits.shape[-1]
    confusion = jnp.zeros((classes, classes + 1), jnp.int32)
    return {
        "loss": jnp.where(mask, losses, 0).sum(),
        "top1": (mask & (predictions == labels)).sum(),
        "top5": (mask & (_rank(logits, labels) < 5)).sum(),
        "count": mask.sum(),
        "confusion": confusion.at[labels, predictions].add(mask.astype(jnp.int32)),
    }


def _predict(logits: jax.Array) -> jax.Array:
    """The class of the largest logit; the number of classes if one of them is NaN."""
    classes = logits.shape[-1]
    return jnp.where(jnp.isnan(logits).any(-1), classes, logits.argmax(-1))


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Rank of each label among its logits, from 0; last if one of them is NaN.

    Among equal logits the lower class ranks first.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes, labels = jnp.arange(logits.shape[-1])[None], labels[:, None]
    higher = (logits > own) | ((logits == own) & (classes < labels))
    # A compiler that computes ``own`` again may round it below its logit.
    higher &= classes != labels
    return jnp.where(jnp.isnan(logits).any(-1), logits.shape[-1], higher.sum(-1))
