"""Training throughput compared with PyTorch.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --models resnet18 --precisions float32 --rounds 20

Images per second of complete training steps (gather and normalise a batch that is on
the device, forward, backward, SGD with momentum and weight decay, running
statistics), for each network, precision and batch size. Where PyTorch is installed,
the same network and step run there in the same rounds, alternating: eager, and with
torch.compile; channels-last, bfloat16 by autocast, with as many threads as there are
cores, or on the GPU if JAX is. The JAX step also computes accuracy and two norms, as
training does. Compilation is not counted.

On a shared machine the medians favour JAX, because PyTorch's threads wait for each
other at every layer. So the ratio of the best rounds is given next to that of the
medians, and the record has the CPU time.

The upper bound is given by a large matrix product, timed in the same rounds in both
libraries: rates of arithmetic are fractions of the faster one's.

JAX uses all local devices and PyTorch one: hide the others when comparing.
"""

import functools
import gc
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks import measure

MODELS = ("resnet18", "vgg16", "googlenet")
PRECISIONS = ("float32", "bfloat16")
OURS = "jax"
PEERS = ("torch eager", "torch compiled")
# Where PyTorch runs when JAX runs there.
_TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def run(
    models: Sequence[str],
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    *,
    width: int,
    rounds: int,
    steps: int,
    peers: Sequence[str] = PEERS,
) -> dict[str, Any]:
    """Measures every combination; returns what the record holds.

    Args:
      models: Networks, of ``MODELS``.
      precisions: Of ``PRECISIONS``.
      batch_sizes: Images in a step.
      width: Channels of the networks' first stage.
      rounds: Timed rounds of a combination.
      steps: Training steps of an arm in a round.
      peers: What to compare with, of ``PEERS``.
    """
    absent = _why_no_torch() if peers else "not asked for"
    torch_settings = None
    if not absent:
        from benchmarks import torch_networks

        torch_settings = torch_networks.set_up(measure.cores())
    cells = [
        _measure(
            *(model, precision, batch_size, width, rounds, steps),
            peers=() if absent else peers,
        )
        for model in models
        for precision in precisions
        for batch_size in batch_sizes
    ]
    return {
        "width": width,
        "rounds": rounds,
        "steps": steps,
        "torch": torch_settings,
        "torch_absent": absent,
        "cells": cells,
    }


def _measure(
    model: str,
    precision: str,
    batch_size: int,
    width: int,
    rounds: int,
    steps: int,
    *,
    peers: Sequence[str],
) -> dict[str, Any]:
    """Measures one network, precision and batch size."""
    print(f"{model}, {precision}, batch {batch_size}", flush=True)
    gc.collect()  # the networks before refer to themselves and hold their memory
    dataset = measure.synthetic(steps * batch_size)
    config = measure.training_config(
        model=model, width=width, precision=precision, batch_size=batch_size
    )
    ours = measure.Training(config, dataset)
    arms: dict[str, Callable[[], Any]] = {OURS: ours.run}
    results: dict[str, dict[str, Any]] = {
        OURS: {"compile_seconds": ours.program.compile_seconds}
    }
    side = 8192 if measure.on_accelerator() else 2048
    products = {"jax product": measure.make_product(precision, side)}
    for peer in peers:
        from benchmarks import torch_networks

        device = _TORCH_DEVICES[jax.default_backend()]
        torch_product = torch_networks.make_product(precision, device, side)
        products["torch product"] = torch_product
        theirs = torch_networks.Training(
            model,
            dataset,
            width=width,
            batch_size=batch_size,
            precision=precision,
            optimizer=measure.OPTIMIZER,
            device=device,
            compiled=peer == "torch compiled",
        )
        if theirs.parameters != ours.parameters:
            raise RuntimeError(f"PyTorch's {model} is another network")
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

    seconds = measure.alternate(
        {
            **{name: functools.partial(timed, name) for name in arms},
            **products,
        },
        rounds=rounds,
    )
    fastest = 2 * side**3 / min(seconds[name].min() for name in products)
    operations = measure.count_operations(config, dataset)
    images = steps * batch_size
    for name in arms:
        values = seconds[name]
        results[name]["images_per_second"] = measure.quartiles(images / values)
        results[name]["best_images_per_second"] = float(images / values.min())
        pace = operations * results[name]["images_per_second"]["median"]
        results[name]["of_product"] = pace / fastest
        cpu = float(np.median(cpu_seconds[name][1:]))  # the first round is untimed
        results[name]["cpu_milliseconds_per_image"] = 1e3 * cpu / images
        if name != OURS:
            results[name]["speedup"] = measure.ratio(seconds, name, OURS)
            best = values.min() / seconds[OURS].min()
            results[name]["best_speedup"] = float(best)
    return {
        "model": model,
        "parameters": ours.parameters,
        "operations_per_image": operations,
        "product_operations_per_second": fastest,
        "precision": precision,
        "batch_size": batch_size,
        "arms": results,
    }


