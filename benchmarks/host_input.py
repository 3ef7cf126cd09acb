"""Batches from the host: a NumPy thread, Grain, and images resident on the device.

    python -m benchmarks.host_input

For data sets that do not fit on the device, ``train.py --input host`` gathers batches
with NumPy in a thread, before the step. This feed is compared with Grain (``pip install
grain``; left out where it is not installed), which uses its default threads and either
its usual pipeline of single examples or one of batches, and with images that are
resident on the device. Alternating in one run: batches per second of the feed alone,
until they are on the device, and images per second of training a small network.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks import measure
from training import data
from training.engine import feed, parallel

RESIDENT = "resident"
NUMPY = "numpy thread"
GRAIN = "grain, examples"
GRAIN_BATCHES = "grain, batches"


class Grain(feed.Host):
    """Host input through Grain's threads; sent in advance as by the NumPy thread."""

    def __init__(
        self, examples: data.Examples, batch_size: int, *, by_batch: bool
    ) -> None:
        super().__init__(examples, batch_size)
        self._by_batch = by_batch

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[feed.CallInputs]:
        """See :class:`training.engine.feed.Feed`; the order is Grain's own."""
        grain = importlib.import_module("grain")

        def take(indices: Any) -> data.Examples:
            return data.Examples(*(x[indices] for x in self._examples))

        count = len(self._examples.labels)
        order = grain.MapDataset.range(count).shuffle(seed=seed + epoch)
        if self._by_batch:
            batches = order.batch(self._batch_size).map(take)
        else:
            batches = order.map(take).batch(self._batch_size)
        sent = (
            parallel.send(parallel.shard(batch), pin=parallel.can_pin())
            for batch in batches[steps.start : steps.stop].to_iter_dataset()
        )
        for batch in feed.prefetch(sent, self._AHEAD):
            yield feed.CallInputs(1, (batch,))


def run(
    model: str = "tiny",
    width: int = 8,
    batch_size: int = 128,
    steps: int = 20,
    feed_steps: int = 400,
    rounds: int = 10,
) -> dict[str, Any]:
    """Measures all feeds; takes the flags, returns the figures."""
    config = measure.training_config(model=model, width=width, batch_size=batch_size)
    dataset = measure.synthetic(steps * batch_size)
    feeds = make_feeds(dataset.train, batch_size)
    trained: dict[str, Callable[[], Any]] = {
        name: measure.Training(config, dataset, feed_).run
        for name, feed_ in {RESIDENT: None, **feeds}.items()
    }
    examples = measure.synthetic(feed_steps * batch_size).train
    alone = {
        name: _drain(feed_, feed_steps)
        for name, feed_ in make_feeds(examples, batch_size).items()
    }
    feeding = measure.alternate(alone, rounds=rounds)
    training = measure.alternate(trained, rounds=rounds)
    return {
        "grain": importlib.metadata.version("grain") if has_grain() else None,
        "feeds": {
            name: {
                "batches_per_second": measure.quartiles(feed_steps / feeding[name])
                if name in feeding
                else None,
                "images_per_second": measure.quartiles(steps * batch_size / seconds),
                "time_ratio": measure.quartiles(seconds / training[RESIDENT]),
            }
            for name, seconds in training.items()
        },
    }


def make_feeds(examples: data.Examples, batch_size: int) -> dict[str, feed.Feed]:
    """The feeds from the host."""
    feeds: dict[str, feed.Feed] = {
        NUMPY: feed.Host(examples, batch_size, pin=parallel.can_pin())
    }
    if has_grain():
        feeds[GRAIN] = Grain(examples, batch_size, by_batch=False)
        feeds[GRAIN_BATCHES] = Grain(examples, batch_size, by_batch=True)
    return feeds


def has_grain() -> bool:
    """Whether Grain is installed."""
    return importlib.util.find_spec("grain") is not None


def _drain(feed_: feed.Feed, steps: int) -> Callable[[], None]:
    """Returns a function that waits for each batch of an epoch."""

    def drain() -> None:
        for call in feed_.calls(0, 0, range(steps)):
            jax.block_until_ready(call.arguments)

    return drain


if __name__ == "__main__":
    measure.main(
        "host_input",
        __doc__,
        run,
        on_accelerator={
            "width": 64,
            "batch_size": 512,
            "steps": 100,
            "feed_steps": 100,
        },
    )
