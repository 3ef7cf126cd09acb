"""Bad work directories and data sets, generated: one sentence, and nothing lost."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import filelock
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import cifar_archives
from tests.bad_inputs import (
    BASE,
    DAMAGES,
    GARBAGE,
    GOOD_FILE,
    a_file,
    a_loop,
    assert_same_tree,
    assert_told,
    counts,
    elsewhere,
    files_in,
    trying,
    within,
)
from training import data
from training.errors import DataError

# -- Work directories ------------------------------------------------------------------


def a_dangling_link(path):
    path.symlink_to("nowhere/at/all")


def strangers(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def names_of_ours(path):
    for name in ("best", "checkpoints"):
        (path / name).mkdir(parents=True)
        (path / name / "mine.txt").write_text("precious")


def a_stranger_in_a_run(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "thesis.tex").write_text("precious")


def a_directory_for_a_lock(path):
    (path / ".lock").mkdir(parents=True)


NO_DIRECTORIES = [a_file, a_loop, a_dangling_link]
TAKEN = [strangers, names_of_ours, a_stranger_in_a_run, a_directory_for_a_lock]
IMPOSSIBLE = ["/proc/run", "/dev/null", "/dev/null/run", "/proc/version/x", "x" * 300]
NOT_UTF8 = os.fsdecode(b"run-\xff")


@counts(8, 60)
def test_work_directories(count):
    @trying(count)
    @given(
        st.sampled_from(NO_DIRECTORIES + TAKEN),
        st.lists(st.sampled_from(["overwrite", "seed", "inside"]), unique=True),
    )
    def check_taken(take, how):
        with elsewhere():
            place = Path("run") / "seed-1" if "seed" in how else Path("run")
            place.parent.mkdir(exist_ok=True)
            take(place)
            workdir = place.parent if "seed" in how else place
            argv = [*BASE]
            if "seed" in how:
                argv += ["--seed", "0", "1"]
            elif "inside" in how and take in NO_DIRECTORIES:
                workdir /= "deep/inside"
            argv += ["--overwrite"] * ("overwrite" in how)
            assert_told([*argv, "--workdir", str(workdir)], [str(place)])

    @trying(count // 4)
    @given(GARBAGE, st.sampled_from(["config.json", "result.json"]))
    def check_records(text, name):
        with elsewhere() as path:
            (path / "run").mkdir()
            (path / "run" / "config.json").write_text(GOOD_FILE)
            (path / "run" / name).write_bytes(text)
            assert_told([*BASE, "--workdir", "run"], [name])

    @trying(count // 8)
    @given(st.sampled_from([*IMPOSSIBLE, NOT_UTF8]))
    def check_impossible(workdir):
        with elsewhere():
            assert_told([*BASE, "--workdir", workdir], [workdir, "UTF-8"])

    check_taken()
    check_records()
    check_impossible()


def test_a_work_directory_in_use():
    with elsewhere() as path:
        (path / "run").mkdir()
        with filelock.FileLock(path / "run" / ".lock"):
            assert_told([*BASE, "--workdir", "run"], ["in use"])


# -- Data ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with a small CIFAR-100, and the archive it was prepared from."""
    root = tmp_path_factory.mktemp("data")
    cifar_archives.write_archive(cifar_archives.by_hand(root), "cifar100", (40, 20))
    with pytest.MonkeyPatch.context() as patch:
        cifar_archives.register(patch, root)  # nothing is asked of the network
        with contextlib.redirect_stderr(io.StringIO()):
            yield root, data.load("cifar100", data_dir=root)


CIFAR = ["--dataset", "cifar100", "--data-dir", "data"]


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


@counts(5, 40)
def test_archives(prepared, count):
    original, _ = prepared
    in_the_way = st.sampled_from([None, "downloads", "downloads/manual"])

    @trying(count)
    @given(DAMAGES, in_the_way)
    def check(damage, obstacle):
        with elsewhere() as path:
            archive = cifar_archives.by_hand(path / "data")
            shutil.copytree(cifar_archives.by_hand(original).parent, archive.parent)
            damage.befall([archive])
            assume(
                not archive.is_file()
                or archive.read_bytes() != cifar_archives.by_hand(original).read_bytes()
            )
            if obstacle:
                shutil.rmtree(path / "data" / obstacle)
                a_file(path / "data" / obstacle)
            assert_told([*BASE, *CIFAR], [archive.name])

    check()


@counts(6, 60)
def test_prepared_sets(prepared, count):
    root, whole = prepared

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        with elsewhere() as path:
            copy = path / "data"
            shutil.copytree(
                cifar_archives.prepared(root), cifar_archives.prepared(copy)
            )
            # Coarse labels are never read.
            files = [f for f in files_in(copy) if not f.name.startswith("coarse")]
            for damage in damages:
                damage.befall(files)
            if any(not f.is_file() or f.stat().st_size < 100 for f in files):
                assert_told([*BASE, *CIFAR], ["cannot be read"])
                return
            # A flipped bit may lie where nobody looks, else it is noticed.
            with within(60), contextlib.suppress(DataError):
                read = data.load("cifar100", data_dir=copy)
                assert read.num_classes == whole.num_classes
                assert_same_tree(parts(read), parts(whole))

    check()


@pytest.mark.parametrize("place", ["absent", "file", "file/x", "link", "~no-one/x"])
def test_places_of_data(place):
    with elsewhere() as path:
        a_file(path / "file")
        a_loop(path / "link")
        flags = ["--dataset", "cifar10", "--data-dir"]
        assert_told([*BASE, *flags, place], [place])
        assert_told([*BASE, *flags, "x" * 300], ["xxx"])
