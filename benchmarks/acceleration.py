"""Mixed precision, gradient accumulation and host input, alone and together.

    python -m benchmarks.acceleration
    python -m benchmarks.acceleration --model tiny --width 8 --rounds 10

What "Accelerating Neural Network Training: A Brief Review" (arXiv 2312.10024)
combines, each compared with training without them, alternating in one run: time per
image, memory, and the loss after the same number of images of a synthetic task, in the
same order from the same initial parameters.

Memory is that of the compiled step's arguments and results (the state, and the data
set or a batch), and of its temporaries. Where a device reports its memory, the record
has the peak over all arms.
"""

from collections.abc import Callable
from typing import Any

import jax
from rich.console import Console
from rich.table import Column, Table

import models
from benchmarks import measure

NONE = "none"
ACCUMULATE = 4
TECHNIQUES: dict[str, dict[str, Any]] = {
    "mixed precision": {"precision": "bfloat16"},
    "gradient accumulation": {"accumulate": ACCUMULATE},
    "host input": {"input": "host"},
}
ARMS: dict[str, dict[str, Any]] = {
    NONE: {},
    **TECHNIQUES,
    "all together": {k: v for fields in TECHNIQUES.values() for k, v in fields.items()},
}


def run(
    model: str, *, width: int, batch_size: int, images: int, rounds: int
) -> dict[str, Any]:
    """Measures all arms; returns what the record holds.

    Args:
      model: The network.
      width: Channels of its first stage.
      batch_size: Images in a step.
      images: Images that an arm trains on in a round.
      rounds: Timed rounds; an untimed one comes before.
    """
    dataset = measure.synthetic(images)
    trainings = {
        name: measure.Training(
            measure.training_config(
                model=model, width=width, batch_size=batch_size, **fields
            ),
            dataset,
        )
        for name, fields in ARMS.items()
    }
    arms: dict[str, Callable[[], Any]] = {n: t.run for n, t in trainings.items()}
    seconds = measure.alternate(arms, rounds=rounds)
    in_round = images // batch_size * batch_size
    return {
        "model": model,
        "parameters": trainings[NONE].parameters,
        "width": width,
        "batch_size": batch_size,
        "accumulate": ACCUMULATE,
        "images": in_round * (rounds + 1),
        "rounds": rounds,
        "device_peak_bytes": _device_peak_bytes(),
        "arms": {
            name: {
                "microseconds_per_image": measure.quartiles(
                    1e6 * seconds[name] / in_round
                ),
                "time_ratio": measure.ratio(seconds, name, NONE),
                "held_bytes": training.held_bytes,
                "temporary_bytes": training.temporary_bytes,
                "first_loss": training.losses[0],
                "last_loss": training.losses[-1],
                "compile_seconds": training.program.compile_seconds,
            }
            for name, training in trainings.items()
        },
    }


def _device_peak_bytes() -> int | None:
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def table(record: dict[str, Any]) -> Table:
    """The record as a table."""
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
        f"{record['images']:,} images, {record['rounds']} rounds: median (quartiles)",
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


def main() -> None:
    """Runs the benchmark, prints its table and writes its record."""
    fast = measure.on_accelerator()
    parser = measure.parser(__doc__, rounds=10 if fast else 7)
    add = parser.add_argument
    add("--model", choices=models.NETWORKS, default="resnet18")
    add("--width", type=int, default=64 if fast else 16)
    add("--batch-size", type=int, default=512 if fast else 128)
    add("--images", type=int, default=51_200 if fast else 512, help="in a round")
    options = parser.parse_args()
    record = run(
        options.model,
        width=options.width,
        batch_size=options.batch_size,
        images=options.images,
        rounds=options.rounds,
    )
    Console(width=130).print(table(record))
    print("record:", measure.write_record("acceleration", record, options.out))


if __name__ == "__main__":
    main()
