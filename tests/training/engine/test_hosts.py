"""Runs of several processes, as on several hosts: over loopback, two devices each."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from training.layout import File
from training.run import checkpoints, workdir

ROOT = Path(__file__).parents[3]
ARGV = [
    *("--model", "tiny", "--width", "4", "--batch-size", "128", "--augment"),
    *("--precision", "float64"),
]

pytestmark = pytest.mark.slow


def start(path, *flags, devices=2):
    return subprocess.Popen(
        [sys.executable, "train.py", "--workdir", str(path), *ARGV, *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two(path, *flags):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [
        start(
            path,
            *("--coordinator-address", f"localhost:{port}"),
            *("--num-processes", "2", "--process-id", str(number)),
            *flags,
        )
        for number in range(2)
    ]


def finish(processes):
    """Waits; returns exit codes and outputs."""
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def wait_for(process, start_of_line):
    for line in process.stdout:
        if line.strip().startswith(start_of_line):
            return
    raise AssertionError(f"ended without a line that starts with {start_of_line!r}")


def newest(path):
    return max((path / File.CHECKPOINTS).glob("*.msgpack"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process of four devices."""
    path = tmp_path_factory.mktemp("alone") / "run"
    (code,), (output,) = finish([start(path, "--epochs", "3", devices=4)])
    assert code == 0, output
    return path


@pytest.mark.parametrize("source", ["host", "resident"])
def test_two_processes_equal_one(alone, tmp_path, source):
    path = tmp_path / "run"
    codes, outputs = finish(start_two(path, "--epochs", "3", "--input", source))
    assert codes == [0, 0], outputs
    for a, b in zip(
        workdir.read_metrics(alone), workdir.read_metrics(path), strict=True
    ):
        del a["images_per_second"], b["images_per_second"]
        assert a == pytest.approx(b, rel=1e-9)
    found = [newest(p) for p in (alone, path)]
    assert found[0].name == found[1].name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        *(checkpoints.read(p).tree for p in found),
    )
    # The coordinator alone speaks.
    assert ["recorded in" in output for output in outputs] == [True, False]


def test_a_lost_process_ends_the_run_which_another_number_resumes(tmp_path):
    path = tmp_path / "run"
    flags = ("--epochs", "20", "--input", "host")
    processes = start_two(path, *flags, "--checkpoint-minutes", "1e-6")
    wait_for(processes[0], "2/20")
    processes[1].kill()
    processes[0].communicate(timeout=60)
    assert processes[0].returncode != 0
    processes[1].communicate()
    assert not (path / File.RESULT).exists()

    flags = (*flags, "--checkpoint-minutes", "15")
    codes, outputs = finish([start(path, *flags, devices=2)])
    assert codes == [0], outputs
    assert "resuming from" in outputs[0]
    assert [m["epoch"] for m in workdir.read_metrics(path)] == [*range(1, 21)]


def test_a_signal_to_one_process_stops_all_and_saves(tmp_path):
    path = tmp_path / "run"
    processes = start_two(path, "--epochs", "5000")
    wait_for(processes[0], "2/5000")
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert "stopped and saved: resume with" in outputs[0]
    assert newest(path).name > "epoch-00001"


def test_what_the_coordinator_refuses_ends_all(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    codes, outputs = finish(start_two(tmp_path, "--epochs", "1"))
    assert codes == [2, 2], outputs
    assert all("letter.txt" in output for output in outputs)
    assert not any("Traceback" in output for output in outputs)
