"""Passes over the data: an epoch of training, an evaluation."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from training import data, feed, parallel
from training.config import Config
from training.errors import ConfigError, RunError
from training.step import (
    Batch,
    Preprocess,
    TrainState,
    make_eval_step,
    make_initial_state,
    make_train_step,
)

OnCall = Callable[[dict[str, float], int], None]

# Calls that may be under way at once: enough to hide dispatch, few enough that
# Ctrl-C and the progress display are not far behind.
_IN_FLIGHT = 2


class Loop:
    """A network, an optimizer and a data set on the devices, compiled once.

    Attributes:
      state: The training state, replicated over the local devices.
      steps_per_epoch: Optimizer steps in an epoch.
      train_seconds: Time spent in training steps since :meth:`start`, without
        compilation and evaluation.
    """

    state: TrainState

    def __init__(
        self,
        config: Config,
        dataset: data.Dataset,
        module: nn.Module,
        tx: optax.GradientTransformationExtraArgs,
        dtype: jax.typing.DTypeLike,
    ) -> None:
        self.train_seconds = 0.0
        self._seed = 0
        self._batch_size = config.batch_size
        self.steps_per_epoch, self._total_steps = count_steps(config, dataset)
        self._test_part = dataset.test
        self._feed: feed.Feed
        if config.input == "host":
            self._feed = feed.Host(dataset.train, config.batch_size)
        else:
            steps = config.steps_per_call or _steps_per_call(self.steps_per_epoch)
            self._feed = feed.Resident(dataset.train, config.batch_size, steps)
        preprocess = Preprocess(
            dataset.mean, dataset.std, dtype, dataset.crop_padding, dataset.flips
        )
        self._initial_state = jax.jit(
            make_initial_state(module, tx, dataset.train.images.shape[1:], dtype),
            out_shardings=parallel.replicated(),
        )
        self._train_function = self._feed.wrap(
            make_train_step(
                module,
                tx,
                preprocess,
                augment=config.augment,
                propagate=config.amplify_propagate,
                accumulate=config.accumulate,
                unroll=jax.default_backend() == "cpu",
            )
        )
        self._eval_function = make_eval_step(module, preprocess)

    def start(self, seed: int) -> None:
        """Draws the initial state of a run."""
        self._seed = seed
        self.state = self._initial_state(jax.random.key(seed))
        self.train_seconds = 0.0

    def compile(self) -> None:
        """Compiles both steps, ahead of time, so that no timing includes it."""
        self._train_call = parallel.compile_step(
            self._train_function,
            self.state,
            *next(self._feed.calls(self._seed, 0, 1)).arguments,
            donate=True,
        )
        self._eval_step = parallel.compile_step(
            self._eval_function,
            self.state.variables,
            next(self._eval_batches(self._test_part)),
        )

    def train_epoch(
        self,
        epoch: int,
        on_call: OnCall,
        watch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Trains one epoch, or what ``max_steps`` leaves of it.

        Args:
          epoch: Number of the epoch, from 0; with the seed it determines the order.
          on_call: Called after each call of the compiled function with the means of
            its metrics, shortly afterwards, and its number of steps.

        Returns:
          Means over the epoch's steps of what the training step measures, ``skipped``
          (the number of steps left out), and ``images_per_second``.

        Raises:
          RunError: If the loss is no longer finite.
        """
        start = time.perf_counter()
        under_way: deque[tuple[int, dict[str, jax.Array]]] = deque()
        sums: Counter[str] = Counter()

        def finish_one() -> None:
            steps, metrics = under_way.popleft()
            fetched = _fetch(metrics)
            sums.update(fetched)
            on_call({name: value / steps for name, value in fetched.items()}, steps)

        steps = min(
            self.steps_per_epoch, self._total_steps - epoch * self.steps_per_epoch
        )
        for call in self._feed.calls(self._seed, epoch, steps):
            self.state, metrics = self._train_call(self.state, *call.arguments)
            watch()
            under_way.append((call.steps, metrics))
            if len(under_way) > _IN_FLIGHT:
                finish_one()
        while under_way:
            finish_one()
        seconds = time.perf_counter() - start
        self.train_seconds += seconds

        taken = steps - sums["skipped"]
        means = {name: total / max(taken, 1) for name, total in sums.items()}
        if not (math.isfinite(means["loss"]) and taken):
            raise RunError(
                f"the training loss is not finite in epoch {epoch + 1} "
                f"({means['loss']}): the run diverged; try a lower --learning-rate"
            )
        means["skipped"] = sums["skipped"]
        means["images_per_second"] = steps * self._batch_size / seconds
        return means

    def parameter_norm(self) -> float:
        """The norm of all parameters."""
        return float(optax.tree.norm(self.state.params))

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


def count_steps(config: Config, dataset: data.Dataset) -> tuple[int, int]:
    """Returns optimizer steps in an epoch (whole batches only) and in the run.

    Raises:
      UserError: If the batch does not fit the devices or the data.
    """
    parallel.check_batch_size(config.batch_size, config.accumulate)
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


def _steps_per_call(steps_per_epoch: int) -> int:
    # A convolution's backward pass inside a loop is many times slower on a CPU. On an
    # accelerator few calls an epoch keep the host out of the way.
    if jax.default_backend() == "cpu":
        return 1
    return max(1, math.ceil(steps_per_epoch / 4))


def _fetch(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
