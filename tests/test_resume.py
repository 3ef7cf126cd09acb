"""Runs that are killed, stopped, damaged: they go on as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import train
from training import checkpoints, records
from training.checkpoints import Checkpoint, Checkpoints

ROOT = Path(__file__).parent.parent
# Analysis, amplification and prediction, a save after every step: all that a state
# can hold, and every position that it can be saved at.
STRATEGY = "[(1, 0.05, 0, 1), (4, 0.05, 1, 3.0), (5, 0.01, 0, 1)]"
ARGV = [
    *("--model", "tiny", "--width", "8", "--batch-size", "256", "--augment"),
    *("--method", "amplify+plp", "--strategy", STRATEGY),
    *("--amplify-threshold", "0.5", "--checkpoint-minutes", "1e-6"),
]
TIMES = {"images_per_second", "train_seconds"}


def run(workdir, *extra, killer=(), check=True):
    """Runs the program in a process of its own."""
    program = ["tests/killed_run.py", *map(str, killer)] if killer else ["train.py"]
    return subprocess.run(
        [sys.executable, *program, "--workdir", str(workdir), *ARGV, *extra],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=check,
    )


def newest(workdir):
    """Every array of the newest checkpoint, by its place, as bytes."""
    path = max((workdir / records.CHECKPOINTS).iterdir())
    tree = checkpoints.read(path).tree
    return {
        jax.tree_util.keystr(place): (x.dtype, x.shape, np.asarray(x).tobytes())
        for place, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def without_times(fields):
    return {name: value for name, value in fields.items() if name not in TIMES}


def assert_same_run(a, b):
    """Bitwise the same state and best network; the same records, times apart."""
    assert newest(a) == newest(b)
    for x, y in zip(
        jax.tree.leaves(checkpoints.read(a / "best").tree),
        jax.tree.leaves(checkpoints.read(b / "best").tree),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    histories = [[*map(without_times, records.read_metrics(path))] for path in (a, b)]
    assert histories[0] == histories[1]
    results = [
        without_times(json.loads((path / "result.json").read_text())) for path in (a, b)
    ]
    assert results[0] == results[1]
    assert (a / "layers.txt").read_text() == (b / "layers.txt").read_text()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing happened to."""
    path = tmp_path_factory.mktemp("reference") / "run"
    run(path)
    assert len(records.read_metrics(path)) == 5
    return path


@pytest.mark.parametrize(
    ("place", "number"),
    [("step", 1), ("step", 7), ("save", 12), ("evaluation", 5), ("evaluation", 11)],
    ids=lambda x: str(x),
)
def test_killed_and_resumed_is_bitwise_the_same(reference, tmp_path, place, number):
    path = tmp_path / "run"
    killed = run(path, killer=(place, number), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (path / "result.json").exists()
    resumed = run(path)
    started = [line for line in resumed.stdout.splitlines() if "going on" in line]
    assert bool(started) == ((place, number) != ("step", 1))
    assert_same_run(reference, path)


def test_killed_at_random_moments(reference, tmp_path):
    path = tmp_path / "run"
    random = np.random.default_rng()
    moments = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "train.py", "--workdir", str(path), *ARGV],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        line = ""
        for line in process.stdout:
            if line.startswith(("compiling", "going on")):
                break
        moments.append(random.uniform(0, 2))
        time.sleep(moments[-1])
        process.kill()
        process.communicate()
    print("killed so many seconds after the start of training:", moments)
    run(path)
    assert_same_run(reference, path)
