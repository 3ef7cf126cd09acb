"""How long ``python train.py`` takes to its first step, without and with a cache.

    python -m benchmarks.startup
    python -m benchmarks.startup --model googlenet --method amplify

Runs whole processes, in turn: with an empty cache of compiled programs, and again with
the cache that this left. Time counts from the command to the line of the first epoch,
which is one step and one evaluation here. The peer is a process that does no more than
import JAX and compile a sum.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from benchmarks import measure

TRAIN = Path(__file__).parents[1] / "train.py"
FLOOR = "import jax; jax.block_until_ready(jax.jit(lambda x: x + 1)(1))"
# What a line of its output says is done.
_COMPILING, _EPOCH = "compiling", "epoch 1/1"


def start(flags: Sequence[str], place: Path, name: str) -> dict[str, float]:
    """Trains one step in a new process, with its cache in a place.

    Args:
      flags: Further flags of ``train.py``.
      place: A folder for its cache and its work directory.
      name: The work directory's.

    Returns:
      Seconds until it began to compile, and until its first epoch was over.

    Raises:
      RuntimeError: If it does not get so far.
    """
    own = ["--epochs", "1", "--max-steps", "1", "--checkpoint-epochs", "0"]
    where = ["--cache-dir", str(place / "cache"), "--workdir", str(place / name)]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", TRAIN, *flags, *own, *where],
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds: dict[str, float] = {}
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            for mark in (_COMPILING, _EPOCH):
                if line.startswith(mark):
                    seconds.setdefault(mark, time.perf_counter() - begun)
    if process.returncode or len(seconds) < 2:
        raise RuntimeError(f"train.py ended with {process.returncode}")
    return {"to_compiling": seconds[_COMPILING], "to_first_epoch": seconds[_EPOCH]}


def run(flags: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measures all arms; returns what the record holds."""
    arms: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    floor = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, seen in arms.items():
                seen.append(start(flags, Path(folder), name))
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", FLOOR], check=True)
        floor.append(time.perf_counter() - begun)
    return {
        "flags": list(flags),
        "rounds": rounds,
        "floor_seconds": measure.quartiles(np.array(floor)),
        "arms": {
            name: {
                key: measure.quartiles(np.array([one[key] for one in seen]))
                for key in seen[0]
            }
            for name, seen in arms.items()
        },
    }


def table(record: dict[str, Any]) -> Table:
    """The record as a table."""
    result = Table(
        Column("cache", no_wrap=True),
        "to compiling (s)",
        "to the end of the first epoch (s)",
        title=f"train.py {' '.join(record['flags'])}: start, {record['rounds']} "
        f"rounds: median (quartiles)",
        caption=f"{FLOOR}: {measure.tell(record['floor_seconds'], '.1f')} s",
    )
    for name, arm in record["arms"].items():
        result.add_row(name, *(measure.tell(told, ".1f") for told in arm.values()))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark, prints its table and writes its record."""
    parser = measure.parser(__doc__, rounds=3)
    options, flags = parser.parse_known_args(argv)
    record = run(flags, options.rounds)
    Console(width=110).print(table(record))
    print("record:", measure.write_record("startup", record, options.out))


if __name__ == "__main__":
    main()
