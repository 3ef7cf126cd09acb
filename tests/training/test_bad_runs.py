"""Damaged runs, generated: they resume from what is intact, or are left alone."""

import contextlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import training
from tests.support.bad_inputs import (
    DAMAGES,
    assert_same_tree,
    contents,
    counts,
    empty_directory,
    files_in,
    run,
    trying,
)
from training import recipe
from training.errors import UserError
from training.run import workdir


@contextlib.contextmanager
def unfinished(trained):
    """A copy, in a new current directory, of a run that lacks only its result."""
    with empty_directory():
        shutil.copytree(trained.path, "run")
        Path("run", workdir.RESULT).unlink()
        yield Path("run")


def intact_checkpoints(path, original):
    """Names of the checkpoints that are as they were, in order."""
    return [
        file.name
        for file in files_in(original / workdir.CHECKPOINTS)
        for copy in [path / workdir.CHECKPOINTS / file.name]
        if copy.is_file() and copy.read_bytes() == file.read_bytes()
    ]


@counts(4, 40)
def test_what_was_trained_is_intact_or_refused(trained, count):
    original = training.load(trained.path).variables

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        with unfinished(trained) as path:
            best = path / workdir.BEST
            sealed = best.read_bytes()
            for damage in damages:
                damage.apply([best, path / workdir.CONFIG, path / workdir.DATASET])
            message = variables = None
            try:
                variables = training.load(path).variables
            except UserError as error:
                message = str(error)
            if message is None:
                assert best.read_bytes() == sealed
                assert_same_tree(variables, original)
            else:
                assert "\n" not in message

    check()


def comparable(fields):
    others = {"images_per_second", "train_seconds", "commit"}
    return {name: value for name, value in fields.items() if name not in others}


@counts(6, 40)
def test_a_damaged_run_is_resumed_or_left_alone(trained, count):
    history = [*map(comparable, workdir.read_metrics(trained.path))]
    best = training.load(trained.path).variables
    names = [workdir.CONFIG, workdir.METRICS, workdir.DATASET]
    names += [workdir.BEST, workdir.CHECKPOINTS]

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=3))
    def check(damages):
        with unfinished(trained) as path, pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "prepare", lambda *_, **__: trained.prepared)
            files = files_in(*(path / name for name in names))
            before = contents(path)
            for damage in damages:
                damage.apply(files)
            after = contents(path)
            kept = {file for file in files if before[file] == after.get(file)}
            damaged = {file.relative_to(path).parts[0] for file in {*files} - kept}
            intact = intact_checkpoints(path, trained.path)
            saved = [path / workdir.BEST, *files_in(path / workdir.CHECKPOINTS)]
            saved = any(file.exists() for file in saved)
            blocked = any(file.is_dir() for file in files)

            code, error = run([*trained.argv, "--workdir", str(path)])
            assert all(line.startswith("train.py: ") for line in error.splitlines())
            expected = {0} if intact or not saved else {2}
            if blocked or workdir.CONFIG in damaged:  # perhaps where it does not matter
                expected = {0, 2}
            assert code in expected
            if code == 2:
                assert error.count("\n") == 1 + error.count("warning: ")
                if blocked:  # the run had already been set back to a checkpoint
                    kept = {path / workdir.CHECKPOINTS / name for name in intact}
                assert all(before[file] == contents(path).get(file) for file in kept)
                return
            assert code == 0
            assert [*map(comparable, workdir.read_metrics(path))] == history
            result = workdir.read_json(path / workdir.RESULT)
            assert comparable(result) == comparable(trained.result)
            if workdir.DATASET not in damaged:
                assert_same_tree(training.load(path).variables, best)

    check()
