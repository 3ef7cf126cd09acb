"""Training on synthetic images, timing alternating arms, and writing records."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from training import config as config_lib
from training import data, networks, recipe
from training.config import Config
from training.feed import Feed
from training.program import means
from training.provenance import provenance

RECORDS = Path(__file__).parent / "records"
CLASSES = 100
# The optimizer of every training step here, in JAX and in PyTorch.
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
    """Training as ``train.py`` does it, without evaluation or records.

    Attributes:
      program: The compiled program.
      parameters: How many parameters the network has.
      held_bytes: Memory of the compiled step's arguments and results: the state, and
        the batch or the data set.
      temporary_bytes: Memory that the step needs while it runs.
      losses: Mean loss of each pass so far.
    """

    def __init__(
        self, config: Config, dataset: data.Dataset, source: Feed | None = None
    ) -> None:
        """Compiles the program.

        Args:
          config: A complete configuration; see :func:`training_config`.
          dataset: The images; a pass takes all whole batches.
          source: How they reach the step; by default as ``config.input`` says.
        """
        self.program = recipe.build(config, dataset, source)
        self._state = self.program.initial_state(0)
        memory = self.program.train_call.memory_analysis()
        self.held_bytes = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
        )
        self.temporary_bytes = memory.temp_size_in_bytes
        self.parameters = sum(x.size for x in jax.tree.leaves(self._state.params))
        self.losses: list[float] = []

    def run(self) -> None:
        """Trains one pass over the images, and waits for it."""
        for call in self.program.train_epoch(self._state, 0, len(self.losses)):
            self._state = call.state
        self.losses.append(means(self._state.monitor.epoch)["loss"])


def training_config(**fields: Any) -> Config:
    """SGD with momentum and weight decay at a constant rate, but for ``fields``."""
    plain = {"method": "sgd", "schedule": "constant", "warmup_epochs": 0.0, "epochs": 1}
    return config_lib.resolve(plain | OPTIMIZER | fields)


def count_operations(config: Config, dataset: data.Dataset) -> float:
    """Floating-point operations of the loss and gradient of an image.

    As XLA counts them before optimisation; a multiply-add counts as two.
    """
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    shape = (config.batch_size, *dataset.train.images.shape[1:])
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    variables = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False), images
    )

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> Any:
        return training_loss(module, {**rest, "params": params}, images, labels)[0]

    params = variables.pop("params")
    lowered = jax.jit(jax.grad(loss)).lower(params, variables, images, labels)
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"]) / config.batch_size


def training_loss(
    module: nn.Module, variables: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Any]:
    """Mean cross-entropy of a training forward pass, and the new running statistics."""
    logits, changed = module.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), changed.get("batch_stats", {})


def make_product(precision: str, side: int) -> Callable[[], Any]:
    """A product of two matrices of this side.

    A large one runs at about the highest rate that the device reaches.
    """
    matrix = jnp.ones((side, side), networks.DTYPES[precision])
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(matrix, matrix))


def alternate(
    arms: Mapping[str, Callable[[], Any]], *, rounds: int, repeats: int | Mapping = 1
) -> dict[str, np.ndarray]:
    """Times each arm once a round, alternating, after an untimed round.

    A machine's speed drifts; ratios within a round drift much less than times.

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


def quartiles_text(values: Mapping[str, float], format_: str = ".2f") -> str:
    """Quartiles as text, the median first."""
    median, low, high = (format(values[k], format_) for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def write_record(name: str, fields: Mapping[str, Any], out: Path | None) -> Path:
    """Writes a record of figures, hardware, versions and commit."""
    path = out or RECORDS / f"{name}-{jax.default_backend()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": cores(),
        # Averages over 1, 5 and 15 minutes, to show what else was running.
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        **provenance(),
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
