"""A network and an optimizer, compiled for the devices."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import flax.linen as nn
import jax
import numpy as np
import optax

from plp_optax.linen import recompute_batch_stats
from training import data
from training.engine import parallel
from training.engine.evaluation import Evaluation
from training.engine.feed import Feed, TrainStep
from training.engine.state import (
    Given,
    Metrics,
    Monitor,
    TrainState,
    make_initial_state,
    merge_frozen,
    split_frozen,
)
from training.engine.step import (
    Batch,
    Preprocess,
    make_eval_step,
    make_statistics_step,
)
from training.errors import DivergedError

# Calls that may be under way at once: enough to hide dispatch, few enough that Ctrl-C
# and the progress display are not far behind.
_IN_FLIGHT = 2


class Call(NamedTuple):
    """A call of the compiled training function."""

    state: TrainState  # after it; donated to the next call
    steps: int  # how many it takes
    # Means over the epoch so far as of an earlier call, which has finished; None before
    # the first has.
    metrics: dict[str, float] | None


class Engine:
    """Training and evaluation of a network; :meth:`compile` comes first.

    Attributes:
      batch_size: Examples in a step, over all devices.
      steps_per_epoch: Whole batches in the training set.
      train_function: The training function as each device sees it.
      train_call: The same, compiled.
      compile_seconds: Time that it took to trace and compile the functions.
      statistics_batches: Training batches over which batch statistics are computed
        again before each evaluation (precise batch norm); 0 if they are not.
    """

    def __init__(
        self,
        module: nn.Module,
        tx: optax.GradientTransformationExtraArgs,
        preprocess: Preprocess,
        feed: Feed,
        train_step: TrainStep,
        *,
        batch_size: int,
        with_block: bool = False,
        precise_bn: int = 0,
        most_skipped: int = 1,
    ) -> None:
        """Makes the functions to compile.

        Args:
          module: The network.
          tx: The optimizer.
          preprocess: The data set, and how its images become the network's input.
          feed: How its training batches reach the step.
          train_step: The step; see :func:`~training.engine.step.make_train_step`.
          batch_size: Examples in a step, over all devices.
          with_block: Whether the state has the mean of a block of epochs.
          precise_bn: Training batches over which batch statistics are computed again
            before an evaluation, if the network has any.
          most_skipped: Training ends after this many skipped steps in a row.
        """
        dataset = preprocess.dataset
        self._module = module
        self._image_shape = dataset.train.images.shape[1:]
        self.batch_size = batch_size
        self.steps_per_epoch = len(dataset.train.labels) // batch_size
        self.statistics_batches = min(precise_bn, self.steps_per_epoch)
        self.train_function = feed.wrap(train_step)
        self._dataset = dataset
        self._feed = feed
        self._most_skipped = most_skipped
        self._initial_state = make_initial_state(
            module, tx, self._image_shape, preprocess.dtype, with_block=with_block
        )
        self._statistics_function = make_statistics_step(module, preprocess)
        self._eval_function = make_eval_step(module, preprocess)

    def compile(self) -> Self:
        """Compiles the steps for the devices, so that no timing includes it.

        Raises:
          ConfigError: If the optimizer does not fit the network.
        """
        start = time.perf_counter()
        # Compiled ahead of time for the arguments of a first call, whose values do not
        # matter; the steps of every seed have the same shapes and shardings.
        state = self.initial_state(0)
        arguments = next(self._feed.calls(0, 0, range(1))).arguments
        training = parallel.compile_step(
            self.train_function, state, *arguments, donate=True
        )
        self.compile_evaluation(state.variables)
        self.train_call: Any = training.result()
        self.compile_seconds = time.perf_counter() - start
        return self

    def compile_evaluation(self, variables: Any) -> None:
        """Compiles what evaluates variables like these, and not the training."""
        variables = parallel.replicate(variables)
        batch = next(self._eval_batches(self._dataset.train))
        evaluation = parallel.compile_step(self._eval_function, variables, batch)
        split = self._with_frozen_apart(variables)
        if not split["batch_stats"]:
            self.statistics_batches = 0
        if self.statistics_batches:
            statistics = parallel.compile_step(self._statistics_function, split, batch)
            self._statistics_call: Callable[..., Any] = statistics.result()
        self._eval_step: Callable[..., Any] = evaluation.result()

    def _with_frozen_apart(self, variables: Any) -> dict[str, Any]:
        """Variables without the statistics of frozen blocks, which are "frozen"."""
        own, frozen = split_frozen(
            variables["batch_stats"], self._module, self._image_shape, "batch_stats"
        )
        return {**variables, "batch_stats": own, "frozen": frozen}

    def memory(self) -> dict[str, int]:
        """Bytes that the compiled training function needs on a device.

        ``held``: its arguments and results, which are the state, and the data set or a
        batch. ``temporary``: what it needs besides.
        """
        memory = self.train_call.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        held -= memory.alias_size_in_bytes  # the state counts once
        return {"held": held, "temporary": memory.temp_size_in_bytes}

    def initial_state(self, seed: int, given: Given | None = None) -> TrainState:
        """Draws the state of a run; ``given`` variables replace the ones drawn."""
        return self._initial_state(jax.random.key(seed), given)

    def train_steps(
        self,
        state: TrainState,
        seed: int,
        epoch: int,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Call]:
        """Trains the steps from ``start`` to ``stop`` of an epoch, call by call.

        Calls are dispatched before the ones before them have finished; whoever looks
        at the values of ``state`` waits for the devices. The state given is donated.
        Seed and epoch (from 0) determine the order of the examples.

        Raises:
          DivergedError: If too many steps in a row were not finite. The last state that
            was yielded has been donated by then.
        """
        if start == 0:
            zero = Monitor.zero(state.monitor.last.loss.dtype).epoch
            monitor = state.monitor._replace(epoch=parallel.replicate(zero))
            state = state._replace(monitor=monitor)
        steps = range(start, self.steps_per_epoch if stop is None else stop)
        under_way: deque[Monitor] = deque()
        metrics = None
        for call in self._feed.calls(seed, epoch, steps):
            state, monitor = self.train_call(state, *call.arguments)
            under_way.append(monitor)
            if len(under_way) > _IN_FLIGHT:
                metrics = self._finish(under_way.popleft(), epoch)
            yield Call(state, call.steps, metrics)
        while under_way:
            self._finish(under_way.popleft(), epoch)

    def with_statistics(
        self, variables: Any, on_batch: Callable[[], object] = lambda: None
    ) -> Any:
        """Variables with batch statistics of their parameters: precise batch norm.

        They are computed over ``statistics_batches`` training batches, which are the
        same ones each time. Without such batches the variables are returned.
        ``on_batch`` is called before each batch.
        """
        if not self.statistics_batches:
            return variables
        split = self._with_frozen_apart(variables)
        fresh = recompute_batch_stats(
            lambda variables, batch: self._statistics_call(
                parallel.replicate(variables), batch
            ),
            parallel.replicate(split),
            self._statistics_batches(on_batch),
        )
        stats = parallel.replicate(fresh["batch_stats"])
        stats = merge_frozen(stats, split["frozen"])
        return {**variables, "batch_stats": stats}

    def _statistics_batches(self, on_batch: Callable[[], object]) -> Iterator[Batch]:
        # A permutation, since a data set may be sorted by class on disk.
        images, labels = self._dataset.train
        count = self.statistics_batches * self.batch_size
        order = np.random.default_rng(0).permutation(len(labels))[:count]
        for indices in order.reshape(-1, self.batch_size):
            on_batch()
            mask = np.ones(self.batch_size, bool)
            yield parallel.shard(Batch(images[indices], labels[indices], mask))

    def _finish(self, monitor: Monitor, epoch: int) -> dict[str, float]:
        """Waits for a call; returns the means over the epoch so far."""
        monitor = jax.device_get(monitor)
        if monitor.skipped_in_a_row >= self._most_skipped:
            sums, last = monitor.epoch, monitor.last
            raise DivergedError(
                f"the run diverged: at step {sums.taken + sums.skipped} of epoch "
                f"{epoch + 1} the loss is {last.loss:.3g}, the norm of the gradient "
                f"{last.gradient_norm:.3g} and that of the update "
                f"{last.update_norm:.3g}; start again with a lower rate "
                f"(--learning-rate, or those in --strategy) and --overwrite"
            )
        return means(monitor.epoch)

    def evaluate(
        self,
        variables: Any,
        examples: data.Examples,
        on_batch: Callable[[], object] = lambda: None,
    ) -> Evaluation:
        """Evaluates variables, replicated or on the host, on examples.

        ``on_batch`` is called after each batch.
        """
        variables = parallel.replicate(variables)
        names = ("loss", "top1", "top5", "count")
        # Not 0.0, to which NumPy would add in float32.
        sums: dict[str, Any] = dict.fromkeys(names, np.float64(0))
        classes = self._dataset.num_classes
        sums["confusion"] = np.zeros((classes, classes + 1), np.int64)
        for batch in self._eval_batches(examples):
            own = jax.device_get(self._eval_step(variables, batch))
            sums = {name: np.add(sums[name], own[name]) for name in sums}
            on_batch()
        assert sums["count"] == len(examples.labels)
        return Evaluation.of(sums)

    def _eval_batches(self, examples: data.Examples) -> Iterator[Batch]:
        """All examples in order; the last batch is padded with the last example."""
        count = len(examples.labels)
        for start in range(0, count, self.batch_size):
            indices = np.arange(start, start + self.batch_size)
            padded = np.minimum(indices, count - 1)
            images, labels = examples.images[padded], examples.labels[padded]
            yield parallel.shard(Batch(images, labels, indices < count))


def means(sums: Metrics) -> dict[str, float]:
    """Means of sums over steps: ``loss``, ``accuracy``, and the norms.

    Means over no step are 0.
    """
    taken = max(int(sums.taken), 1)
    return {
        name: float(getattr(sums, name)) / taken
        for name in ("loss", "accuracy", "gradient_norm", "update_norm")
    }
