"""Runs that are killed, stopped or damaged finish as if nothing had happened."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import train
import training
from tests.support import programs
from tests.support.killed_run import pass_by
from tests.support.runs import Killed, arrays, assert_same_run, saved
from training import recipe
from training.layout import File
from training.run import checkpoints
from training.run.checkpoints import read
from training.run.interrupts import Interrupts, acknowledged
from training.run.workdir import WorkDirectory, read_metrics
from training.settings import config

ROOT = Path(__file__).parents[3]
# Analysis, amplification, prediction and augmentation, a save after every step: all
# that a state can hold, and every position that it can be saved at.
STRATEGY = "[(1, 0.05, 0, 1), (4, 0.05, 1, 3.0), (5, 0.01, 0, 1)]"
NETWORK = ["--model=tiny", "--width=2", "--batch-size=256"]
EVERYTHING = [*NETWORK, "--augment", "--method=amplify+plp", "--strategy", STRATEGY]
EVERYTHING += ["--amplify-threshold=0.5", "--checkpoint-minutes=1e-6"]
EVERYTHING += ["--block-means=2"]
# What follows the validation loss, and an average that begins late.
STALLING = [*NETWORK, "--method=sgd", "--schedule=plateau", "--plateau-patience=1"]
STALLING += ["--early-stopping=3", "--average=ema", "--average-start=0.2", "--lr=20"]
STALLING += ["--checkpoint-minutes=1e-6"]
# The program of ``trained``, for more epochs.
TINY = [*NETWORK, "--method=sgd", "--learning-rate=0.5", "--warmup-epochs=0"]
TINY += ["--schedule=constant", "--epochs=4"]
# -- Simulated kills, in this process --------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The work directory of a run with these flags that nothing happened to."""
    path = tmp_path_factory.mktemp("uninterrupted")

    def made(argv):
        run = path / str(hash(tuple(argv)))
        argv = [*argv, "--workdir", str(run)]
        assert run.exists() or train.main(argv) == 0
        return run

    history = read_metrics(made(EVERYTHING))
    assert len(history) == 5
    assert history[2]["amplified"]
    means = made(EVERYTHING) / File.MEANS
    assert [int(path.stem[-1]) for path in sorted(means.iterdir())] == [2, 4, 5]
    assert len(read_metrics(made(STALLING))) < 30
    return made


# A run has at least 16 steps; a save of a best network and a checkpoint has 4
# positions.
@pytest.mark.parametrize(
    ("place", "last", "flags"),
    [
        ("step", 16, EVERYTHING),
        ("save", 60, EVERYTHING),
        ("evaluation", 8, STALLING),
    ],
    ids=["step", "save", "evaluation"],
)
def test_resumed_at_any_moment_is_bitwise_the_same(
    uninterrupted, tmp_path, place, last, flags
):
    """Several times in the same run, at random moments."""
    path = tmp_path / "run"
    argv = [*flags, "--workdir", str(path)]
    moments = np.random.default_rng().integers(1, last, 4)
    print("killed at passages", moments)
    killed = 0
    for moment in moments:
        passages = itertools.count(1)

        def kill(passages=passages, moment=moment):
            if next(passages) == moment:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            pass_by(patch, place, kill)
            try:
                recipe.train(config.parse(argv))
            except Killed:
                killed += 1
        if (path / File.RESULT).exists():  # it ended, or closed its files at least
            break
    assert killed
    assert train.main(argv) == 0
    assert_same_run(uninterrupted(flags), path)


# -- Real kills, in other processes ----------------------------------------------------


def run(path, *extra, killer=(), check=True, flags=EVERYTHING):
    """Runs the program in another process."""
    program = (
        ["tests/support/killed_run.py", *map(str, killer)] if killer else ["train.py"]
    )
    return subprocess.run(
        [sys.executable, *program, "--workdir", str(path), *flags, *extra],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=check,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("place", "number"), [("step", 7), ("save", 13)])
