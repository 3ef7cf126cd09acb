"""Parts that benchmarks share: flags, data, a training step, timing, and records."""

import argparse
import inspect
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import models
from benchmarks import tables
from training import data, recipe
from training.data.pixels import normalize
from training.engine import networks, parallel
from training.engine.engine import means
from training.engine.feed import Feed
from training.run.provenance import provenance
from training.settings import config as config_lib
from training.settings.config import Config
from training.settings.methods import METHODS

# The optimizer of every training step here, in JAX and in PyTorch.
_OPTIMIZER = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
_CLASSES = 100
_FLAGS: dict[str, dict[str, Any]] = {
    "model": {"choices": list(models.NETWORKS), "help": "the network"},
    "width": {"help": "channels of the network's first stage"},
    # In float16 we scale the loss and PyTorch's step does not; float64 is for tests.
    "precision": {"choices": ["float32", "bfloat16"], "help": "the arithmetic"},
    "batch_size": {"help": "images in a step"},
    "methods": {"choices": list(METHODS), "help": "the methods of train.py"},
    "input": {"choices": ["resident", "host"], "help": "where the images are"},
    "device_batch": {"help": "images of a device in a step"},
    "steps_per_call": {"help": "training steps in a loop on the device"},
    "platform": {"choices": ["tpu", "cuda", "attached"], "help": "the target"},
    "topology": {"help": "the devices: v5e:2x2 (tpu), 1x1x4 (cuda), 4 or all"},
    "target_config": {"help": "for cuda: XLA's description of the GPU, a file"},
    "images": {"help": "training images that are resident on every device"},
    "steps": {"help": "training steps of an arm in a round"},
    "feed_steps": {"help": "batches that a feed alone delivers in a round"},
    "rounds": {"help": "timed rounds; an untimed one comes first"},
}


# -- Command line and records ----------------------------------------------------------


def main(
    name: str,
    doc: str | None,
    run: Callable[..., dict[str, Any]],
    *,
    on_accelerator: Mapping[str, Any] | None = None,
    split_cpu: bool = False,
) -> None:
    """A benchmark's command: runs it, prints its table and writes its record.

    Args:
      name: The benchmark.
      doc: Its description.
      run: Takes the flags as keyword arguments and returns what it measured. Its
        arguments and their defaults are the flags; see :func:`parser`.
      on_accelerator: Defaults that differ on an accelerator.
      split_cpu: Whether a CPU is as many devices as ``train.py`` makes of it for the
        batch size, the smallest if there are several.
    """
    flags = parser(doc, run, on_accelerator)
    options = vars(flags.parse_args())
    if split_cpu:  # before the first look at the devices
        size = int(np.min(options["batch_size"]))
        parallel.split_cpu(training_config(batch_size=size))
    if on_accelerator and jax.default_backend() != "cpu":
        flags.set_defaults(**on_accelerator)
        options = vars(flags.parse_args())
    out = options.pop("out")
    report(name, {**options, **run(**options)}, out)


