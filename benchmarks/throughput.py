"""Training throughput compared with PyTorch.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --model resnet18 --precision float32 --rounds 20

Images per second of complete training steps (gather and normalise a batch that is on
the device, forward, backward, SGD with momentum and weight decay, running statistics)
for each network, precision and batch size. Where PyTorch is installed, the same network
and step run there in the same rounds, alternating: eager, and with torch.compile;
channels-last, bfloat16 by autocast, with as many threads as there are cores, or on the
GPU if JAX is. The JAX step also computes accuracy and two norms, as training does.
Compilation is not counted.

On a shared machine the medians favour JAX, because PyTorch's threads wait for each
other at every layer. So the ratio of the best rounds is given next to that of the
medians, and the record has the CPU time.

The upper bound is a product of two large matrices, timed in the same rounds in both
libraries: rates of arithmetic are fractions of the faster one's.

A CPU is as many JAX devices as ``train.py`` makes of it. On accelerators JAX uses all
local devices and PyTorch one: hide the others when comparing.
"""

import functools
import gc
import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from training import data
from training.engine import parallel
from training.settings.config import Config

MODELS = ("resnet18", "vgg16", "googlenet")  # PyTorch has these
OURS = "jax"
EAGER, COMPILED = PEERS = ("torch eager", "torch compiled")
# Where PyTorch runs when JAX runs there.
_TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def run(
    model: Sequence[str] = MODELS,
    precision: Sequence[str] = ("float32", "bfloat16"),
    batch_size: Sequence[int] = (128,),
    width: int = 16,
    steps: int = 1,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measures every combination; takes the flags, returns the figures."""
    absent = why_no_torch()
    torch = None if absent else importlib.import_module("benchmarks.torch_networks")
    settings = torch and torch.set_up(parallel.cores())
    cells = []
    for fields in itertools.product(model, precision, batch_size):
        names = ("model", "precision", "batch_size")
        cell: dict[str, Any] = dict(zip(names, fields, strict=True))
        print(*cell.values(), flush=True)
        config = measure.training_config(**cell, width=width)
        cells.append(cell | _measure(config, steps, rounds, torch))
    return {"torch": settings, "torch_absent": absent, "cells": cells}


def why_no_torch() -> str | None:
    """Why there can be no comparison, or None if there can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    if jax.default_backend() not in _TORCH_DEVICES:
        return f"PyTorch does not run on {jax.default_backend()} here"
    torch = importlib.import_module("torch")
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "the installed PyTorch does not see the GPU that JAX runs on"
    return None


def _measure(config: Config, steps: int, rounds: int, torch: Any) -> dict[str, Any]:
    """Measures one network, precision and batch size; ``torch`` may be None."""
    gc.collect()  # the networks before refer to themselves and hold their memory
    images = steps * config.batch_size
    dataset = measure.synthetic(images)
    ours = measure.Training(config, dataset)
    side = 2048 if jax.default_backend() == "cpu" else 8192
    arms: dict[str, Callable[[], Any]] = {OURS: ours.run}
    products = {"jax product": make_product(config.precision, side)}
    results: dict[str, dict[str, Any]] = {
        OURS: {"compile_seconds": ours.engine.compile_seconds}
    }
    if torch is not None and config.model in MODELS:
        device = _TORCH_DEVICES[jax.default_backend()]
        product = torch.make_product(config.precision, device, side)
        products["torch product"] = product
        for peer in PEERS:
            theirs = torch.TorchTraining(
                config, dataset, device=device, compiled=peer == COMPILED
            )
            if theirs.parameters != ours.parameters:
                raise RuntimeError(f"PyTorch's {config.model} is another network")
            try:
                results[peer] = {"compile_seconds": theirs.warm_up()}
            except Exception as error:  # such as no C++ compiler for torch.compile
                results[peer] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            else:
                arms[peer] = theirs.run
    cpu_seconds: dict[str, list[float]] = {name: [] for name in arms}

    def timed(name: str) -> None:
        start = time.process_time()
        arms[name]()
        cpu_seconds[name].append(time.process_time() - start)

    timed_arms = {name: functools.partial(timed, name) for name in arms}
    seconds = measure.alternate({**timed_arms, **products}, rounds=rounds)
    fastest = 2 * side**3 / min(seconds[name].min() for name in products)
    operations = count_operations(config, dataset)
    for name in arms:
        rate = images / seconds[name]
        cpu = float(np.median(cpu_seconds[name][1:]))  # the first round is untimed
        results[name] |= {
            "images_per_second": measure.quartiles(rate),
            "best_images_per_second": float(rate.max()),
            "of_product": operations * float(np.median(rate)) / fastest,
            "cpu_milliseconds_per_image": 1e3 * cpu / images,
        }
        if name != OURS:
            results[name] |= {
                "speedup": measure.quartiles(seconds[name] / seconds[OURS]),
                "best_speedup": float(seconds[name].min() / seconds[OURS].min()),
            }
    return {
        "parameters": ours.parameters,
        "operations_per_image": operations,
        "product_operations_per_second": fastest,
        "arms": results,
    }


def make_product(precision: str, side: int) -> Callable[[], Any]:
    """A product of two matrices of this side.

    A large one runs at about the highest rate that the device reaches.
    """
    matrix = jnp.ones((side, side), jnp.dtype(precision))
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(matrix, matrix))


def count_operations(config: Config, dataset: data.Dataset) -> float:
    """Floating-point operations of the loss and gradient of an image.

    As XLA counts them before optimisation; a multiply-add counts as two.
    """
    init, loss_fn = measure.make_loss(config, dataset)
    variables = jax.eval_shape(init)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    lowered = jax.jit(jax.grad(loss_fn, has_aux=True)).lower(params, batch_stats)
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"]) / config.batch_size


if __name__ == "__main__":
    measure.main(
        "throughput",
        __doc__,
        run,
        split_cpu=True,
        on_accelerator={
            "batch_size": [128, 512],
            "width": 64,
            "steps": 50,
            "rounds": 10,
        },
    )
