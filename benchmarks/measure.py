"""Training on made-up images, timing arms in turn, and writing records."""

import argparse
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from training import config as config_lib
from training import data, networks, optimizers, parallel, records
from training.config import Config
from training.feed import Feed, Host, Resident
from training.step import Preprocess, make_initial_state, make_train_step

RECORDS = Path(__file__).parent / "records"
CLASSES = 100
# Of every training step here, whichever library takes it.
OPTIMIZER = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def parser(doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A parser of the flags that every benchmark has."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--rounds", type=_positive, default=rounds)
    result.add_argument("--out", type=Path, help="where to write the record (JSON)")
    return result


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def on_accelerator() -> bool:
    """Whether JAX has something faster than the CPU; sizes follow."""
    return jax.default_backend() != "cpu"


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def synthetic(count: int) -> data.Dataset:
    """Images of the shape of CIFAR-100: coarse patterns, one a class, under noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=count, dtype=np.int32)
    patterns = rng.integers(128, size=(CLASSES, 4, 4, 3), dtype=np.uint8)
    images = rng.integers(128, size=(count, 32, 32, 3), dtype=np.uint8)
    images += patterns.repeat(8, axis=1).repeat(8, axis=2)[labels]
    train = data.Examples(images, labels)
    none = data.Examples(images[:0], labels[:0])
    return data.Dataset(
        name="synthetic",
        num_classes=CLASSES,
        train=train,
        validation=none,
        test=none,
        mean=np.full(3, 0.5, np.float32),
        std=np.full(3, 0.2, np.float32),
        crop_padding=4,
        flips=True,
        label_names=tuple(map(str, range(CLASSES))),
    )


class Training:
    """Training as ``train.py`` does it, compiled, without evaluation or records.

    Attributes:
      parameters: How many the network has.
      held_bytes: Memory of the compiled step's arguments and results: the state, and
        the batch or the data set.
      temporary_bytes: Memory that the step needs while it runs.
      compile_seconds: Time from nothing to a step that is ready to run.
      losses: Mean loss of each pass so far.
    """

    def __init__(
        self, config: Config, dataset: data.Dataset, feed: Feed | None = None
    ) -> None:
        """Compiles the step.

        Args:
          config: A complete configuration; see :func:`training_config`.
          dataset: The images; a pass takes all whole batches.
          feed: How they reach the step; by default as ``config.input`` says.
        """
        start = time.perf_counter()
        self._steps = len(dataset.train.labels) // config.batch_size
        if feed is None and config.input == "host":
            feed = Host(dataset.train, config.batch_size)
        per_call = self._steps if on_accelerator() else 1
        self._feed = feed or Resident(dataset.train, config.batch_size, per_call)
        schedule = optimizers.make_schedule(
            config, steps_per_epoch=self._steps, total_steps=self._steps
        )
        tx = optimizers.make_optimizer(config, schedule, steps_per_epoch=self._steps)
        module = networks.make_network(
            config, dataset.num_classes, axis_name=parallel.AXIS
        )
        dtype = networks.DTYPES[config.precision]
        preprocess = Preprocess(
            dataset.mean, dataset.std, dtype, dataset.crop_padding, dataset.flips
        )
        step = make_train_step(
            module,
            tx,
            preprocess,
            augment=config.augment,
            accumulate=config.accumulate,
            unroll=not on_accelerator(),
        )
        shape = dataset.train.images.shape[1:]
        self._state = make_initial_state(module, tx, shape, dtype)(jax.random.key(0))
        self._call = parallel.compile_step(
            self._feed.wrap(step),
            self._state,
            *next(self._feed.calls(0, 0, range(1))).arguments,
            donate=True,
        )
        compiled: Any = self._call
        memory = compiled.memory_analysis()
        self.held_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.temporary_bytes = memory.temp_size_in_bytes
        self.parameters = sum(x.size for x in jax.tree.leaves(self._state.params))
        self.compile_seconds = time.perf_counter() - start
        self.losses: list[float] = []

    def run(self) -> None:
        """Trains one pass over the images, and waits for it."""
        under_way: deque[jax.Array] = deque()
        total = 0.0
        for call in self._feed.calls(0, len(self.losses), range(self._steps)):
            self._state, metrics = self._call(self._state, *call.arguments)
            under_way.append(metrics["loss"])
            if len(under_way) > 2:  # as in training: the host stays near
                total += float(under_way.popleft())
        total += sum(float(loss) for loss in under_way)
        self.losses.append(total / self._steps)


def training_config(**fields: Any) -> Config:
    """SGD with momentum and weight decay at a constant rate, but for ``fields``."""
    plain = {"method": "sgd", "schedule": "constant", "warmup_epochs": 0.0, "epochs": 1}
    return config_lib.resolve(plain | OPTIMIZER | fields)


def count_operations(config: Config, dataset: data.Dataset) -> float:
    """Floating-point operations of an image's loss and gradient.

    As XLA counts them before it optimises; a multiplication and its addition are two.
    """
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    shape = (config.batch_size, *dataset.train.images.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: module.init(key, x, train=False), images)

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> Any:
        logits, _ = module.apply(
            {**rest, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params = variables.pop("params")
    lowered = jax.jit(jax.grad(loss)).lower(params, variables, images, labels)
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"]) / config.batch_size


def make_product(precision: str, side: int) -> Callable[[], Any]:
    """A product of two matrices of this side.

    The pace of a large one is about the best that the device has to offer.
    """
    matrix = jnp.ones((side, side), networks.DTYPES[precision])
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(matrix, matrix))


def alternate(
    arms: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int | Mapping = 1
) -> dict[str, np.ndarray]:
    """Times each arm once a round, all in turn, after an untimed round.

    A machine's speed drifts; ratios of arms within a round drift much less than
    times.

    Args:
      arms: Functions of no arguments whose results can be waited for.
      rounds: How many rounds are timed.
      repeats: Calls of an arm in a round; one number, or one an arm.

    Returns:
      For each arm the seconds of a call, one value a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds + 1):
        for name, arm in arms.items():
            calls = repeats if isinstance(repeats, int) else repeats[name]
            start = time.perf_counter()
            for _ in range(calls):
                result = arm()
            jax.block_until_ready(result)
            if round_:
                seconds[name].append((time.perf_counter() - start) / calls)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(seconds: Mapping[str, np.ndarray], arm: str, peer: str) -> dict[str, float]:
    """Median and quartiles of an arm's time over a peer's, round by round."""
    return quartiles(seconds[arm] / seconds[peer])


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def tell(values: Mapping[str, float], format_: str = ".2f") -> str:
    """Quartiles for a table, the median first."""
    median, low, high = (format(values[k], format_) for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def write_record(name: str, fields: Mapping[str, Any], out: Path | None) -> Path:
    """Writes a record with hardware, versions and commit beside the figures."""
    path = out or RECORDS / f"{name}-{jax.default_backend()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": cores(),
        # What else ran meanwhile shows here: averages over 1, 5 and 15 minutes.
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        **records.provenance(),
        **fields,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
