"""Small CIFAR archives in the official format, and what is in them."""

import dataclasses
import hashlib
import io
import shutil
import tarfile

import numpy as np
import pytest

from training import data
from training.data import _cifar_builder

LAYOUTS = {
    "cifar10": {
        "folder": "cifar-10-batches-bin",
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
        "labels": [("batches.meta.txt", 10)],
        "archive": "cifar-10-binary.tar.gz",
    },
    "cifar100": {
        "folder": "cifar-100-binary",
        "train": ["train.bin"],
        "test": ["test.bin"],
        "labels": [("coarse_label_names.txt", 20), ("fine_label_names.txt", 100)],
        "archive": "cifar-100-binary.tar.gz",
    },
}


def write_archive(path, name, counts=(200, 100)):
    """Writes an archive in the official binary format and returns what is in it."""
    layout, generator = LAYOUTS[name], np.random.default_rng(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {}
    with tarfile.open(path, "w:gz") as tar:

        def add(file, text):
            member = tarfile.TarInfo(f"{layout['folder']}/{file}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))

        for file, classes in layout["labels"]:
            add(file, "".join(f"{file[0]}{i}\n" for i in range(classes)).encode())
        for part, count in zip(("train", "test"), counts, strict=True):
            images = generator.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
            labels = np.stack(
                [generator.integers(0, n, count) for _, n in layout["labels"]], 1
            ).astype(np.uint8)
            planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
            rows = np.concatenate([labels, planes], 1)
            for file, block in zip(
                layout[part], np.split(rows, len(layout[part])), strict=True
            ):
                add(file, block.tobytes())
            contents[part] = data.Examples(images, labels[:, -1].astype(np.int32))
    return contents


def by_hand(root, name="cifar100"):
    return root / "downloads" / "manual" / LAYOUTS[name]["archive"]


def register(monkeypatch, root, name="cifar100", url=None):
    """Registers the archive under ``root`` in the place of the official one."""
    builder = _cifar_builder.BUILDERS[name]
    ((_, official),) = builder.url_infos.items()
    archive = by_hand(root, name)
    info = dataclasses.replace(
        official,
        size=archive.stat().st_size,
        checksum=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    # Nothing listens at port 9 of this machine, and no proxy stands before it.
    url = url or f"http://127.0.0.1:9/{archive.name}"
    monkeypatch.setattr(builder, "url_infos", {url: info})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def prepared(root, name="cifar100"):
    return root / name / "3.0.2"


def rows(examples):
    """Returns the images as a sorted list of bytes, to compare as multisets."""
    return sorted(image.tobytes() for image in examples.images)


def assert_holds(dataset, contents):
    np.testing.assert_array_equal(dataset.train.images, contents["train"].images)
    np.testing.assert_array_equal(dataset.train.labels, contents["train"].labels)
    np.testing.assert_array_equal(dataset.test.images, contents["test"].images)
    np.testing.assert_array_equal(dataset.test.labels, contents["test"].labels)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A directory with a small CIFAR-100 and its archive, and what is in them."""
    root = tmp_path_factory.mktemp("original")
    contents = write_archive(by_hand(root), "cifar100")
    with pytest.MonkeyPatch.context() as patch:
        register(patch, root)
        data.load("cifar100", data_dir=root)
    return root, contents


@pytest.fixture
def with_archive(tmp_path, original, monkeypatch):
    """A data directory with a hand-placed archive, which counts as the official one."""
    by_hand(tmp_path).parent.mkdir(parents=True)
    shutil.copy(by_hand(original[0]), by_hand(tmp_path))
    register(monkeypatch, tmp_path)
    return tmp_path