def _why_no_torch() -> str | None:
    """Why there can be no comparison, or None if there can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    if jax.default_backend() not in _TORCH_DEVICES:
        return f"PyTorch is not run on {jax.default_backend()}"
    torch = importlib.import_module("torch")

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "the installed PyTorch does not see the GPU that JAX runs on"
    return None


def table(record: dict[str, Any]) -> Table:
    """The record as a table."""
    fastest: dict[str, float] = {}
    for cell in record["cells"]:
        pace = cell["product_operations_per_second"] / 1e9
        fastest[cell["precision"]] = max(pace, fastest.get(cell["precision"], 0))
    rates = ", ".join(
        f"{pace:,.0f} GFLOP/s in {name}" for name, pace in fastest.items()
    )
    peers = () if record["torch_absent"] else PEERS
    names = [
        *("network", "precision", "batch", OURS),
        *(name for peer in peers for name in (peer, "JAX / PyTorch", "best rounds")),
    ]
    result = Table(
        *(Column(name, no_wrap=True) for name in names),
        title=f"Training throughput, width {record['width']}, {record['rounds']} "
        f"rounds: images/s, median (quartiles), and of a matrix product's pace\n"
        f"(at most {rates}); ratios of the medians and of the best rounds",
        caption=record["torch_absent"] and f"No PyTorch: {record['torch_absent']}.",
    )
    for cell in record["cells"]:
        arms = cell["arms"]
        row = [cell["model"], cell["precision"], str(cell["batch_size"])]
        row.append(_pace(arms[OURS]))
        for peer in peers:
            arm = arms.get(peer, {})
            if "failed" in arm:
                row += ["failed", "", ""]
            elif arm:
                best = f"{arm['best_speedup']:.2f}"
                row += [_pace(arm), measure.quartiles_text(arm["speedup"]), best]
            else:
                row += ["", "", ""]
        result.add_row(*row)
    return result


def _pace(arm: dict[str, Any]) -> str:
    images = measure.quartiles_text(arm["images_per_second"], ",.0f")
    return f"{images}, {arm['of_product']:.0%}"


def main() -> None:
    """Runs the benchmark, prints its table and writes its record."""
    fast = measure.on_accelerator()
    parser = measure.parser(__doc__, rounds=10 if fast else 5)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    # In float16 we scale the loss and PyTorch's step does not; float64 is for tests.
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    add("--batch-sizes", nargs="+", type=int, default=[128, 512] if fast else [128])
    add("--width", type=int, default=64 if fast else 16)
    add("--steps", type=int, default=50 if fast else 1, help="of an arm in a round")
    add("--peers", nargs="*", choices=PEERS, default=PEERS)
    options = parser.parse_args()
    record = run(
        options.models,
        options.precisions,
        options.batch_sizes,
        width=options.width,
        rounds=options.rounds,
        steps=options.steps,
        peers=options.peers,
    )
    Console(width=200).print(table(record))
    print("record:", measure.write_record("throughput", record, options.out))


if __name__ == "__main__":
    main()
