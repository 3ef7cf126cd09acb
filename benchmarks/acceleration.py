"""Mixed precision, gradient accumulation and host input, alone and together.

    python -m benchmarks.acceleration
    python -m benchmarks.acceleration --model tiny --width 8 --rounds 10

The techniques that "Accelerating Neural Network Training: A Brief Review" (arXiv
2312.10024) combines, each compared with training without them, alternating in one run:
time per image, memory, and the loss after the same number of images of a synthetic
task, in the same order from the same initial parameters.

Memory is that of the compiled step's arguments and results (the state, and the data
set or a batch), and of its temporaries. Where a device reports its memory, the record
has the peak over all arms.
"""

from collections.abc import Callable
from typing import Any

import jax
from rich.table import Column, Table

from benchmarks import measure

NONE = "none"
ACCUMULATE = 4
TECHNIQUES: dict[str, dict[str, Any]] = {
    "mixed precision": {"precision": "bfloat16"},
    "gradient accumulation": {"batch_parts": ACCUMULATE},
    "host input": {"input": "host"},
}
ARMS: dict[str, dict[str, Any]] = {
    NONE: {},
    **TECHNIQUES,
    "all together": {k: v for fields in TECHNIQUES.values() for k, v in fields.items()},
}


def run(
    model: str, width: int, batch_size: int, steps: int, rounds: int
) -> dict[str, Any]:
    """Measures all arms; takes the flags, returns the figures."""
    images = steps * batch_size
    dataset = measure.synthetic(images)
    network = {"model": model, "width": width, "batch_size": batch_size}
    trainings = {
        name: measure.Training(measure.training_config(**network, **fields), dataset)
        for name, fields in ARMS.items()
    }
    arms: dict[str, Callable[[], Any]] = {n: t.run for n, t in trainings.items()}
    seconds = measure.alternate(arms, rounds=rounds)
    statistics = jax.local_devices()[0].memory_stats() or {}
    return {
        "parameters": trainings[NONE].parameters,
        "accumulate": ACCUMULATE,
        "device_peak_bytes": statistics.get("peak_bytes_in_use"),
        "arms": {
            name: {
                "microseconds_per_image": measure.quartiles(
                    1e6 * seconds[name] / images
                ),
                "time_ratio": measure.quartiles(seconds[name] / seconds[NONE]),
                **_memory(training),
                "first_loss": training.losses[0],
                "last_loss": training.losses[-1],
                "compile_seconds": training.program.compile_seconds,
            }
            for name, training in trainings.items()
        },
    }


def _memory(training: measure.Training) -> dict[str, int]:
    memory = training.program.train_call.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "held_bytes": held - memory.alias_size_in_bytes,  # the state counts once
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def table(record: dict[str, Any]) -> Table:
    """The record as a table."""
    images = record["steps"] * record["batch_size"] * (record["rounds"] + 1)
    result = Table(
        Column("with", no_wrap=True),
        "time per image (us)",
        "time / none",
        "held (MB)",
        "temporaries (MB)",
        "first loss",
        "last loss",
        title=f"{record['model']}, {record['parameters']:,} parameters, batch "
        f"{record['batch_size']} ({record['accumulate']} parts if accumulated), "
        f"{images:,} images, {record['rounds']} rounds: median (quartiles)",
    )
    for name, arm in record["arms"].items():
        result.add_row(
            name,
            measure.quartiles_text(arm["microseconds_per_image"], ",.1f"),
            measure.quartiles_text(arm["time_ratio"]),
            f"{arm['held_bytes'] / 1e6:,.1f}",
            f"{arm['temporary_bytes'] / 1e6:,.1f}",
            f"{arm['first_loss']:.3f}",
            f"{arm['last_loss']:.3f}",
        )
    return result


if __name__ == "__main__":
    FAST = measure.on_accelerator()
    measure.main(
        "acceleration",
        __doc__,
        run,
        table,
        model="resnet18",
        width=64 if FAST else 16,
        batch_size=512 if FAST else 128,
        steps=100 if FAST else 4,
        rounds=10 if FAST else 7,
    )
