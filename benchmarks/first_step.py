"""Time to first step of ``train.py``, without and with a cache of compiled programs.

    python -m benchmarks.first_step
    python -m benchmarks.first_step --model googlenet --method amplify

Further flags are those of ``train.py``. It runs as a process, alternating: with an
empty cache of compiled programs, and again with the cache that the first process left.
Time is counted from the command to the line of the first epoch, which here is one step
and one evaluation. A process that only imports JAX and compiles a sum shows the least
time that is possible.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure

TRAIN = Path(__file__).parents[1] / "train.py"
FLOOR = "import jax; jax.block_until_ready(jax.jit(lambda x: x + 1)(1))"
# How the lines of its output begin that are waited for.
_COMPILING, _EPOCH = "compiling", "1/1 "


def start(flags: Sequence[str], folder: Path, name: str) -> dict[str, float]:
    """Trains one step in a new process.

    Args:
      flags: Further flags of ``train.py``.
      folder: Holds its cache and its work directory.
      name: The work directory's name.

    Returns:
      Seconds until it starts to compile, and until its first epoch ends.

    Raises:
      RuntimeError: If the program fails.
    """
    one_step = ["--epochs", "1", "--max-steps", "1", "--checkpoint-epochs", "0"]
    paths = ["--cache-dir", str(folder / "cache"), "--workdir", str(folder / name)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-u", TRAIN, *flags, *one_step, *paths],
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds: dict[str, float] = {}
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            for mark in (_COMPILING, _EPOCH):
                if line.lstrip().startswith(mark):
                    seconds.setdefault(mark, time.perf_counter() - started)
    if process.returncode or len(seconds) < 2:
        raise RuntimeError(f"train.py ended with {process.returncode}")
    return {"to_compiling": seconds[_COMPILING], "to_first_epoch": seconds[_EPOCH]}


def run(flags: Sequence[str], rounds: int = 3) -> dict[str, Any]:
    """Measures both arms; takes flags of ``train.py``, returns the figures."""
    arms: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    floor = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, seen in arms.items():
                seen.append(start(flags, Path(folder), name))
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", FLOOR], check=True)
        floor.append(time.perf_counter() - started)
    return {
        "flags": list(flags),
        "floor_seconds": measure.quartiles(np.array(floor)),
        "arms": {
            name: {
                key: measure.quartiles(np.array([one[key] for one in seen]))
                for key in seen[0]
            }
            for name, seen in arms.items()
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark, prints its table and writes its record."""
    options, flags = measure.parser(__doc__, run).parse_known_args(argv)
    record = {"rounds": options.rounds, **run(flags, options.rounds)}
    measure.report("first_step", record, options.out)


if __name__ == "__main__":
    main()
