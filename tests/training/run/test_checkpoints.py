"""Checkpoints: every bit comes back, damage is noticed, a full disk loses nothing."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support.runs import Killed
from training.errors import RunError
from training.run import checkpoints
from training.run.checkpoints import Checkpoint, Checkpoints, read, write

DTYPES = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


def assert_same_bits(a, b):
    """Structure, and dtype, shape and bits of every array."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


def test_types_and_structure_survive(tmp_path):
    """Empty trees, the names of a chain, and types that NumPy does not have."""
    tree = {
        "a": (np.float64(1) / 3 * np.ones(3), optax.EmptyState()),
        "b": optax.TraceState({"w": np.array(7, np.int32)}),
        "c": np.array([1.5, -2], jnp.bfloat16.dtype),
        "d": {},
        "every": [np.full((2, 1), 1, d) for d in DTYPES],
        "e": [np.array([np.nan, -0.0, np.inf], np.float32), None, np.zeros((2, 0))],
    }
    path = tmp_path / "deep" / "file"
    write(path, Checkpoint(tree, {"x": [1.0, float("nan")], "y": {"z": "ä"}}))
    back, notes = read(path, tree)
    assert np.isnan(notes["x"][1])
    assert notes["y"] == {"z": "ä"}
    assert_same_bits(back, tree)
    # Without a tree to follow, nested dictionaries.
    assert read(path).tree["a"]["0"].tobytes() == tree["a"][0].tobytes()


def test_copies_do_not_change_with_the_device():
    """The memory of a donated array is used again."""
    before = jnp.arange(4.0)
    copy = checkpoints.copy_to_host({"x": before})
    jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(before))
    np.testing.assert_array_equal(copy["x"], np.arange(4.0))


# -- Damage ----------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A directory with two checkpoints of one array."""
    store = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2):
        tree = {"w": np.full(4, epoch, np.float32)}
        store.save(epoch, 0, Checkpoint(tree, {"epoch": epoch}))
    return store, tmp_path / "epoch-00001-step-00000000.msgpack", store.newest(tree)[0]


LIKE = {"w": np.zeros(4, np.float32)}


def test_every_flipped_byte_and_every_truncation_is_noticed(two):
    store, older, newer = two
    content = newer.read_bytes()
    damaged = [content[:end] for end in range(len(content))]
    damaged += [content + b"\0", bytes(len(content))]
    for i, byte in enumerate(content):
        damaged.append(content[:i] + bytes([byte ^ 1 << i % 8]) + content[i + 1 :])
    for bad in damaged:
        newer.write_bytes(bad)
        path, (tree, notes) = store.newest(LIKE)
        assert path == older
        assert notes == {"epoch": 1}
        np.testing.assert_array_equal(tree["w"], 1)
        with pytest.raises(RunError, match="is damaged"):
            read(newer, LIKE)
    newer.write_bytes(content)
    assert store.newest(LIKE)[0] == newer


def test_the_checkpoint_before_is_used_instead(two, capsys):
    store, older, newer = two
    newer.unlink()
    assert store.newest(LIKE)[0] == older
    assert not capsys.readouterr().err
    for damage in (newer.mkdir, lambda: newer.symlink_to("nowhere")):
        damage()
        path, (_, notes) = store.newest(LIKE)
        assert (path, notes) == (older, {"epoch": 1})
        error = capsys.readouterr().err
        assert error.startswith(f"train.py: warning: {newer} is damaged (")
        assert error.endswith(f"resuming from {older} instead\n")
        newer.rmdir() if newer.is_dir() else newer.unlink()


def empty(path):
    path.write_bytes(b"")


def test_a_damaged_checkpoint_does_not_count_as_one_of_the_newest(two):
    """It goes with the next save, and the undamaged one before it stays."""
    store, older, newer = two
    empty(newer)
    store.newest(LIKE)
    store.save(2, 0, Checkpoint(LIKE, {"again": True}))  # written again
    assert store.newest(LIKE)[1].notes == {"again": True}
    assert set(files(older.parent)) == {older.name, newer.name}
    empty(newer)
    store.newest(LIKE)
    store.save(2, 3, Checkpoint(LIKE, {}))
    assert set(files(older.parent)) == {older.name, "epoch-00002-step-00000003.msgpack"}
    store.save(3, 0, Checkpoint(LIKE, {}))
    assert older.name not in files(older.parent)
    assert len(files(older.parent)) == 2


def test_without_an_undamaged_checkpoint_all_are_named(two):
    store, older, newer = two
    empty(older)
    empty(newer)
    with pytest.raises(RunError, match="no undamaged checkpoint is left") as error:
        store.newest(LIKE)
    assert str(older) in str(error.value)
    assert str(newer) in str(error.value)
    assert Checkpoints(older.parent / "absent", keep=1).newest(LIKE) is None


def test_the_newest_are_kept_and_none_beyond_the_position(tmp_path):
    """Those beyond it are damaged: the run was resumed from an earlier one."""
    store = Checkpoints(tmp_path, keep=2)
    for step in (5, 3, 8, 8, 100_000_000):
        store.save(0, step, Checkpoint({"w": np.full(4, step)}, {"step": step}))
    names = [f"epoch-00000-step-{step:08d}.msgpack" for step in (8, 100_000_000)]
    assert sorted(files(tmp_path)) == names
    found, (tree, notes) = store.newest({"w": np.zeros(4, int)})
    assert (found.name, notes) == (names[1], {"step": 100_000_000})
    np.testing.assert_array_equal(tree["w"], [100_000_000] * 4)
    empty(tmp_path / names[1])
    store.save(0, 9, Checkpoint(LIKE, {}))
    assert sorted(files(tmp_path)) == [names[0], "epoch-00000-step-00000009.msgpack"]


@pytest.mark.parametrize(
    "like",
    [
        {"w": np.zeros(5, np.float32)},
        {"w": np.zeros(4, int)},
        {**LIKE, "y": np.zeros(4, int)},
        {"w": {"y": np.zeros(4, np.float32)}},
    ],
)
def test_a_checkpoint_of_another_program_is_refused(two, like):
    store, *_ = two
    with pytest.raises(RunError, match="does not fit this version of the program") as e:
        store.newest(like)
    assert "\n" not in str(e.value)
    assert "--overwrite" in str(e.value)


# -- Interrupted writes ----------------------------------------------------------------


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_in_the_middle_leaves_the_earlier_ones(two, monkeypatch, moment):
    store, older, newer = two
    before = files(older.parent)

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os if moment == "fsync" else type(newer), moment, killed)
        with pytest.raises(Killed):
            store.save(2, 5, Checkpoint(LIKE, {}))
        with pytest.raises(Killed):  # over an existing one
            store.save(2, 0, Checkpoint(LIKE, {}))
    after = files(older.parent)
    assert {name: after.get(name) for name in before} == before
    assert store.newest(LIKE)[0] == newer
    store.save(2, 5, Checkpoint(LIKE, {"epoch": 3}))
    assert store.newest(LIKE)[1].notes == {"epoch": 3}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_in_the_middle_of_a_write(two, monkeypatch, number):
    store, older, newer = two
    before = files(older.parent)

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match=os.strerror(number)) as error:
        store.save(3, 0, Checkpoint(LIKE, {}))
    is_full = number != errno.EIO
    assert ("make room" in str(error.value)) == is_full
    assert files(older.parent) == before
    assert store.newest(LIKE)[0] == newer
