"""CIFAR on small archives: prepared, read, interrupted and damaged."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.cifar_archives import (
    LAYOUTS,
    assert_holds,
    by_hand,
    prepared,
    register,
    rows,
    write_archive,
)
from training import data, errors
from training.data import _cifar_builder

# --- CIFAR, on small archives in the official format --------------------------------


def test_official_archives_are_the_registered_ones():
    found = {
        name: next(iter(builder.url_infos.items()))
        for name, builder in _cifar_builder.BUILDERS.items()
    }
    for name, (url, info) in found.items():
        archive = LAYOUTS[name]["archive"]
        assert url == f"https://www.cs.toronto.edu/~kriz/{archive}"
        assert info.filename == archive
    assert found["cifar10"][1].checksum.startswith("c4a38c50a1bc5f3a1c5537f2155ab9d6")
    assert found["cifar100"][1].checksum.startswith("58a81ae192c23a4be8b1804d68e518ed")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_a_hand_placed_archive(name, tmp_path, monkeypatch):
    contents = write_archive(by_hand(tmp_path, name), name)
    register(monkeypatch, tmp_path, name)
    first = data.load(name, data_dir=tmp_path, validation_fraction=0)
    assert_holds(first, contents)
    assert (first.crop_padding, first.flips) == (4, True)
    classes = LAYOUTS[name]["labels"][-1][1]
    assert first.num_classes == len(first.label_names) == classes
    letter = LAYOUTS[name]["labels"][-1][0][0]
    assert first.label_names[3] == f"{letter}3"
    # From here on the archive is not needed.
    by_hand(tmp_path, name).unlink()
    assert_holds(data.load(name, data_dir=tmp_path, validation_fraction=0), contents)


def test_validation_part_of_cifar(original):
    root, contents = original
    dataset = data.load("cifar100", data_dir=str(root))
    assert len(dataset.train.labels) == 160
    both = rows(dataset.train) + rows(dataset.validation)
    assert sorted(both) == rows(contents["train"])
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_prepared_set_is_the_stock_one(original):
    builder = tfds.builder("cifar100", data_dir=original[0], file_format="array_record")
    assert builder.is_prepared()
    assert builder.info.full_name == "cifar100/3.0.2"
    assert builder.info.download_size == by_hand(original[0]).stat().st_size
    record = builder.as_data_source("test")[0]
    assert sorted(record) == ["coarse_label", "id", "image", "label"]
    position = int(record["id"].removeprefix(b"test_"))
    np.testing.assert_array_equal(record["image"], original[1]["test"].images[position])


def test_default_directory_is_created(tmp_path, original, monkeypatch):
    root = tmp_path / "new"
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(root))
    register(monkeypatch, original[0])
    with pytest.raises(errors.DataError, match="cannot be reached"):
        data.load("cifar100")
    shutil.copytree(prepared(original[0]), prepared(root))
    assert len(data.load("cifar100").test.labels) == 100


def test_wrong_checksum_names_both(tmp_path):
    # Nothing is registered here: this is not the official archive.
    write_archive(by_hand(tmp_path), "cifar100", (5, 5))
    found = hashlib.sha256(by_hand(tmp_path).read_bytes()).hexdigest()
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=tmp_path)
    for part in (str(by_hand(tmp_path)), found, "58a81ae192c23a4be8b1804d68e518ed"):
        assert part in str(caught.value)
    assert "put the archive" not in str(caught.value)  # It has been put there.
    assert not prepared(tmp_path).exists()


@pytest.mark.parametrize("content", [b"not an archive", None])
def test_unreadable_archive(content, with_archive, monkeypatch):
    archive = by_hand(with_archive)
    archive.write_bytes(archive.read_bytes()[:50_000] if content is None else content)
    register(monkeypatch, with_archive)
    with pytest.raises(errors.DataError, match=f"{archive.name} cannot be read"):
        data.load("cifar100", data_dir=with_archive)
    assert not prepared(with_archive).exists()


# --- CIFAR, interrupted and damaged -------------------------------------------------


def _breaking_off(how):
    whole = _cifar_builder.BUILDERS["cifar100"]._generate_examples

    def generate(*arguments):
        for index, example in whole(*arguments):
            if index == 50:
                how()
            yield index, example

    return generate


def test_interrupted_preparation_leaves_nothing(with_archive, original, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    builder = _cifar_builder.BUILDERS["cifar100"]
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_generate_examples", _breaking_off(interrupt))
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar100", data_dir=with_archive)
    assert not prepared(with_archive).exists()
    dataset = data.load("cifar100", data_dir=with_archive, validation_fraction=0)
    assert_holds(dataset, original[1])


def test_killed_preparation_leaves_no_set(with_archive, original):
    code = (
        "import os, pathlib, sys; from tests import test_cifar as t; import pytest; "
        "root = pathlib.Path(sys.argv[1]); patch = pytest.MonkeyPatch(); "
        "t.register(patch, root); builder = t._cifar_builder.BUILDERS['cifar100']; "
        "builder._generate_examples = t._breaking_off(lambda: os._exit(9)); "
        "t.data.load('cifar100', data_dir=root)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(with_archive)],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 9
    assert list((with_archive / "cifar100").iterdir())  # It had begun,
    assert not prepared(with_archive).exists()  # under another name.
    dataset = data.load("cifar100", data_dir=with_archive, validation_fraction=0)
    assert_holds(dataset, original[1])


def test_another_process_may_finish_first(with_archive, original, monkeypatch):
    def finish():
        if not prepared(with_archive).exists():
            shutil.copytree(prepared(original[0]), prepared(with_archive))

    builder = _cifar_builder.BUILDERS["cifar100"]
    monkeypatch.setattr(builder, "_generate_examples", _breaking_off(finish))
    dataset = data.load("cifar100", data_dir=with_archive, validation_fraction=0)
    assert_holds(dataset, original[1])


def _shard(directory, part="train"):
    (shard,) = directory.glob(f"cifar100-{part}*")
    return shard


def _truncate(directory):
    shard = _shard(directory)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def _flip_bits(directory):
    shard = _shard(directory, "test")
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)


def _edit_info(edit):
    def damage(directory):
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text())
        edit(info)
        path.write_text(json.dumps(info))

    return damage


def _forget_records(info):
    # All records can be read, but ten of the set are left out.
    info["splits"][0]["shardLengths"] = [
        str(int(info["splits"][0]["shardLengths"][0]) - 10)
    ]


def _repeat_records(directory):
    # Two shards in name, each the first half of the same file.
    shard = _shard(directory)
    for half in ("00000-of-00002", "00001-of-00002"):
        shutil.copy(shard, str(shard).replace("00000-of-00001", half))

    def edit(info):
        (part,) = (part for part in info["splits"] if part["name"] == "train")
        part["shardLengths"] = ["100", "100"]

    _edit_info(edit)(directory)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_bits,
        lambda directory: _shard(directory, "test").unlink(),
        lambda directory: (directory / "dataset_info.json").unlink(),
        lambda directory: (directory / "dataset_info.json").write_text('{"name": "c'),
        lambda directory: (directory / "features.json").write_text("[]"),
        _edit_info(_forget_records),
        _repeat_records,
        _edit_info(lambda info: info.update(fileFormat="tfrecord")),
    ],
    ids=[
        "truncated",
        "flipped",
        "no-shard",
        "no-info",
        "half-info",
        "features",
        "too-few",
        "repeated",
        "tfrecord",
    ],
)
def test_damaged_set_is_named(damage, tmp_path, original):
    directory = prepared(tmp_path)
    shutil.copytree(prepared(original[0]), directory)
    assert len(data.load("cifar100", data_dir=tmp_path).test.labels) == 100
    damage(directory)
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=tmp_path)
    assert f"The prepared set in {directory} cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unusable_data_directories(tmp_path, with_archive, monkeypatch):
    with pytest.raises(errors.DataError, match="absent does not exist"):
        data.load("cifar100", data_dir=tmp_path / "absent")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(errors.DataError, match="file is not a directory"):
        data.load("cifar100", data_dir=file)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(errors.DataError, match="cannot be written"):
        data.load("cifar100", data_dir=with_archive)


def test_failure_to_write_is_told(with_archive):
    (with_archive / "cifar100").touch()  # In the way of the directory.
    with pytest.raises(errors.DataError, match="cannot be prepared in"):
        data.load("cifar100", data_dir=with_archive)
