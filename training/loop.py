"""Passes over the data: an epoch of training, an evaluation."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from training import data, feed, parallel
from training.config import Config
from training.errors import ConfigError, DivergedError
from training.pauses import Pauses, Stopped
from training.progress import Progress
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

# Steps in a row that may be left out since they are not finite.
_MOST_SKIPPED = 25


class Loop:
    """A network, an optimizer and a data set on the devices, compiled once.

    Attributes:
      state: The training state, replicated over the local devices.
      steps_per_epoch: Optimizer steps in an epoch.
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
        self._seed = 0
        self._batch_size = config.batch_size
        self.steps_per_epoch, self._total_steps = count_steps(config, dataset)
        self._test_part = dataset.test
        # Overflows are float16's own, until the loss scale fits.
        patient = config.on_nonfinite == "skip" or config.precision == "float16"
        self._most_skipped = _MOST_SKIPPED if patient else 1
        self._feed: feed.Feed
        if config.input == "host":
            self._feed = feed.Host(dataset.train, config.batch_size)
        else:
            steps = config.steps_per_call or _steps_per_call(self.steps_per_epoch)
            self._feed = feed.Resident(dataset.train, config.batch_size, steps)
        preprocess = Preprocess(
            dataset.mean, dataset.std, dtype, dataset.crop_padding, dataset.flips
        )
        shape = dataset.train.images.shape[1:]
        self._initial_state = make_initial_state(module, tx, shape, dtype)
        self._train_function = self._feed.wrap(
            make_train_step(
                module,
                tx,
                preprocess,
                augment=config.augment,
                propagate=config.amplify_propagate,
                accumulate=config.accumulate,
                unroll=jax.default_backend() == "cpu",
                most_skipped=self._most_skipped,
            )
        )
        self._eval_function = make_eval_step(module, preprocess)

    def start(self, seed: int, state: TrainState | None = None) -> None:
        """Draws the initial state of a run, or takes the one given."""
        self._seed = seed
        if state is None:
            self.state = self._initial_state(jax.random.key(seed))
        else:
            self.state = parallel.replicate(state)

    def compile(self) -> None:
        """Compiles both steps, ahead of time, so that no timing includes it."""
        self._train_call = parallel.compile_step(
            self._train_function,
            self.state,
            *next(self._feed.calls(self._seed, 0, range(1))).arguments,
            donate=True,
        )
        self._eval_step = parallel.compile_step(
            self._eval_function,
            self.state.variables,
            next(self._eval_batches(self._test_part)),
        )

    def train_epoch(
        self,
        progress: Progress,
        on_call: OnCall = lambda metrics, steps: None,
        watch: Callable[[], None] = lambda: None,
        pauses: Pauses | None = None,
        save: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Trains what is left of an epoch, or what ``max_steps`` leaves of it.

        Args:
          progress: The position in the run, which moves along; with the seed, the epoch
            determines the order of the examples.
          on_call: Called after each call of the compiled function with the means of
            its metrics, shortly afterwards, and its number of steps.
          watch: Called after each call, at once.
          pauses: Says when to call ``save``.
          save: Called when no call is under way: state and progress agree.

        Returns:
          Means over the epoch's steps of what the training step measures, ``skipped``
          (the number of steps left out), and ``images_per_second``.

        Raises:
          DivergedError: If loss, gradient or update is no longer finite.
          Stopped: If someone wants the run to stop; state and progress agree.
        """
        pauses = pauses or Pauses(math.inf)
        under_way: deque[tuple[int, dict[str, jax.Array]]] = deque()
        start = time.perf_counter()

        def finish_one() -> None:
            steps, metrics = under_way.popleft()
            fetched = _fetch(metrics)
            if fetched["skipped"]:
                self._check_health(progress.epoch)
            progress.add(fetched, steps)
            on_call({name: value / steps for name, value in fetched.items()}, steps)

        def settle() -> None:
            """Makes progress agree with the state."""
            while under_way:
                finish_one()
            progress.seconds += time.perf_counter() - start

        steps = self.steps_per_epoch
        steps = min(steps, self._total_steps - progress.epoch * steps)
        rest = range(progress.step, steps)
        for call in self._feed.calls(self._seed, progress.epoch, rest):
            self.state, metrics = self._train_call(self.state, *call.arguments)
            watch()
            under_way.append((call.steps, metrics))
            if len(under_way) > _IN_FLIGHT:
                finish_one()
            try:
                save_now = pauses.is_due()
            except Stopped:
                settle()
                raise
            if save_now:
                settle()
                save()
                start = time.perf_counter()
        settle()

        taken = steps - progress.sums["skipped"]
        means = {name: total / max(taken, 1) for name, total in progress.sums.items()}
        means["skipped"] = progress.sums["skipped"]
        means["images_per_second"] = steps * self._batch_size / progress.seconds
        return means

    def _check_health(self, epoch: int) -> None:
        """Raises DivergedError if too many steps in a row were left out."""
        health = self.state.health
        if int(health.skipped_in_a_row) < self._most_skipped:
            return
        rows = health.last().T
        losses, gradients, updates = (
            ", ".join(f"{value:.3g}" for value in row) for row in rows
        )
        raise DivergedError(
            f"loss, gradient or update is not finite at step {int(health.attempted)}, "
            f"in epoch {epoch + 1} (losses of the last steps: {losses}; norms of their "
            f"gradients: {gradients}; of their updates: {updates}): the run diverged; "
            f"begin anew with a lower --learning-rate and --overwrite, or go on from "
            f"the last checkpoint with --on-nonfinite skip"
        )

    def parameter_norm(self) -> float:
        """The norm of all parameters."""
        return float(optax.tree.norm(self.state.params))

    def evaluate(
        self, variables: Any, part: data.Examples, pauses: Pauses | None = None
    ) -> dict[str, float]:
        """Evaluates variables on all of some examples.

        Args:
          variables: As ``module.apply`` takes them, replicated or on the host.
          part: The examples.
          pauses: Asked after each batch.

        Returns:
          ``loss``, ``accuracy``, ``top1_error``, ``top5_error``; NaN for an empty
          part.

        Raises:
          Stopped: If someone wants the run to stop.
        """
        pauses = pauses or Pauses(math.inf)
        variables = parallel.replicate(variables)
        sums = []
        for batch in self._eval_batches(part):
            sums.append(_fetch(self._eval_step(variables, batch)))
            pauses.is_due()  # a state is saved between epochs, not here
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
    if total >= 2**31:  # optimizers count in int32
        raise ConfigError(
            f"--epochs {config.epochs} are {total:,} steps, of which there may be less "
            f"than 2**31: take fewer"
        )
    return steps_per_epoch, min(total, config.max_steps or total)


def _steps_per_call(steps_per_epoch: int) -> int:
    # A convolution's backward pass inside a loop is many times slower on a CPU. On an
    # accelerator few calls an epoch keep the host out of the way.
    if jax.default_backend() == "cpu":
        return 1
    return max(1, math.ceil(steps_per_epoch / 4))


def _fetch(metrics: dict[str, jax.Array]) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
