"""Work directories: what they hold, what they refuse, and what they keep."""

import dataclasses
import errno
import json
from pathlib import Path

import filelock
import numpy as np
import pytest

from tests.support.bad_inputs import contents
from training import data
from training.errors import RunError
from training.layout import File
from training.run.checkpoints import Checkpoint, Checkpoints, write
from training.run.workdir import WorkDirectory, read_metrics
from training.settings.config import identity, resolve

RESULT = {
    **{"best_epoch": 1, "epochs": 2},
    **dict.fromkeys(("validation_loss", "test_loss", "test_accuracy"), 0.5),
    **dict.fromkeys(("test_top1_error", "test_top5_error", "train_seconds"), 0.5),
    "device": "1 x cpu",
}
METRICS = {"epoch": 1, "train_loss": 0.5, "validation_loss": float("nan")}


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


@pytest.fixture
def config(tmp_path):
    return resolve({"model": "tiny", "workdir": str(tmp_path / "run")})


@pytest.fixture
def started(config, dataset):
    """The configuration of a run that has recorded an epoch, without a checkpoint."""
    with WorkDirectory(config) as directory:
        directory.start(dataset)
        directory.add(METRICS)
    return config


@pytest.fixture
def saved(started):
    """The configuration of a run with two checkpoints."""
    path = directory_of(started)
    for step in (3, 5):
        save(path, step, np.full(4, step))
    (path / File.BEST).write_bytes(b"best")
    return started


def directory_of(config):
    path = Path(config.workdir)
    path.mkdir(exist_ok=True)
    return path


def save(path, step, array, keep=2):
    checkpoint = Checkpoint({"x": array}, {"step": step})
    Checkpoints(path / File.CHECKPOINTS, keep).save(0, step, checkpoint)


def refusal(config):
    """The message with which a work directory is refused; no file changes."""
    before = contents(config.workdir)
    with pytest.raises(RunError) as error:
        WorkDirectory(config)
    lock = {Path(config.workdir, ".lock"): b""}  # which may be new
    assert contents(config.workdir) | lock == before | lock
    assert "\n" not in str(error.value)
    return str(error.value)


def names(path):
    return {p.name for p in path.iterdir()} - {".lock"}


# -- What a run records ----------------------------------------------------------------


