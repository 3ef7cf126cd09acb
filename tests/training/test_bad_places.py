"""Bad work directories and data sets, generated: one sentence, and nothing lost."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import cifar_archives
from tests.support.bad_inputs import (
    BASE,
    DAMAGES,
    GOOD_FILE,
    assert_refused,
    assert_same_tree,
    counts,
    empty_directory,
    files_in,
    make_file,
    make_loop,
    trying,
    within,
)
from training import data
from training.errors import DataError

# -- Work directories ------------------------------------------------------------------


def make_dangling_link(path):
    path.symlink_to("nowhere/at/all")


def make_other_files(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def make_names_of_a_run(path):
    """Without a configuration they are not a run's."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "checkpoints" / "mine.txt").write_text("precious")


def make_run_with_another_file(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "thesis.tex").write_text("precious")


def make_temporary_file_of_others(path):
    path.mkdir()
    (path / "thesis.tmp").write_text("precious")


def make_directory_for_a_lock(path):
    (path / ".lock").mkdir(parents=True)


NOT_DIRECTORIES = [make_file, make_loop, make_dangling_link]
TAKEN = [
    *(make_other_files, make_names_of_a_run, make_run_with_another_file),
    *(make_temporary_file_of_others, make_directory_for_a_lock),
]
IMPOSSIBLE = ["/proc/run", "/dev/null/run", "x" * 300]
NOT_UTF8 = os.fsdecode(b"run-\xff")


@counts(4, 40)
def test_taken_work_directories(count):
    @trying(count)
    @given(
        st.sampled_from(NOT_DIRECTORIES + TAKEN),
        st.lists(st.sampled_from(["overwrite", "seeds", "inside"]), unique=True),
    )
    def check(make, how):
        with empty_directory():
            path = Path("run") / "seed-1" if "seeds" in how else Path("run")
            path.parent.mkdir(exist_ok=True)
            make(path)
            workdir = path.parent if "seeds" in how else path
            argv = [*BASE]
            if "seeds" in how:
                argv += ["--seed", "0", "1"]
            elif "inside" in how and make in NOT_DIRECTORIES:
                workdir /= "deep/inside"
            argv += ["--overwrite"] * ("overwrite" in how)
            assert_refused([*argv, "--workdir", str(workdir)], [str(path)])

    check()


@pytest.mark.parametrize("workdir", [*IMPOSSIBLE, NOT_UTF8])
def test_impossible_work_directories(workdir):
    with empty_directory():
        assert_refused([*BASE, "--workdir", workdir], [workdir, "UTF-8"])


@pytest.mark.parametrize("path", ["file", "link", "x" * 300])
def test_directories_of_compiled_programs(path):
    with empty_directory() as directory:
        make_file(directory / "file")
        make_loop(directory / "link")
        assert_refused([*BASE, "--cache-dir", path], ["--cache-dir"])


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--dataset", "cifar10", "--data-dir", "absent"], "absent does not exist"),
        (["--batch-size", "100000"], "--batch-size"),
        ([], "another configuration"),
    ],
)
def test_a_collision_does_not_hide_another_mistake(argv, name):
    with empty_directory() as path:
        (path / "run").mkdir()
        (path / "run" / "config.json").write_text(GOOD_FILE)
        assert_refused([*BASE, "--workdir", "run", "--seed", "7", *argv], [name])


# -- Data ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with a small CIFAR-100, as an archive and prepared."""
    root = tmp_path_factory.mktemp("data")
    archive = cifar_archives.by_hand(root)
    contents = cifar_archives.write_archive(archive, "cifar100", (40, 20))
    with pytest.MonkeyPatch.context() as patch:
        cifar_archives.register(patch, root)  # nothing is asked of the network
        with contextlib.redirect_stderr(io.StringIO()):
            cifar_archives.prepare(root, contents)
        yield root, data.load("cifar100", data_dir=root)


CIFAR = ["--dataset", "cifar100", "--data-dir", "data"]


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


@counts(4, 40)
def test_prepared_sets(prepared, count):
    root, original = prepared

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        with empty_directory() as path:
            copy = path / "data"
            shutil.copytree(
                cifar_archives.prepared(root), cifar_archives.prepared(copy)
            )
            # Coarse labels are never read.
            files = [f for f in files_in(copy) if not f.name.startswith("coarse")]
            for damage in damages:
                damage.apply(files)
            if any(not f.is_file() or f.stat().st_size < 100 for f in files):
                assert_refused([*BASE, *CIFAR], ["cannot be read"])
                return
            # A flipped bit may lie where nobody looks, else it is noticed.
            with within(60), contextlib.suppress(DataError):
                read = data.load("cifar100", data_dir=copy)
                assert read.num_classes == original.num_classes
                assert_same_tree(parts(read), parts(original))

    check()


@pytest.mark.parametrize(
    "path",
    ["./absent", "./link", "~no-one/x", "a.npz", "./"],
)
def test_paths_of_data_sets(path):
    with empty_directory() as directory:
        make_file(directory / "file")
        make_file(directory / "a.npz")
        make_loop(directory / "link")
        assert_refused([*BASE, "--dataset", path], [path, path.strip("./"), "classes"])