def test_killed_and_resumed_is_bitwise_the_same(tmp_path, place, number):
    path, whole = tmp_path / "run", tmp_path / "whole"
    run(whole)
    killed = run(path, killer=(place, number), check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (path / "result.json").exists()
    assert "resuming from" in run(path).stdout
    assert_same_run(whole, path)


# -- Signals, in this process ----------------------------------------------------------


def signal_after(patch, epoch, number=signal.SIGINT):
    """Sends this process a signal when a run has recorded an epoch."""
    add = WorkDirectory.add

    def signalling(directory, metrics):
        add(directory, metrics)
        if metrics["epoch"] == epoch:
            os.kill(os.getpid(), number)

    patch.setattr(WorkDirectory, "add", signalling)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after three of four epochs."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, 3)
        assert train.main([*TINY, "--workdir", str(path)]) == 130
    return path


@pytest.fixture
def unfinished(stopped, tmp_path):
    """Flags of such a run, and its directory."""
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    return [*TINY, "--workdir", str(path)], path


def test_a_signal_saves_and_says_how_to_resume(tmp_path, capsys, monkeypatch):
    """SIGTERM; ``stopped`` gets Ctrl-C."""
    path = tmp_path / "run"
    argv = [*TINY, "--checkpoint-epochs", "0", "--workdir", str(path)]
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        signal_after(patch, 2, signal.SIGTERM)
        assert train.main([*argv, "--overwrite"]) == 128 + signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    said, again = capsys.readouterr().err.strip().splitlines()[-2:]
    assert said == "train.py: stopped and saved: resume with"
    # The same command, without what would start again.
    assert again.strip() == f"python train.py {' '.join(argv)}"
    (checkpoint,) = saved(path)
    notes = read(checkpoint).notes
    assert notes["epoch"] == len(read_metrics(path)) == 2
    assert notes["step"] <= 1
    assert train.main([*argv, "--resume", "required"]) == 0
    assert f"resuming from {checkpoint}" in capsys.readouterr().out
    assert [m["epoch"] for m in read_metrics(path)] == [1, 2, 3, 4]


def test_a_signal_that_is_ignored_does_not_stop_a_run(tmp_path, monkeypatch):
    """As under nohup; otherwise it does."""
    number = signal.SIGHUP
    argv = [*TINY, "--workdir", str(tmp_path / "run")]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            signal_after(patch, 1, number)
            assert train.main([*argv, "--max-steps", "8", "--overwrite"]) == 0
        signal.signal(number, signal.SIG_DFL)
        with monkeypatch.context() as patch:
            signal_after(patch, 1, number)
            assert train.main([*argv, "--overwrite"]) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert len(saved(tmp_path / "run")) == 2


def test_a_signal_after_the_last_check_is_not_lost(tmp_path, monkeypatch):
    """It comes when the first seed's last test is over: no second seed begins."""
    check_last = Interrupts.check_last
    paths = [tmp_path / f"seed-{seed}" for seed in (0, 1)]

    def late(interrupts):
        os.kill(os.getpid(), signal.SIGTERM)
        check_last(interrupts)

    argv = [*TINY, "--max-steps", "8", "--seed", "0", "1", "--workdir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "check_last", late)
        assert train.main(argv) == 128 + signal.SIGTERM
    assert [(path / File.METRICS).exists() for path in paths] == [True, False]
    assert train.main(argv) == 0
    assert all((path / File.RESULT).exists() for path in paths)


def test_ctrl_c_is_acknowledged_while_the_main_thread_is_busy(capfd, monkeypatch):
    """At once and once; a second one ends the process."""
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in handled]
    try:
        with acknowledged():
            for count in (1, 2):
                os.kill(os.getpid(), signal.SIGINT)
                deadline = time.monotonic() + 20
                seen = ""
                while time.monotonic() < deadline:
                    seen += capfd.readouterr().err
                    if seen if count == 1 else exits:
                        break
                    time.sleep(0.01)
                if count == 1:
                    assert seen.strip().startswith("stopping as soon as")
                    assert not exits
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.2)
                    assert not capfd.readouterr().err
    finally:
        for number, action in zip(handled, before, strict=True):
            signal.signal(number, action)
    assert exits == [130]


# -- More epochs -----------------------------------------------------------------------

# What may not depend on the length of the run: warm-up, prediction, average, blocks.
LONGER = [*NETWORK, "--augment", "--schedule=constant", "--warmup-epochs=1.5"]
LONGER += ["--block-means=2"]


@pytest.mark.parametrize("result", [True, False], ids=["finished", "unfinished"])
def test_more_epochs_are_bitwise_those_of_a_longer_run(tmp_path, capsys, result):
    paths = tmp_path / "longer", tmp_path / "run"
    assert train.main([*LONGER, "--epochs", "4", "--workdir", str(paths[0])]) == 0
    argv = [*LONGER, "--workdir", str(paths[1]), "--epochs"]
    assert train.main([*argv, "2"]) == 0
    if not result:
        (paths[1] / File.RESULT).unlink()
    assert train.main([*argv, "4"]) == 0
    assert "resuming from" in capsys.readouterr().out
    assert_same_run(*paths)
    assert train.main([*argv, "2"]) == 2
    assert "epochs is 4 there and 2 here" in capsys.readouterr().err


