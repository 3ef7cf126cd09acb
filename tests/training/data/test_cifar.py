"""CIFAR on small archives and prepared sets: read, absent and damaged."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar as stock

from tests.support.cifar_archives import (
    LAYOUTS,
    assert_holds,
    by_hand,
    prepared,
    register,
    write_archive,
)
from training import __main__ as command
from training import data, errors
from training.data import cifar

pytest_plugins = ["tests.support.cifar_archives"]  # for its fixtures


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_official_archives_are_the_registered_ones(name):
    builder = {"cifar10": stock.Cifar10, "cifar100": stock.Cifar100}[name]
    ((url, registered),) = builder.url_infos.items()
    archive = cifar.ARCHIVES[name]
    assert archive.url == url
    assert (archive.size, archive.sha256) == (registered.size, registered.checksum)
    assert url.endswith(LAYOUTS[name]["archive"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_hand_placed_archive(name, tmp_path, monkeypatch):
    contents = write_archive(by_hand(tmp_path, name), name)
    register(monkeypatch, tmp_path, name)
    dataset = data.load(name, data_dir=tmp_path, validation_fraction=0)
    assert_holds(dataset, contents)
    assert (dataset.name, dataset.crop_padding, dataset.flips) == (name, 4, True)
    classes = LAYOUTS[name]["labels"][-1][1]
    assert dataset.num_classes == len(dataset.label_names) == classes
    letter = LAYOUTS[name]["labels"][-1][0][0]
    assert dataset.label_names[3] == f"{letter}3"


def test_a_prepared_set_is_its_archive(original):
    # On disk the records are in another order than in the archive.
    builder = tfds.builder_from_directory(prepared(original[0]))
    ids = [record["id"] for record in builder.as_data_source("train")]
    assert ids != sorted(ids)
    by_hand(original[0]).rename(archive := original[0] / "elsewhere")
    try:
        dataset = data.load("cifar100", data_dir=original[0], validation_fraction=0)
    finally:
        archive.rename(by_hand(original[0]))
    assert_holds(dataset, original[1])
    assert dataset.label_names == tuple(f"f{i}" for i in range(100))


def test_the_default_directory_is_created(tmp_path, original, monkeypatch):
    root = tmp_path / "new"
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(root))
    register(monkeypatch, original[0])
    with pytest.raises(errors.DataError, match="cannot be reached"):
        data.load("cifar100")
    shutil.copytree(prepared(original[0]), prepared(root))
    assert len(data.load("cifar100").test.labels) == 100


def test_a_wrong_checksum_names_both(with_archive):
    archive = by_hand(with_archive)
    expected = hashlib.sha256(archive.read_bytes()).hexdigest()
    write_archive(archive, "cifar100", (5, 5))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=with_archive)
    for part in (str(archive), found, expected):
        assert part in str(caught.value)


def test_prepare_writes_what_data_source_reads(tmp_path, monkeypatch, capsys):
    name = "cifar100"
    contents = write_archive(by_hand(tmp_path, name), name)
    register(monkeypatch, tmp_path, name)
    argv = ["prepare", name, "--data-dir", str(tmp_path)]
    assert command.main(argv) == 0
    assert str(tmp_path / name / "3.0.2") in capsys.readouterr().out
    found = tfds.data_source(name, data_dir=tmp_path)
    for part, examples in contents.items():
        records = sorted(found[part], key=lambda record: record["id"])
        assert [r["id"].decode() for r in records[:2]] == [
            *(f"{part}_00000", f"{part}_00001"),
        ]
        images = np.stack([record["image"] for record in records])
        np.testing.assert_array_equal(images, examples.images)
        labels = [record["label"] for record in records]
        np.testing.assert_array_equal(labels, examples.labels)
    file, classes = LAYOUTS[name]["labels"][0]
    info = tfds.builder(name, data_dir=tmp_path).info
    assert info.features["coarse_label"].names == [
        f"{file[0]}{i}" for i in range(classes)
    ]
    assert_holds(data.load(name, data_dir=tmp_path, validation_fraction=0), contents)
    assert command.main(argv) == 2
    assert "remove it to have the set prepared again" in capsys.readouterr().err


def test_a_set_in_another_format_comes_with_the_command_that_converts(
    tmp_path, original
):
    directory = prepared(tmp_path)
    shutil.copytree(prepared(original[0]), directory)
    DAMAGES["tfrecord"](directory)
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=tmp_path)
    assert f"convert_format --dataset_version_dir={directory}" in str(caught.value)
    assert "remove" not in str(caught.value)


# --- Damaged sets -------------------------------------------------------------------


def _edit_info(edit):
    def damage(directory):
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text())
        edit({split["name"]: split for split in info["splits"]}, info)
        path.write_text(json.dumps(info))

    return damage


def _forget_records(splits, info):
    # All records can be read, but ten of the set are left out.
    splits["train"]["shardLengths"] = ["190"]


def _repeat_records(directory):
    # Two shards in name, each the same file.
    (shard,) = directory.glob("cifar100-train*")
    for half in ("00000-of-00002", "00001-of-00002"):
        shutil.copy(shard, str(shard).replace("00000-of-00001", half))

    def edit(splits, info):
        splits["train"]["shardLengths"] = ["200", "200"]

    _edit_info(edit)(directory)


def _cut_names(directory):
    names = directory / "label.labels.txt"
    names.write_text(names.read_text()[:200])


def _flip_a_bit(directory):
    (shard,) = directory.glob("cifar100-test*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


DAMAGES = {
    "removed": lambda directory: (directory / "features.json").unlink(),
    "flipped": _flip_a_bit,
    "too-few": _edit_info(_forget_records),
    "repeated": _repeat_records,
    "tfrecord": _edit_info(lambda splits, info: info.update(fileFormat="tfrecord")),
    "names-cut": _cut_names,
    "no-test": _edit_info(lambda splits, info: info.update(splits=[splits["train"]])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_set_is_named(damage, tmp_path, original):
    directory = prepared(tmp_path)
    shutil.copytree(prepared(original[0]), directory)
    damage(directory)
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=tmp_path)
    assert str(directory.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cifar100", "other"])
def test_unusable_data_directories(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("link")
    for place in ("absent", "file/x", "link", "~no-one/x", "x" * 300):
        with pytest.raises(errors.DataError, match=place):
            data.load(name, data_dir=place)