def test_a_new_directory_is_described(config, dataset):
    with WorkDirectory(config) as directory:
        assert directory.result is None
        assert not directory.is_unfinished
        assert not names(directory.path)
        directory.start(dataset)
        directory.add(METRICS)
    path = directory.path
    assert names(path) == {
        "config.json",
        "dataset.json",
        "metrics.jsonl",
        "tensorboard",
    }
    assert json.loads((path / File.CONFIG).read_text()) == identity(config)
    fields = json.loads((path / File.DATASET).read_text())
    assert fields["name"] == "digits"
    assert fields["num_classes"] == len(fields["label_names"]) == 10
    assert fields["image_shape"] == [8, 8, 1]
    assert [fields[p] for p in ("train", "validation", "test")] == [1150, 288, 359]
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(fields["mean"], pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(fields["std"], pixels.std((0, 1, 2)), rtol=1e-6)
    # JSON has no NaN.
    assert read_metrics(path) == [{**METRICS, "validation_loss": None}]


def test_a_run_is_resumed_and_finished(started, dataset):
    with WorkDirectory(started) as directory:
        assert directory.is_unfinished
        history = [METRICS, {**METRICS, "epoch": 2}]
        directory.rewrite(dataset, history)
        best = Checkpoint({}, {"epoch": 1, "data": dataset.facts})
        write(directory.path / File.BEST, best)
        directory.finish(RESULT)
    assert [m["epoch"] for m in read_metrics(directory.path)] == [1, 2]
    with WorkDirectory(started) as directory:
        assert directory.result == RESULT
        assert not directory.is_unfinished
    # How a run is kept may change.
    other = dataclasses.replace(started, checkpoint_epochs=7, on_nonfinite="skip")
    with WorkDirectory(other) as directory:
        assert directory.result == RESULT


def test_an_overwritten_run_is_removed_when_the_new_one_starts(saved, dataset):
    config = dataclasses.replace(saved, overwrite=True, seed=5)
    before = contents(config.workdir)
    with WorkDirectory(config) as directory:
        assert not directory.is_unfinished
        assert contents(config.workdir) == before
        directory.start(dataset)
        assert names(directory.path) == {"config.json", "dataset.json"}
    assert json.loads((directory.path / File.CONFIG).read_text())["seed"] == 5


# -- What is refused -------------------------------------------------------------------


def test_another_run_is_refused(started):
    other = dataclasses.replace(started, seed=5, width=3)
    assert refusal(other) == (
        f"{started.workdir} holds a run with another configuration (width is 16 there "
        f"and 3 here; seed is 0 there and 5 here): choose another --workdir, or "
        f"--overwrite it"
    )
    change(directory_of(started) / File.CONFIG, a_field_to_come=3)
    assert "(a_field_to_come is unknown here)" in refusal(started)


PLACES = {
    "file": lambda path: path.write_text("precious"),
    "file/inside": lambda path: path.parent.write_text("precious"),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to("nowhere/at/all"),
    "lock": lambda path: (path / ".lock").mkdir(parents=True),
    "x" * 300: lambda path: None,
    "/proc/run": lambda path: None,
    "/dev/null/run": lambda path: None,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_a_directory_is_refused(config, tmp_path, place, overwrite):
    path = tmp_path / place
    PLACES[place](path)
    made = dataclasses.replace(config, workdir=str(path), overwrite=overwrite)
    with pytest.raises(RunError) as error:
        WorkDirectory(made)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    if place.startswith("file"):
        assert (tmp_path / "file").read_text() == "precious"


def test_a_directory_in_use_is_refused(started):
    with WorkDirectory(started):
        assert "is in use by another run: wait for it" in refusal(started)
    with WorkDirectory(started):  # free again
        pass
    with filelock.FileLock(directory_of(started) / ".lock"):
        assert "is in use by another run" in refusal(started)


def test_a_file_system_without_locks(started, monkeypatch, capsys):
    def acquire(lock):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert "or give --no-lock" in refusal(started)
    assert not capsys.readouterr().err
    with WorkDirectory(dataclasses.replace(started, lock=False)) as directory:
        assert directory.is_unfinished
    assert "is not locked: start no other run there" in capsys.readouterr().err


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_refused(started, overwrite):
    """Without a configuration even files with our names are."""
    path = directory_of(started)
    for name in ("thesis.tex", "thesis.tmp", "config.json.old", "a", "b"):
        (path / name).write_text("precious")
    config = dataclasses.replace(started, overwrite=overwrite)
    assert refusal(config) == (
        f"{path} holds files that are not a run's (a, b, config.json.old): choose "
        f"another --workdir"
    )
    for name in (
        "a",
        "b",
        "config.json.old",
        "thesis.tex",
        "thesis.tmp",
        "config.json",
    ):
        (path / name).unlink()
    assert "(dataset.json, metrics.jsonl, tensorboard)" in refusal(config)


def test_resuming_is_refused_or_required(config, dataset):
    never = dataclasses.replace(config, resume="never")
    required = dataclasses.replace(config, resume="required")
    assert "holds no run to resume: leave --resume out" in refusal(required)
    with WorkDirectory(never) as directory:
        directory.start(dataset)
    assert "holds a run that did not finish: leave --resume out" in refusal(never)
    with WorkDirectory(dataclasses.replace(never, overwrite=True)) as directory:
        assert not directory.is_unfinished
    with WorkDirectory(required) as directory:
        assert directory.is_unfinished


FINISHED_DAMAGE = {
    "no device": lambda path: (path / File.RESULT).write_text(
        json.dumps({n: v for n, v in RESULT.items() if n != "device"})
    ),
    "a word": lambda path: change(path / File.RESULT, test_loss="low"),
    "accuracy": lambda path: change(path / File.RESULT, test_accuracy=9.24),
    "epochs": lambda path: change(path / File.RESULT, epochs=2.5),
    "another best epoch": lambda path: change(path / File.RESULT, best_epoch=2),
    "no metrics": lambda path: (path / File.METRICS).unlink(),
    "half of the metrics": lambda path: cut(path / File.METRICS, 0.75),
    "no best": lambda path: (path / File.BEST).unlink(),
    "damaged best": lambda path: cut(path / File.BEST, 0.9),
}


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def cut(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


@pytest.mark.parametrize("how", FINISHED_DAMAGE)
def test_a_finished_run_with_a_damaged_file_is_refused(started, dataset, how):
    with WorkDirectory(started) as directory:
        directory.rewrite(dataset, [METRICS, {**METRICS, "epoch": 2}])
        write(directory.path / File.BEST, Checkpoint({}, {"epoch": 1}))
        directory.finish(RESULT)
    FINISHED_DAMAGE[how](directory.path)
    message = refusal(started)
    assert message.endswith("--overwrite starts the run again")
    assert str(directory.path) in message


@pytest.mark.parametrize("lock", [True, False])
def test_a_directory_without_a_run_is_not_left_behind(config, lock):
    other = Path(config.workdir, "deep", "er")
    deep = dataclasses.replace(config, workdir=str(other), lock=lock)
    with WorkDirectory(deep):
        assert other.exists()
    assert not Path(config.workdir).exists()
    other.mkdir(parents=True)
    with WorkDirectory(deep):
        pass
    assert other.exists()


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_damaged_records_are_refused(started, name):
    path = directory_of(started) / name
    for text in ("", "{", "[1]", "null", "\x00", '{"a": ' * 2000):
        path.write_text(text)
        message = refusal(started)
        assert message.startswith(str(path))
        assert message.endswith("--overwrite starts the run again")
    with WorkDirectory(dataclasses.replace(started, overwrite=True)):
        pass


# -- What a killed run leaves ----------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json.tmp", "best.msgpack.tmp"])
def test_a_stranded_temporary_file_is_harmless(config, dataset, name):
    path = directory_of(config)
    for overwrite in (False, True):
        some = dataclasses.replace(config, overwrite=overwrite)
        (path / name).write_text("half a fi")
        with WorkDirectory(some) as directory:
            assert not directory.is_unfinished
            directory.start(dataset)
        assert names(path) == {"config.json", "dataset.json"}
        (path / name).write_text("half a fi")
        with WorkDirectory(some) as directory:
            assert directory.is_unfinished != overwrite
        for left in names(path):
            (path / left).unlink()


def test_removed_checkpoints_are_reported(saved):
    path = directory_of(saved)
    for checkpoint in (path / File.CHECKPOINTS).iterdir():
        checkpoint.unlink()
    message = (
        f"{path} holds a run whose checkpoints were removed: restore them; "
        f"--overwrite starts the run again"
    )
    assert refusal(saved) == message
    (path / File.CHECKPOINTS).rmdir()
    assert refusal(saved) == message


def test_a_run_without_a_checkpoint_starts_again(started, dataset, capsys):
    path = directory_of(started)
    assert (path / File.METRICS).exists()
    with WorkDirectory(started) as directory:
        assert directory.is_unfinished
        directory.start(dataset)
    assert "has no checkpoint to resume from: starting" in capsys.readouterr().out
    assert not (path / File.METRICS).exists()
    with WorkDirectory(started) as directory:
        assert directory.is_unfinished


def test_files_of_others_among_checkpoints_are_left_alone(saved, dataset):
    """Also those that are called almost like one, by saving and by overwriting."""
    path = directory_of(saved) / File.CHECKPOINTS
    names = {"notes.txt", "a.msgpack", "epoch-00009.msgpack", "epoch-x-step-y"}
    for name in names:
        (path / name).write_text("precious")
    newest = "epoch-00000-step-00000009.msgpack"
    (path / f"{newest}.tmp").write_bytes(b"half a fi")  # by a run that was killed
    found, _ = Checkpoints(path, 2).newest({"x": np.zeros(4, int)})
    assert found.name == "epoch-00000-step-00000005.msgpack"
    save(path.parent, 9, np.zeros(4), keep=1)
    assert {p.name for p in path.iterdir()} == {*names, newest}
    with WorkDirectory(dataclasses.replace(saved, overwrite=True)) as directory:
        directory.start(dataset)
    assert {p.name for p in path.iterdir()} == names
