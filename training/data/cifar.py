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
      names: The file with one name of a class a line.
      label_bytes: Bytes before each image; the last one is the class.
    """

    url: str
    size: int
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


ARCHIVES = {
    "cifar10": _Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size=170_052_171,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test="test_batch.bin",
        names="batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": _Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        size=168_513_733,
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        names="fine_label_names.txt",
        label_bytes=2,
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
    layout = ARCHIVES[name]
    archive = root / "downloads" / "manual" / pathlib.PurePosixPath(layout.url).name
    download.fetch(layout.url, archive, layout.size, layout.sha256)
    with tarfile.open(archive) as tar:

        def content(file: str) -> bytes:
            member = tar.extractfile(f"{layout.folder}/{file}")
            assert member is not None  # The checksum says so.
            return member.read()

        return Source(
            train=_parse(b"".join(map(content, layout.train)), layout.label_bytes),
            test=_parse(content(layout.test), layout.label_bytes),
            label_names=tuple(content(layout.names).decode().split()),
        )


def _parse(content: bytes, label_bytes: int) -> Examples:
    rows = np.frombuffer(content, np.uint8).reshape(-1, label_bytes + np.prod(_SHAPE))
    planes = rows[:, label_bytes:].reshape(-1, *_SHAPE)
    return Examples(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=rows[:, label_bytes - 1].astype(np.int32),
    )
