"""Runs that are killed, stopped, damaged: they go on as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import train
import training
from training import checkpoints, records
from training.checkpoints import Checkpoint, Checkpoints
from training.errors import RunError
from training.pauses import Stopped
from training.session import Session

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(tmp_path, number):
    """A real signal at a random moment of a run that saves and evaluates often."""
    path = tmp_path / "run"
    argv = ["--model", "tiny", "--width", "4", "--epochs", "2000", "--method", "sgd"]
    command = [sys.executable, "train.py", "--workdir", str(path), "--overwrite", *argv]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("epoch    3"):
            break
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    said, again = error.strip().splitlines()
    assert said == "train.py: stopped, and saved: go on with"
    # The very command, without what would begin anew.
    assert again.strip() == f"python train.py --workdir {path} {' '.join(argv)}"
    epochs = len(records.read_metrics(path))
    assert epochs >= 3
    _, variables, _ = training.load(path)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
    state = checkpoints.read(max((path / records.CHECKPOINTS).iterdir()))
    assert state.notes["epoch"] == epochs


# -- In one process --------------------------------------------------------------------

TINY = ["--model", "tiny", "--width", "4", "--batch-size", "128", "--method", "sgd"]


def stop_after(monkeypatch, epochs):
    """Lets runs stop as if asked to, after so many epochs."""
    end_epoch = Session.end_epoch

    def stopping(session, metrics):
        answer = end_epoch(session, metrics)
        if metrics["epoch"] == epochs:
            raise Stopped(signal.SIGINT)
        return answer

    monkeypatch.setattr(Session, "end_epoch", stopping)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped after three of four epochs."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert train.main([*TINY, "--epochs", "4", "--workdir", str(path)]) == 130
    return path


@pytest.fixture
def unfinished(stopped, tmp_path):
    """Flags of such a run, and its directory."""
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    return [*TINY, "--epochs", "4", "--workdir", str(path)], path


def test_a_signal_behind_the_last_question_is_not_lost(tmp_path, monkeypatch):
    """It comes while the first seed's last save is written: no second seed begins."""
    close = Checkpoints.close
    sessions = []
    init = Session.__init__

    def noted(session, *arguments):
        init(session, *arguments)
        sessions.append(session)

    def late(store):
        close(store)
        sessions[-1].pauses._note(signal.SIGTERM, None)

    argv = [*TINY, "--epochs", "1", "--seed", "0", "1", "--workdir", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "__init__", noted)
        patch.setattr(Checkpoints, "close", late)
        assert train.main(argv) == 128 + signal.SIGTERM
    assert len(sessions) == 1
    assert train.main(argv) == 0
    assert all((tmp_path / f"seed-{n}" / records.RESULT).exists() for n in (0, 1))


def saved(path):
    return sorted((path / records.CHECKPOINTS).iterdir())


def damage(path, how):
    """Damages a checkpoint; a word of what is found."""
    arrays = max((path / "arrays").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = arrays.read_bytes()
    match how:
        case "flipped byte":
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 1])
            arrays.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        case "truncated":
            arrays.write_bytes(content[:-1])
        case "missing file":
            arrays.unlink()
        case "missing manifest":
            (path / "manifest.json").unlink()
        case "garbled manifest":
            (path / "manifest.json").write_text("{")
        case "empty":
            shutil.rmtree(path)
            path.mkdir()


