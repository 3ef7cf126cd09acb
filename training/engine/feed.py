"""How training examples reach a step: resident on the devices, or from the host."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from training import data
from training.engine import parallel
from training.engine.state import Monitor, TrainState

TrainStep = Callable[[TrainState, Any, Any], TrainState]


class CallInputs(NamedTuple):
    """One call of a compiled training function."""

    steps: int  # how many it takes
    arguments: tuple[Any, ...]  # after the state


class Feed(Protocol):
    """Where batches come from."""

    def wrap(self, step: TrainStep) -> Callable[..., tuple[TrainState, Monitor]]:
        """Turns a step on images and labels into a device's function of a call.

        The function returns the state, and a copy of its monitor, which remains when
        the state is donated to the next call.
        """

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[CallInputs]:
        """The calls for successive steps of an epoch."""


class Resident:
    """The training set is on every device as uint8; a step gathers its batch.

    The order of an epoch is drawn on the devices from seed and epoch. With more than
    one step a call, the steps are a loop on the device.
    """

    def __init__(
        self, examples: data.Examples, batch_size: int, steps_per_call: int
    ) -> None:
        images, labels = examples
        self._shape = images.shape[1:]
        # One row an image: before it gathers from four axes, a TPU copies the set into
        # tiles that are mostly padding.
        rows = images.reshape(len(images), -1)
        self._examples = parallel.replicate(data.Examples(rows, labels))
        self._batch_size = batch_size
        self._steps_per_call = steps_per_call
        self._order = jax.jit(
            lambda key, epoch: _order(key, epoch, len(examples.labels)),
            out_shardings=parallel.replicated(),
        )

    def wrap(self, step: TrainStep) -> Callable[..., tuple[TrainState, Monitor]]:
        """See :class:`Feed`."""

        def call(
            state: TrainState, source: tuple[data.Examples, jax.Array], span: jax.Array
        ) -> tuple[TrainState, Monitor]:
            examples, order = source
            own = self._batch_size // jax.lax.axis_size(parallel.AXIS)

            def take(position: jax.Array, state: TrainState) -> TrainState:
                start = position * self._batch_size + parallel.device_index() * own
                indices = jax.lax.dynamic_slice_in_dim(order, start, own)
                images = examples.images[indices].reshape(own, *self._shape)
                return step(state, images, examples.labels[indices])

            first, count = span
            if self._steps_per_call == 1:
                state = take(first, state)
            else:
                state = jax.lax.fori_loop(
                    0, count, lambda i, state: take(first + i, state), state
                )
            return state, state.monitor

        return call

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[CallInputs]:
        """See :class:`Feed`."""
        order = self._order(jax.random.key(seed), epoch)
        for first in steps[:: self._steps_per_call]:
            count = min(self._steps_per_call, steps.stop - first)
            span = np.array([first, count], np.int32)
            spans = np.tile(span, (jax.local_device_count(), 1))
            yield CallInputs(count, ((self._examples, order), spans))


class Host:
    """Batches are gathered on the host and sent before the step that takes them.

    For sets that do not fit on a device. A thread gathers and sends, so that both
    overlap with the steps.
    """

    _AHEAD = 2  # batches under way

    def __init__(
        self, examples: data.Examples, batch_size: int, *, pin: bool = False
    ) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._pin = pin

    def wrap(self, step: TrainStep) -> Callable[..., tuple[TrainState, Monitor]]:
        """See :class:`Feed`."""

        def call(state: TrainState, batch: data.Examples) -> tuple[TrainState, Monitor]:
            state = step(state, batch.images, batch.labels)
            return state, state.monitor

        return call

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[CallInputs]:
        """See :class:`Feed`."""
        order = np.asarray(
            _order(jax.random.key(seed), epoch, len(self._examples.labels))
        )

        def batches() -> Iterator[data.Examples]:
            for step in steps:
                indices = order[step * self._batch_size :][: self._batch_size]
                own = parallel.shard(indices)
                batch = data.Examples(*(x[own] for x in self._examples))
                yield parallel.send(batch, pin=self._pin)

        for batch in prefetch(batches(), self._AHEAD):
            yield CallInputs(1, (batch,))


def prefetch(items: Iterator[Any], ahead: int) -> Iterator[Any]:
    """Yields items that a thread makes in advance, at most this many.

    An exception in the thread is raised here.
    """
    with ThreadPoolExecutor(1) as thread:
        made = deque(thread.submit(next, items, None) for _ in range(ahead))
        while (item := made.popleft().result()) is not None:
            made.append(thread.submit(next, items, None))
            yield item


def _order(key: jax.Array, epoch: Any, count: int) -> jax.Array:
    """The order of an epoch's examples, from the seed's key and the epoch alone."""
    key = jax.random.fold_in(key, epoch)
    return jax.random.permutation(key, count).astype(jnp.int32)
