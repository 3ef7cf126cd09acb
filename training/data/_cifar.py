"""CIFAR-10 and CIFAR-100, read from a set prepared by tensorflow-datasets.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from training import errors
from training.data import _cifar_prepare
from training.data._types import Examples, Source

_BLOCK = 5000  # Records held in memory, undecoded, at a time.


def read(name: str, data_dir: str | os.PathLike[str] | None) -> Source:
    """Reads ``cifar10`` or ``cifar100``, and prepares it first if it is absent.

    Args:
      name: of the set.
      data_dir: of the prepared sets, or None for that of tensorflow-datasets.

    Returns:
      The official parts, in the order of the official archive.

    Raises:
      DataError: if the directory is unusable, or the set is damaged or cannot be had.
    """
    place = tfds.core.constants.DATA_DIR if data_dir is None else data_dir
    try:
        root = pathlib.Path(place).expanduser()
        exists = root.exists()
    # Its name may be too long, or begin with the home of nobody.
    except (OSError, RuntimeError) as error:
        raise errors.DataError(
            f"The data directory {place} cannot be used ({error}): name another one."
        ) from error
    if exists and not root.is_dir():
        raise errors.DataError(
            f"The data directory {root} is not a directory: name one that is."
        )
    if not exists and data_dir is not None:
        raise errors.DataError(
            f"The data directory {root} does not exist: create it to have {name} "
            "prepared there, or name the directory of a prepared set."
        )
    builder_cls = tfds.builder_cls(name)
    directory = root / name / str(builder_cls.VERSION)
    if not directory.exists():
        _cifar_prepare.prepare(name, root)
    try:
        return _read_prepared(directory)
    # A damaged file makes the libraries underneath raise whatever they like, so every
    # failure here is taken for damage, and its cause told.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise errors.DataError(
            f"The prepared set in {directory} cannot be read "
            f"({type(error).__name__}: {cause}): remove that directory to have it "
            "prepared again, or name the data directory of another prepared set."
        ) from error


def _read_prepared(directory: pathlib.Path) -> Source:
    builder = tfds.builder_from_directory(directory)
    # Read here, as tensorflow-datasets takes a file that is cut short or missing for
    # one with fewer names or none.
    names = (directory / "label.labels.txt").read_text(encoding="utf-8").split()
    classes = builder.info.features["label"].num_classes
    if len(set(names)) != classes:
        raise ValueError(f"there are {len(set(names))} names of {classes} labels")
    return Source(
        train=_read_part(builder, "train"),
        test=_read_part(builder, "test"),
        label_names=tuple(names),
    )


def _read_part(builder: Any, part: str) -> Examples:
    records = builder.as_data_source(
        part, decoders={"image": tfds.decode.SkipDecoding()}
    )
    count = len(records)
    shape = builder.info.features["image"].shape
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int32)
    seen = np.zeros(count, bool)
    for start in range(0, count, _BLOCK):
        block = range(start, min(start + _BLOCK, count))
        for record in records.__getitems__(list(block)):
            # On disk the records are in the order of a hash. Their ids, `train_00000`
            # and on, give them back the order of the archive.
            position = int(record["id"].removeprefix(f"{part}_".encode()))
            # One thread: on images this small most of the work holds the GIL, and a
            # pool was slower.
            with Image.open(io.BytesIO(record["image"]), formats=("PNG",)) as image:
                images[position] = np.asarray(image)
            labels[position] = record["label"]
            seen[position] = True
    if not seen.all():
        raise ValueError(f"{np.sum(~seen)} of {count} {part} examples are missing")
    return Examples(images, labels)
