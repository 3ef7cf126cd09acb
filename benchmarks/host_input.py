"""Feeding a training step from the host: a NumPy thread, Grain, or not at all.

    python -m benchmarks.host_input

For sets that do not fit on the device, ``train.py --input host`` gathers batches with
NumPy in a thread, before the step. Here that feed is compared with Grain
(``pip install grain``; left out where it is absent), with Grain's default threads and
either its usual pipeline of single examples or one of batches, and with images that are
resident on the device. Alternating in one run: batches per second of the feed alone,
until they are on the device, and images per second of training a small network with
it.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Column, Table

import models
from benchmarks import measure
from training import data, feed, parallel

RESIDENT = "resident"
NUMPY = "numpy thread"
GRAIN = "grain, examples"
GRAIN_BATCHES = "grain, batches"


class Grain(feed.Host):
    """Host input through Grain's threads; sent in advance as by the NumPy thread."""

    def __init__(
        self, examples: data.Examples, batch_size: int, *, whole_batches: bool
    ) -> None:
        super().__init__(examples, batch_size)
        self._whole_batches = whole_batches

    def calls(self, seed: int, epoch: int, steps: range) -> Iterator[feed.Call]:
        """See :class:`training.feed.Feed`; the order is Grain's own."""
        grain = importlib.import_module("grain")

        def take(indices: Any) -> data.Examples:
            return data.Examples(*(x[indices] for x in self._examples))

        count = len(self._examples.labels)
        order = grain.MapDataset.range(count).shuffle(seed=seed + epoch)
        if self._whole_batches:
            batches = order.batch(self._batch_size).map(take)
        else:
            batches = order.map(take).batch(self._batch_size)
        sent = (
            parallel.send(parallel.shard(batch))
            for batch in batches[steps.start : steps.stop].to_iter_dataset()
        )
        for batch in feed.prefetch(sent, self._AHEAD):
            yield feed.Call(1, (batch,))


def run(
    model: str,
    *,
    width: int,
    batch_size: int,
    images: int,
    train_images: int,
    rounds: int,
) -> dict[str, Any]:
    """Measures all feeds; returns what the record holds.

    Args:
      model: The network that is trained.
      width: Channels of its first stage.
      batch_size: Images in a batch.
      images: Images that a feed alone delivers in a round.
      train_images: Images that the network is trained on in a round.
      rounds: Timed rounds; an untimed one comes before.
    """
    full = measure.synthetic(images)
    part = measure.synthetic(train_images)
    config = measure.training_config(model=model, width=width, batch_size=batch_size)
    alone = {
        name: _drain(feed_, images // batch_size)
        for name, feed_ in make_feeds(full.train, batch_size).items()
    }
    trained: dict[str, Callable[[], Any]] = {
        RESIDENT: measure.Training(config, part).run,
        **{
            name: measure.Training(config, part, feed_).run
            for name, feed_ in make_feeds(part.train, batch_size).items()
        },
    }
    feeding = measure.alternate(alone, rounds=rounds)
    training = measure.alternate(trained, rounds=rounds)
    batches, images_trained = (
        images // batch_size,
        train_images // batch_size * batch_size,
    )
    medians = {name: float(np.median(values)) for name, values in feeding.items()}
    return {
        "model": model,
        "width": width,
        "batch_size": batch_size,
        "images": images,
        "train_images": train_images,
        "rounds": rounds,
        "grain": importlib.metadata.version("grain") if has_grain() else None,
        "fastest_feed": min(medians, key=medians.__getitem__),
        "feeds": {
            name: {
                "batches_per_second": measure.quartiles(batches / feeding[name])
                if name in feeding
                else None,
                "images_per_second": measure.quartiles(images_trained / training[name]),
                "time_ratio": measure.ratio(training, name, RESIDENT),
            }
            for name in trained
        },
    }


def make_feeds(examples: data.Examples, batch_size: int) -> dict[str, feed.Feed]:
    """The feeds from the host."""
    feeds: dict[str, feed.Feed] = {NUMPY: feed.Host(examples, batch_size)}
    if has_grain():
        feeds[GRAIN] = Grain(examples, batch_size, whole_batches=False)
        feeds[GRAIN_BATCHES] = Grain(examples, batch_size, whole_batches=True)
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


def table(record: dict[str, Any]) -> Table:
    """The record as a table."""
    result = Table(
        Column("input", no_wrap=True),
        "feed alone (batches/s)",
        f"training {record['model']} (images/s)",
        "time / resident",
        title=f"Input in batches of {record['batch_size']}, {record['rounds']} rounds: "
        "median (quartiles)",
        caption=f"Fastest from the host: {record['fastest_feed']}."
        + ("" if record["grain"] else " Grain is not installed."),
    )
    for name, values in record["feeds"].items():
        alone = values["batches_per_second"]
        result.add_row(
            name,
            measure.quartiles_text(alone, ",.0f") if alone else "",
            measure.quartiles_text(values["images_per_second"], ",.0f"),
            measure.quartiles_text(values["time_ratio"]),
        )
    return result


def main() -> None:
    """Runs the benchmark, prints its table and writes its record."""
    fast = measure.on_accelerator()
    parser = measure.parser(__doc__, rounds=10)
    add = parser.add_argument
    add("--model", choices=models.NETWORKS, default="tiny")
    add("--width", type=int, default=64 if fast else 8)
    add("--batch-size", type=int, default=512 if fast else 128)
    add("--images", type=int, default=51_200, help="in a round")
    add(
        "--train-images",
        type=int,
        default=51_200 if fast else 2_560,
        help="trained on",
    )
    options = parser.parse_args()
    record = run(
        options.model,
        width=options.width,
        batch_size=options.batch_size,
        images=options.images,
        train_images=options.train_images,
        rounds=options.rounds,
    )
    Console(width=110).print(table(record))
    print("record:", measure.write_record("host_input", record, options.out))


if __name__ == "__main__":
    main()
