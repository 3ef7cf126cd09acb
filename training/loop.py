"""Passes over the data: an epoch of training, an evaluation."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from training import data, parallel
from training.config import Config
from training.errors import ConfigError, RunError
from training.step import (
    Batch,
    Preprocess,
    TrainState,
    initial_state,
    make_eval_step,
    make_train_step,
)

OnStep = Callable[[dict[str, float]], None]

# Steps that may be under way at once: enough to hide dispatch, few enough that
# Ctrl-C and the progress display are not far behind.
_IN_FLIGHT = 2


class Loop:
    """A network, an optimizer and a data set on the devices.

    Attributes:
      state: The training state, replicated over the local devices.
      train_seconds: Time spent in training steps so far, without compilation and
        evaluation.
    """

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        module: nn.Module,
        tx: optax.GradientTransformationExtraArgs,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        """Draws the initial state and puts it and the training part on the devices."""
        self.train_seconds = 0.0
        self._seed = config.seed
        self._batch_size = config.batch_size
        self._steps_per_epoch, self._total_steps = count_steps(config, dataset)
        self._dataset = dataset
        preprocess = Preprocess(
            dataset.mean, dataset.std, dtype, dataset.crop_padding, dataset.flips
        )
        image_shape = dataset.train.images.shape[1:]
        self.state: TrainState = parallel.replicate(
            initial_state(module, tx, image_shape, config.seed, dtype)
        )
        # The uint8 images live on the devices; a step picks its batch by index.
        self._train_part = parallel.replicate(dataset.train)
        self._train_function = make_train_step(
            module,
            tx,
            preprocess,
            augment=config.augment,
            propagate=config.amplify_propagate,
        )
        self._eval_function = make_eval_step(module, preprocess)

    def compile(self) -> None:
        """Compiles both steps, ahead of time, so that no timing includes it."""
        self._train_step = parallel.compile_step(
            self._train_function,
            self.state,
            self._train_part,
            next(self._batches(0)),
            donate=True,
        )
        self._eval_step = parallel.compile_step(
            self._eval_function,
            self.state.variables,
            next(self._eval_batches(self._dataset.test)),
        )

    def train_epoch(self, epoch: int, on_step: OnStep) -> dict[str, float]:
        """Trains one epoch, or what ``max_steps`` leaves of it.

        Args:
          epoch: Number of the epoch, from 0; with the seed it determines the order.
          on_step: Called after each step with the metrics of one shortly before.

        Returns:
          Means over the epoch's steps of what the training step measures (the norm of
          the parameters: its last value), and ``images_per_second``.

        Raises:
          RunError: If the loss is no longer finite.
        """
        start = time.perf_counter()
        history: list[dict[str, jax.Array]] = []
        left = self._total_steps - epoch * self._steps_per_epoch
        for _, indices in zip(range(left), self._batches(epoch), strict=False):
            self.state, metrics = self._train_step(
                self.state, self._train_part, indices
            )
            history.append(metrics)
            if len(history) > _IN_FLIGHT:
                on_step(_fetch(history[-1 - _IN_FLIGHT]))
        steps = [_fetch(metrics) for metrics in history]
        seconds = time.perf_counter() - start
        self.train_seconds += seconds
        for metrics in steps[-_IN_FLIGHT:]:
            on_step(metrics)

        means = {name: float(np.mean([m[name] for m in steps])) for name in steps[0]}
        if not np.isfinite(means["loss"]):
            raise RunError(
                f"the training loss is {means['loss']} in epoch {epoch + 1}: the run "
                f"diverged; try a lower --learning-rate"
            )
        means["parameter_norm"] = steps[-1]["parameter_norm"]
        means["images_per_second"] = len(steps) * self._batch_size / seconds
        return means

    def evaluate(self, variables: Any, part: data.Examples) -> dict[str, float]:
        """Evaluates variables on all of some examples.

        Args:
          variables: As ``module.apply`` takes them, replicated or on the host.
          part: The examples.

        Returns:
          ``loss``, ``accuracy``, ``top1_error``, ``top5_error``; NaN for an empty
          part.
        """
        variables = parallel.replicate(variables)
        sums = [
            _fetch(self._eval_step(variables, batch))
            for batch in self._eval_batches(part)
        ]
        loss, top1, top5, count = (
            sum(s[name] for s in sums) for name in ("loss", "top1", "top5", "count")
        )
        assert count == len(part.labels)
        count = count or math.nan
        return {
            "loss": loss / count,
            "accuracy": top1 / count,
            "top1_error": 1 - top1 / count,
            "top5_error": 1 - top5 / count,
        }

    def _eval_batches(self, part: data.Examples) -> Iterator[Batch]:
        """All examples in order, the last batch padded with its last example."""
        count = len(part.labels)
        for start in range(0, count, self._batch_size):
            indices = np.arange(start, start + self._batch_size)
            padded = np.minimum(indices, count - 1)
            batch = Batch(part.images[padded], part.labels[padded], indices < count)
            yield parallel.shard(batch)

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        """Indices of an epoch's batches, [devices, batch of a device] each."""
        key = jax.random.fold_in(jax.random.key(self._seed), epoch)
        count = len(self._dataset.train.labels)
        order = np.asarray(jax.random.permutation(key, count)).astype(np.int32)
        for start in range(
            0, self._steps_per_epoch * self._batch_size, self._batch_size
        ):
            yield parallel.shard(order[start : start + self._batch_size])


def count_steps(config: Config, dataset: data.Dataset) -> tuple[int, int]:
    """Returns optimizer steps in an epoch (whole batches only) and in the run.

    Raises:
      UserError: If the batch does not fit the devices or the data.
    """
    parallel.check_batch_size(config.batch_size)
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    if not steps_per_epoch:
        raise ConfigError(
            f"--batch-size {config.batch_size} is more than the "
            f"{len(dataset.train.labels)} training examples of {dataset.name}: take a "
            f"smaller one"
        )
    assert config.epochs is not None  # a configuration is complete
    total = config.epochs * steps_per_epoch
    return steps_per_epoch, min(total, config.max_steps or total)


def _fetch(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
