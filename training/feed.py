"""How training examples reach a step: resident on the devices, or from the host."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from training import data, parallel
from training.step import TrainState

TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class Call(NamedTuple):
    """One call of a compiled training function.

    Attributes:
      steps: How many training steps it takes.
      arguments: Its arguments behind the state.
    """

    steps: int
    arguments: tuple[Any, ...]


class Feed(Protocol):
    """Where batches come from."""

    def wrap(self, step: TrainStep) -> Callable[..., Any]:
        """Turns a step on images and labels into a device's function of a call.

        The function returns the state and the sums of the metrics over the call.
        """

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[Call]:
        """The calls of some successive steps of an epoch."""


class Resident:
    """The training part lies on every device as uint8; a step gathers its batch.

    An epoch's order is drawn on the devices from seed and epoch. With more than one
    step a call, the steps are a loop on the device.
    """

    def __init__(
        self, examples: data.Examples, batch_size: int, steps_per_call: int
    ) -> None:
        self._examples = parallel.replicate(examples)
        self._batch_size = batch_size
        self._steps_per_call = steps_per_call
        self._order = jax.jit(
            lambda key, epoch: _order(key, epoch, len(examples.labels)),
            out_shardings=parallel.replicated(),
        )

    def wrap(self, step: TrainStep) -> Callable[..., Any]:
        """See :class:`Feed`."""
        batch_size = self._batch_size

        def call(
            state: TrainState, source: tuple[data.Examples, jax.Array], span: jax.Array
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            examples, order = source
            own = batch_size // jax.lax.axis_size(parallel.AXIS)

            def take(position: jax.Array, state: TrainState) -> Any:
                start = position * batch_size + parallel.device_index() * own
                indices = jax.lax.dynamic_slice_in_dim(order, start, own)
                return step(state, examples.images[indices], examples.labels[indices])

            first, count = span
            if self._steps_per_call == 1:
                return take(first, state)

            def body(i: jax.Array, carry: Any) -> Any:
                state, sums = carry
                state, metrics = take(first + i, state)
                return state, jax.tree.map(jnp.add, sums, metrics)

            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, x.dtype),
                jax.eval_shape(take, first, state)[1],
            )
            return jax.lax.fori_loop(0, count, body, (state, zeros))

        return call

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[Call]:
        """See :class:`Feed`."""
        order = self._order(jax.random.key(seed), epoch)
        for first in steps[:: self._steps_per_call]:
            count = min(self._steps_per_call, steps.stop - first)
            span = np.array([first, count], np.int32)
            spans = np.tile(span, (jax.local_device_count(), 1))
            yield Call(count, ((self._examples, order), spans))


class Host:
    """Batches are gathered on the host and sent ahead of the step that wants them.

    For sets that do not fit on a device. A thread gathers and sends, so that both
    overlap with the steps.
    """

    _AHEAD = 2  # batches under way

    def __init__(self, examples: data.Examples, batch_size: int) -> None:
        self._examples = examples
        self._batch_size = batch_size

    def wrap(self, step: TrainStep) -> Callable[..., Any]:
        """See :class:`Feed`."""

        def call(
            state: TrainState, batch: data.Examples
        ) -> tuple[TrainState, dict[str, jax.Array]]:
            return step(state, batch.images, batch.labels)

        return call

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[Call]:
        """See :class:`Feed`."""
        order = np.asarray(
            _order(jax.random.key(seed), epoch, len(self._examples.labels))
        )

        def batches() -> Iterator[data.Examples]:
            for step in steps:
                indices = order[step * self._batch_size :][: self._batch_size]
                own = parallel.shard(indices)
                yield parallel.send(data.Examples(*(x[own] for x in self._examples)))

        for batch in prefetch(batches(), self._AHEAD):
            yield Call(1, (batch,))


def prefetch(items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """Yields items that a thread makes ahead of time, at most so many.

    What goes wrong in the thread is raised here.
    """
    ready: queue.Queue[Any] = queue.Queue(ahead)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def _order(key: jax.Array, epoch: Any, count: int) -> jax.Array:
    """The order of an epoch's examples, from the seed's key and the epoch alone."""
    key = jax.random.fold_in(key, epoch)
    return jax.random.permutation(key, count).astype(jnp.int32)
