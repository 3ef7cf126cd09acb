"""Damaged runs, generated: they go on from what is whole or are left alone."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train
import training
from tests.bad_inputs import (
    DAMAGES,
    SMALL,
    assert_same_tree,
    contents,
    counts,
    elsewhere,
    files_in,
    run,
    spell,
    trying,
)
from training import checkpoints, records
from training import config as config_lib
from training.errors import RunError, UserError

RUN = spell(SMALL | {"max_steps": 8, "epochs": 2, "method": "sgd"})


class Unfinished(NamedTuple):
    """A run that lacks nothing but its result.

    Attributes:
      path: Its work directory.
      program: The compiled program.
      result: The result that it had.
    """

    path: Path
    program: train.Program
    result: dict


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    path = tmp_path_factory.mktemp("unfinished") / "run"
    (config,) = config_lib.parse([*RUN, "--workdir", str(path)])
    program = train.prepare(config)
    result = train.run(program, config)
    (path / records.RESULT).unlink()
    return Unfinished(path, program, result)


def whole_checkpoints(path, original):
    """Names of the checkpoints whose every file is as it was."""
    names = sorted(p.name for p in (original / records.CHECKPOINTS).iterdir())
    return [
        name
        for name in names
        if all(
            there.is_file() and there.read_bytes() == file.read_bytes()
            for file in files_in(original / records.CHECKPOINTS / name)
            for there in [path / file.relative_to(original)]
        )
    ]


@counts(8, 80)
def test_the_newest_whole_checkpoint_is_taken(unfinished, count):
    state = unfinished.program.loop.state
    like = {"state": state, "best": checkpoints.copy_to_host(state.variables)}

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=4))
    def check(damages):
        with elsewhere() as path, contextlib.redirect_stderr(io.StringIO()) as error:
            shutil.copytree(unfinished.path, path / "run")
            place = path / "run" / records.CHECKPOINTS
            files = files_in(place)
            for damage in damages:
                damage.befall(files)
            whole = whole_checkpoints(path / "run", unfinished.path)
            before = contents(place)
            store = checkpoints.Checkpoints(place, keep=2)
            if whole:
                name, (tree, notes) = store.newest(like)
                assert name == whole[-1]
                original = unfinished.path / records.CHECKPOINTS / name
                assert_same_tree(
                    jax.tree.leaves(tree),
                    jax.tree.leaves(checkpoints._read(original, like).tree),
                )
                assert notes == checkpoints.read(original).notes
            else:
                with pytest.raises(RunError, match=r"no checkpoint .* is left whole"):
                    store.newest(like)
            store.close()
            newer = [p for p in place.iterdir() if whole and p.name > whole[-1]]
            lines = error.getvalue().splitlines()
            assert len(lines) == len(newer)
            for damaged, line in zip(sorted(newer, reverse=True), lines, strict=True):
                assert line.startswith(f"train.py: warning: {damaged} is damaged (")
                assert line.endswith(f"going on from {place / whole[-1]} instead")
            assert contents(place) == before

    check()


@counts(4, 40)
def test_what_was_trained_is_whole_or_told(unfinished, count):
    original = training.load(unfinished.path).variables

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        with elsewhere() as path:
            shutil.copytree(unfinished.path, path / "run")
            best = files_in(path / "run" / records.BEST)
            sealed = contents(path / "run" / records.BEST)
            rest = [path / "run" / name for name in ("config.json", "dataset.json")]
            for damage in damages:
                damage.befall([*best, *rest])
            is_whole = contents(path / "run" / records.BEST) == sealed
            told = variables = None
            try:
                variables = training.load(path / "run").variables
            except UserError as error:
                told = str(error)
            if told is None:
                assert is_whole
                assert_same_tree(variables, original)
            else:
                assert "\n" not in told

    check()


def without_times(fields):
    times = {"images_per_second", "train_seconds"}
    return {name: value for name, value in fields.items() if name not in times}


@counts(5, 58)
def test_a_damaged_run_goes_on_or_is_left_alone(unfinished, count):
    history = [*map(without_times, records.read_metrics(unfinished.path))]
    best = training.load(unfinished.path).variables
    names = [records.CONFIG, records.METRICS, records.DATASET]
    names += [records.BEST, records.CHECKPOINTS]

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=3))
    def check(damages):
        with elsewhere(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "prepare", lambda config: unfinished.program)
            place = Path("run")
            shutil.copytree(unfinished.path, place)
            files = files_in(*(place / name for name in names))
            before = contents(place)
            for damage in damages:
                damage.befall(files)
            after = contents(place)
            kept = {file for file in files if before[file] == after.get(file)}
            damaged = {file.relative_to(place).parts[0] for file in {*files} - kept}
            possible = {0}
            if records.CONFIG in damaged:  # perhaps where it does not matter
                possible = {0, 2}
            whole = whole_checkpoints(place, unfinished.path)
            if not whole or (place / records.METRICS).is_dir():
                possible = {2}

            code, error = run([*RUN, "--workdir", str(place)])
            assert code in possible
            assert all(line.startswith("train.py: ") for line in error.splitlines())
            if code == 0:
                assert [*map(without_times, records.read_metrics(place))] == history
                result = records.read_json(place / records.RESULT)
                assert without_times(result) == without_times(unfinished.result)
                if records.DATASET not in damaged:
                    assert_same_tree(training.load(place).variables, best)
            else:
                assert error.count("\n") == 1 + error.count("warning: ")
                assert all(before[file] == contents(place).get(file) for file in kept)

    check()