def test_a_kill_between_the_records_of_more_epochs(tmp_path, monkeypatch):
    """The old result is never that of the new configuration."""
    argv = [*LONGER, "--workdir", str(tmp_path / "run"), "--epochs"]
    assert train.main([*argv, "2"]) == 0
    describe = WorkDirectory._describe

    def killed(directory, dataset):
        describe(directory, dataset)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(WorkDirectory, "_describe", killed)
        with pytest.raises(Killed):
            recipe.train(config.parse([*argv, "4"]))
    assert train.main([*argv, "4"]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 4


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--schedule", "cosine"], "the learning rate"),
        (["--warmup-epochs", "9"], "the learning rate"),
        (["--method", "ema-nesterov"], "--method or --average-start"),
        (["--average-start", "0.5"], "--method or --average-start"),
        (["--block-means", "4"], "the last block of --block-means"),
    ],
)
def test_more_epochs_of_another_run_are_refused(
    tmp_path, monkeypatch, capsys, flags, what
):
    path = tmp_path / "run"
    argv = [*LONGER, *flags, "--workdir", str(path), "--epochs"]
    with WorkDirectory(config.parse([*argv, "6"])[0]) as directory:
        directory.start(programs.DATASET)
    before = (path / File.CONFIG).read_bytes()
    monkeypatch.setattr(recipe, "build", None)  # before anything is compiled
    assert train.main([*argv, "8"]) == 2
    message = capsys.readouterr().err
    assert f"6 epochs is not the beginning of one of 8: {what} depends" in message
    assert (path / File.CONFIG).read_bytes() == before


# -- Damage ----------------------------------------------------------------------------


def test_a_damaged_run_is_resumed_from_the_checkpoint_before(unfinished, capsys):
    """Checkpoints hold the best epoch's variables, too."""
    argv, path = unfinished
    older, newer = saved(path)
    content = bytearray(newer.read_bytes())
    content[len(content) // 2] ^= 1
    newer.write_bytes(content)
    (path / File.BEST).unlink()
    assert train.main(argv) == 0
    output = capsys.readouterr()
    assert f"resuming from {older}" in output.out
    assert f"resuming from {older} instead" in output.err
    assert [m["epoch"] for m in read_metrics(path)] == [1, 2, 3, 4]
    for checkpoint in saved(path):
        checkpoints._verified(checkpoint)
    assert training.load(path).config.model == "tiny"


def test_the_best_network_is_written_again(trained, tmp_path):
    """Where a kill came between the last checkpoint and it."""
    path = Path(shutil.copytree(trained.path, tmp_path / "run"))
    for name in (File.RESULT, File.BEST):
        (path / name).unlink()
    assert train.main([*trained.argv, "--workdir", str(path)]) == 0
    assert arrays(path / File.BEST) == arrays(trained.path / File.BEST)


def test_checkpoints_of_another_run_are_refused(unfinished, tmp_path, capsys):
    """Of the same shapes, such as those of another seed."""
    argv, path = unfinished
    other = tmp_path / "other"
    assert train.main([*TINY, "--seed", "1", "--workdir", str(other)]) == 0
    shutil.rmtree(path / File.CHECKPOINTS)
    shutil.copytree(other / File.CHECKPOINTS, path / File.CHECKPOINTS)
    assert train.main(argv) == 2
    message = f"{saved(path)[-1]} is of another run than config.json"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoint", "metrics.jsonl"])
def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch, capsys, name):
    """Where there is space again, the run is resumed from what was saved."""
    path = tmp_path / "run"
    argv = [*TINY, "--workdir", str(path)]

    def fail(*_):
        raise OSError(28, "No space left on device")

    count = []

    def fail_in_the_third_epoch(descriptor, fsync=os.fsync):
        count.append(1)
        fail() if len(count) > 10 else fsync(descriptor)

    with monkeypatch.context() as patch:
        if name == "checkpoint":
            patch.setattr(os, "fsync", fail_in_the_third_epoch)
        else:
            patch.setattr(WorkDirectory, "_add_events", fail)
        assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert "No space left" in error
    assert "make room" in error
    assert error.count("\n") == 1
    for checkpoint in saved(path):
        checkpoints._verified(checkpoint)
    assert train.main(argv) == 0
    assert ("resuming from" in capsys.readouterr().out) == (name == "checkpoint")
    assert [m["epoch"] for m in read_metrics(path)] == [1, 2, 3, 4]


def test_checkpoints_are_as_many_and_as_often_as_asked_for(tmp_path):
    path = tmp_path / "run"
    argv = [*TINY, "--checkpoint-epochs", "3", "--keep-checkpoints", "9"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    assert [read(p).notes["epoch"] for p in saved(path)] == [3, 4]
    argv = [*TINY, "--keep-checkpoints", "1", "--overwrite", "--workdir", str(path)]
    assert train.main(argv) == 0
    assert [read(p).notes["epoch"] for p in saved(path)] == [4]