DAMAGES = [
    "flipped byte",
    "truncated",
    "missing file",
    "missing manifest",
    "garbled manifest",
    "empty",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_noticed_and_the_one_before_used(tmp_path, how, capsys):
    tree = {"w": np.arange(4000.0), "b": np.array(1, np.int32)}
    store = Checkpoints(tmp_path, keep=2)
    for name in ("a", "b"):
        store.save(name, Checkpoint(tree, {"name": name}))
    store.close()
    damage(tmp_path / "b", how)
    name, (_, notes) = store.newest(tree)
    assert name == notes["name"] == "a"
    error = capsys.readouterr().err
    assert f"{tmp_path / 'b'} is damaged" in error
    assert f"going on from {tmp_path / 'a'} instead" in error


def test_a_damaged_run_goes_on_from_the_checkpoint_before(unfinished, capsys):
    argv, path = unfinished
    older, newer = saved(path)
    damage(newer, "flipped byte")
    assert train.main(argv) == 0
    assert f"going on from {older} instead" in capsys.readouterr().err
    assert [m["epoch"] for m in records.read_metrics(path)] == [1, 2, 3, 4]
    for checkpoint in saved(path):
        checkpoints.verify(checkpoint)


def test_without_a_whole_checkpoint_a_sentence_and_nothing_lost(unfinished, capsys):
    argv, path = unfinished
    for checkpoint in saved(path):
        damage(checkpoint, "flipped byte")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert all(str(checkpoint) in error for checkpoint in saved(path))
    assert "--overwrite" in error
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_a_run_that_steps_back_keeps_what_it_saves_then(tmp_path):
    """Not the damaged checkpoint beyond, though that is the newest by its name."""
    tree = {"w": np.arange(3.0)}
    store = Checkpoints(tmp_path, keep=3)
    for name in ("a", "b", "d"):
        store.save(name, Checkpoint(tree, {}))
    store.close()
    damage(tmp_path / "d", "flipped byte")
    store = Checkpoints(tmp_path, keep=1)
    assert store.newest(tree)[0] == "b"
    store.save("c", Checkpoint(tree, {}))
    store.close()
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_removed_checkpoints_do_not_mean_a_new_run(unfinished, capsys):
    argv, path = unfinished
    shutil.rmtree(path / records.CHECKPOINTS)
    assert train.main(argv) == 2
    assert "checkpoints were removed" in capsys.readouterr().err
    assert len(records.read_metrics(path)) == 3
    assert training.load(path).config.model == "tiny"


def test_damaged_best_is_noticed(unfinished):
    _, path = unfinished
    damage(path / "best", "flipped byte")
    with pytest.raises(RunError, match="best is damaged"):
        training.load(path)


def test_a_missing_best_is_written_anew(unfinished):
    """Checkpoints hold it, too."""
    argv, path = unfinished
    shutil.rmtree(path / "best")
    assert train.main(argv) == 0
    assert training.load(path).config.model == "tiny"


def test_no_more_checkpoints_than_asked_for(tmp_path):
    path = tmp_path / "run"
    argv = [*TINY, "--epochs", "4", "--keep-checkpoints", "3"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    names = [f"epoch-{epoch:05d}-step-00000000" for epoch in (2, 3, 4)]
    assert [p.name for p in saved(path)] == names


def test_resume_can_be_refused_or_required(unfinished, tmp_path, capsys):
    argv, path = unfinished
    assert train.main([*argv, "--resume", "never"]) == 2
    assert "did not finish" in capsys.readouterr().err
    other = [*argv[:-1], str(tmp_path / "other"), "--resume", "required"]
    assert train.main(other) == 2
    assert "no run to go on with" in capsys.readouterr().err
    assert train.main([*argv, "--learning-rate", "0.01"]) == 2
    assert "learning_rate is 0.05 there and 0.01 here" in capsys.readouterr().err
    # How a run is conducted may change.
    argv = [*argv, "--keep-checkpoints", "1", "--on-nonfinite", "skip"]
    assert train.main([*argv, "--resume", "required"]) == 0
    assert "going on from" in capsys.readouterr().out
    assert len(saved(path)) == 1


def test_a_directory_in_use_is_refused(unfinished, capsys):
    argv, path = unfinished
    with filelock.FileLock(path / ".lock"):
        assert train.main(argv) == 2
    assert "in use by another run" in capsys.readouterr().err
    assert train.main(argv) == 0


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    argv = [*TINY, "--epochs", "4", "--workdir", str(path)]
    usage = shutil.disk_usage

    def full(place):
        free = 100 if "epoch-00003" in str(place) else usage(place).free
        return usage(place)._replace(free=free)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", full)
        assert train.main(argv) == 2
    assert "no space left" in capsys.readouterr().err
    for checkpoint in saved(path):
        checkpoints.verify(checkpoint)
    # With room again it goes on from what was saved.
    assert train.main(argv) == 0
    assert "going on from" in capsys.readouterr().out


def test_float64_and_structure_survive_a_save(tmp_path):
    """Bits of every dtype in a state, empty trees, and the names of a chain."""
    tree = {
        "a": (np.float64(1) / 3 * np.ones(3), optax.EmptyState()),
        "b": optax.TraceState({"w": np.array(7, np.int32)}),
        "c": np.array([1.5, -2], jnp.bfloat16.dtype),
        "d": {},
    }
    store = Checkpoints(tmp_path / "all", keep=1)
    store.save("one", Checkpoint(tree, {"x": [1.0, float("nan")]}))
    store.close()
    name, (read, notes) = Checkpoints(tmp_path / "all", keep=1).newest(tree)
    assert name == "one"
    assert np.isnan(notes["x"][1])
    assert jax.tree.structure(read) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    store.save("one", Checkpoint({"w": np.ones(3)}, {}))
    store.close()
    with pytest.raises(RunError, match="does not fit this version"):
        store.newest({"v": np.ones(3)})