def parser(
    doc: str | None,
    run: Callable[..., Any],
    on_accelerator: Mapping[str, Any] | None = None,
) -> argparse.ArgumentParser:
    """A parser of a benchmark's flags, see :func:`main`, and of ``--out``.

    They are its arguments with a default; one that is a tuple takes several values.
    """
    result = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, argument in inspect.signature(run).parameters.items():
        if argument.default is argument.empty:
            continue
        several = isinstance(argument.default, tuple)
        default = list(argument.default) if several else argument.default
        is_text = isinstance(default[0] if several else default, str)
        details = dict(_FLAGS[name])
        other = (on_accelerator or {}).get(name)
        details["help"] += f" (default: {default}"
        details["help"] += f"; on an accelerator: {other})" if other else ")"
        result.add_argument(
            f"--{name.replace('_', '-')}",
            default=default,
            type=str if is_text else _positive,
            nargs="+" if several else None,
            **details,
        )
    result.add_argument("--out", type=Path, help="where to write the record (JSON)")
    return result


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def report(name: str, record: Mapping[str, Any], out: Path | None) -> None:
    """Prints a record's table; writes it with hardware, versions and commit.

    Args:
      name: The benchmark.
      record: The flags, and what was measured.
      out: The file; by default that of this benchmark and kind of device.
    """
    path = out or tables.RECORDS / f"{name}-{jax.default_backend()}.json"
    record = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": parallel.cores(),
        # Averages over 1, 5 and 15 minutes, to show what else was running.
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        **provenance(),
        **record,
    }
    print(tables.show(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("record:", path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


# -- Training --------------------------------------------------------------------------


def synthetic(count: int) -> data.Dataset:
    """Images of the shape of CIFAR-100: a coarse pattern for each class, and noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(_CLASSES, size=count, dtype=np.int32)
    patterns = rng.integers(128, size=(_CLASSES, 4, 4, 3), dtype=np.uint8)
    images = rng.integers(128, size=(count, 32, 32, 3), dtype=np.uint8)
    images += patterns.repeat(8, axis=1).repeat(8, axis=2)[labels]
    train = data.Examples(images, labels)
    none = data.Examples(images[:0], labels[:0])
    return data.Dataset(
        name="synthetic",
        num_classes=_CLASSES,
        train=train,
        validation=none,
        test=none,
        mean=np.full(3, 0.5, np.float32),
        std=np.full(3, 0.2, np.float32),
        crop_padding=4,
        flips=True,
        label_names=tuple(map(str, range(_CLASSES))),
    )


def training_config(**fields: Any) -> Config:
    """A configuration: SGD at a constant rate, except for ``fields``."""
    plain = {"method": "sgd", "schedule": "constant", "warmup_epochs": 0.0, "epochs": 1}
    plain["average"] = "none"
    return config_lib.resolve(plain | _OPTIMIZER | fields)


class Training:
    """Training as ``train.py`` does it, without evaluation or records.

    Attributes:
      engine: The compiled program.
      parameters: How many parameters the network has.
      losses: Mean loss of each epoch so far.
    """

    def __init__(
        self, config: Config, dataset: data.Dataset, source: Feed | None = None
    ) -> None:
        """Compiles the program.

        Args:
          config: A complete configuration; see :func:`training_config`.
          dataset: The images; an epoch takes all complete batches.
          source: How they reach the step; by default as ``config.input`` says.
        """
        self.engine = recipe.build(config, dataset, source)
        self._state = self.engine.initial_state(0)
        self.parameters = sum(x.size for x in jax.tree.leaves(self._state.params))
        self.losses: list[float] = []

    def run(self) -> None:
        """Trains an epoch, and waits for it."""
        for call in self.engine.train_steps(self._state, 0, len(self.losses)):
            self._state = call.state
        self.losses.append(means(self._state.monitor.epoch)["loss"])


def make_loss(
    config: Config, dataset: data.Dataset
) -> tuple[Callable[[], Any], Callable[[Any, Any], Any]]:
    """A network's training loss on the first batch, without the trainer around it.

    Returns:
      ``init()``, which draws the network's variables, and
      ``loss_fn(params, batch_stats)``, which returns the mean cross-entropy of a
      training forward pass, in nats, and the new running statistics.
    """
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    pixels, labels = (jnp.asarray(x[: config.batch_size]) for x in dataset.train)
    dtype = jnp.dtype(config.precision)
    images = normalize(pixels, dataset.mean, dataset.std, dtype)

    def init() -> Any:
        return module.init(jax.random.key(0), images[:1], train=False)

    def loss_fn(params: Any, batch_stats: Any) -> Any:
        logits, changed = module.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed.get("batch_stats", {})

    return jax.jit(init), loss_fn


# -- Timing ----------------------------------------------------------------------------


def alternate(
    arms: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int | Mapping = 1
) -> dict[str, np.ndarray]:
    """Times each arm once a round, alternating, after an untimed round.

    A machine's speed drifts; ratios within a round drift much less than times.

    Args:
      arms: Functions of no arguments whose results can be waited for.
      rounds: How many rounds are timed.
      repeats: Calls of an arm in a round; one number, or one for each arm.

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


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}
