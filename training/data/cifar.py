"""CIFAR-10 and CIFAR-100: a prepared set, or the official archive.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import os
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np

from training import errors
from training.data import download, prepared
from training.data.dataset import Examples, Source

_SHAPE = (3, 32, 32)  # One image in the archive: red plane, green plane, blue plane.


class _Archive(NamedTuple):
    """An official archive and what is in it.

    Attributes:
      url: Its address.
      size: Its size in bytes.
      sha256: Its checksum, as tensorflow-datasets registers it.
      folder: The folder in it.
      train: The files of the training part, in their order.
      test: The file of the test part.
      names: By label, the file with one name of a class a line. Each label is a byte
        before each image, in this order; ``label`` is the class.
    """

    url: str
    size: int
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: dict[str, str]


class Contents(NamedTuple):
    """The content of an archive.

    Attributes:
      parts: Images, as in ``Examples``, and labels, uint8 ``[n, labels]``, of ``train``
        and ``test``.
      names: The names of the classes, by label.
    """

    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    names: dict[str, list[str]]


ARCHIVES = {
    "cifar10": _Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        names={"label": "batches.meta.txt"},
    ),
    "cifar100": _Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names={
            "coarse_label": "coarse_label_names.txt",
            "label": "fine_label_names.txt",
        },
    ),
}


def read_cifar10(data_dir: str | os.PathLike[str] | None) -> Source:
    """Reads CIFAR-10: 60,000 colour images of 32x32 pixels, in ten classes.

    The set that tensorflow-datasets has prepared in ``<data_dir>/cifar10`` is read if
    there is one. If not, the official archive ``cifar-10-binary.tar.gz`` in
    ``<data_dir>/downloads/manual`` is; it is downloaded if nobody has put it there.

    Args:
      data_dir: Directory of prepared sets; None for that of tensorflow-datasets.

    Returns:
      The official parts, in the order of the official archive.

    Raises:
      DataError: If the directory cannot be used, or the set is damaged or cannot be
        downloaded.
    """
    return _read("cifar10", data_dir)


def read_cifar100(data_dir: str | os.PathLike[str] | None) -> Source:
    """Reads CIFAR-100, with its 100 fine classes; else as ``read_cifar10``."""
    return _read("cifar100", data_dir)


def _read(name: str, data_dir: str | os.PathLike[str] | None) -> Source:
    root = prepared.root(data_dir)
    if (root / name).exists():
        source = prepared.read(name, data_dir)
        if source.test is None or source.label_names[0] == "0":
            raise errors.DataError(
                f"the prepared set in {root / name} cannot be read (its test split or "
                "the names of its classes are missing): remove that directory to have "
                "the official archive read instead"
            )
        return source
    parts, names = read_archive(name, root)

    def examples(part: str) -> Examples:
        images, labels = parts[part]
        return Examples(images, labels[:, -1].astype(np.int32))

    return Source(examples("train"), examples("test"), tuple(names["label"]))


def read_archive(name: str, root: pathlib.Path) -> Contents:
    """Reads the official archive of a set, which is downloaded if it is absent.

    Raises:
      DataError: If it cannot be obtained.
    """
    layout = ARCHIVES[name]
    archive = root / "downloads" / "manual" / pathlib.PurePosixPath(layout.url).name
    download.fetch(layout.url, archive, layout.size, layout.sha256)
    with tarfile.open(archive) as tar:

        def content(file: str) -> bytes:
            member = tar.extractfile(f"{layout.folder}/{file}")
            assert member is not None  # The checksum says so.
            return member.read()

        def part(*files: str) -> tuple[np.ndarray, np.ndarray]:
            pixels, labels = int(np.prod(_SHAPE)), len(layout.names)
            rows = np.frombuffer(b"".join(map(content, files)), np.uint8)
            rows = rows.reshape(-1, labels + pixels)
            planes = rows[:, labels:].reshape(-1, *_SHAPE)
            images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
            return images, rows[:, :labels]

        return Contents(
            parts={"train": part(*layout.train), "test": part(layout.test)},
            names={n: content(f).decode().split() for n, f in layout.names.items()},
        )
