"""Sets that tensorflow-datasets has prepared, read without TensorFlow.

``tfds.data_source(name, data_dir=...)`` prepares a set in the right format on a machine
with TensorFlow; the directory can then be copied. ``training.data.prepare`` prepares
CIFAR without.
"""

import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module  # type: ignore[import-untyped]
from PIL import Image

from training import errors
from training.data import images, parts
from training.data.dataset import Examples, Source
from training.data.registry import DATASETS

_INFO = "dataset_info.json"
_BLOCK = 5000  # Records held in memory, undecoded, at a time.


def root(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Returns the directory of prepared sets.

    Args:
      data_dir: Its path; None for that of tensorflow-datasets, which need not exist.

    Raises:
      DataError: If it is not a directory, or does not exist.
    """
    place = tfds.core.constants.DATA_DIR if data_dir is None else data_dir
    try:
        path = pathlib.Path(place).expanduser()
        exists = path.exists()
    # The name may be too long, or begin with the home of an unknown user.
    except (OSError, RuntimeError) as error:
        raise errors.DataError(
            f"the data directory {place} cannot be used ({error}): name another one"
        ) from error
    if exists and not path.is_dir():
        raise errors.DataError(
            f"the data directory {path} is not a directory: name one that is"
        )
    if not exists and data_dir is not None:
        raise errors.DataError(
            f"the data directory {path} does not exist: create it, or name another one"
        )
    return path


def read(
    name: str, data_dir: str | os.PathLike[str] | None, image_size: int | None = None
) -> Source:
    """Reads the set ``<data_dir>/<name>/[<config>/]<version>``.

    Args:
      name: The name of the set. One that is prepared in several configurations or
        versions is read by the path of its directory instead.
      data_dir: Directory of prepared sets; None for that of tensorflow-datasets.
      image_size: Side to resize images to; None if all have the same size.

    Raises:
      DataError: If the set is absent, or as for ``read_directory``.
    """
    directory = root(data_dir) / name
    try:
        present = bool(name) and directory.is_dir()
    except OSError:  # The name may be too long.
        present = False
    if not present:
        raise errors.DataError(
            f"there is no data set {name!r}: --dataset takes {', '.join(DATASETS)}, "
            f"the name of a set that tensorflow-datasets has prepared (there is no "
            f"{directory}), or a path with a separator, such as ./{name}"
        )
    # Unfinished sets of tensorflow-datasets are called ``incomplete``.
    found = [
        info.parent
        for info in sorted(directory.rglob(_INFO))
        if "incomplete" not in info.parent.name
    ]
    if not found:
        raise _unreadable(directory, f"there is no {_INFO}")
    if len(found) > 1:
        raise errors.DataError(
            f"{name} is prepared more than once: name one of the directories "
            f"{', '.join(map(str, found))} as the data set"
        )
    return read_directory(found[0], image_size)


def read_directory(directory: pathlib.Path, image_size: int | None) -> Source:
    """Reads the set in a directory that holds ``dataset_info.json``.

    The features ``image`` (uint8) and ``label`` (one class) are read, others are
    ignored. The splits are ``train``, ``test`` and ``validation``; without ``test``
    the test part is ``validation`` (see :func:`training.data.parts.roles`). If
    ``train`` is the only split, the set names no test part. Examples are in the order
    of their ``id`` if there is one, else in the order of the records.

    Args:
      directory: The directory of one version of a set.
      image_size: Side to resize images to; None if all have the same size.

    Raises:
      DataError: If the set is damaged, not in the format ``array_record``, or has
        other features or splits than described, or images of different sizes.
    """
    try:
        return _read(tfds.builder_from_directory(directory), directory, image_size)
    except errors.DataError:
        raise
    # Damaged files make the libraries underneath raise any kind of exception, so every
    # failure here is reported as damage, with its cause.
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise _unreadable(directory, f"{type(error).__name__}: {cause}") from error


def _unreadable(directory: pathlib.Path, cause: str) -> errors.DataError:
    return errors.DataError(
        f"the prepared set in {directory} cannot be read ({cause}): remove that "
        "directory and prepare the set again, or name another --data-dir"
    )


def _read(builder: Any, directory: pathlib.Path, image_size: int | None) -> Source:
    features, splits = dict(builder.info.features.items()), builder.info.splits
    image, label = features.get("image"), features.get("label")
    if not (
        isinstance(image, tfds.features.Image)
        and isinstance(label, tfds.features.ClassLabel)
        and image.np_dtype == np.uint8
    ):
        raise errors.DataError(
            f"the set in {directory} has the features {', '.join(features)}: only sets "
            "with an 8-bit image called 'image' and a class called 'label' can be read"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise errors.DataError(
            f"the set in {directory} is in the format "
            f"{builder.info.file_format.value}, and only array_record can be read: "
            f"convert it, on a machine with TensorFlow, by `python -m "
            f"tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={directory} --out_file_format=array_record "
            f"--out_dir=DIR/{directory.parent.name}/{directory.name}`, and name DIR as "
            f"--data-dir"
        )
    names = label.names
    # tensorflow-datasets ignores this file if it is cut short.
    if (file := directory / "label.labels.txt").exists():
        names = file.read_text(encoding="utf-8").splitlines()
    if len(set(names)) != label.num_classes:
        raise ValueError(f"there are {len(set(names))} names of {label.num_classes}")
    roles = parts.roles(splits)
    if "train" not in roles or (len(roles) == 1 and len(splits) > 1):
        raise errors.DataError(
            f"the set in {directory} has the splits {', '.join(splits)}: only sets "
            "with train and test or validation, or with train alone, can be read"
        )
    found = {
        role: _read_part(builder, part, image_size) for role, part in roles.items()
    }
    for role, examples in found.items():
        if examples.images.shape[1:] != found["train"].images.shape[1:]:
            raise errors.DataError(
                f"the images of {roles[role]} in {directory} have another size than "
                "those of train: choose one with --image-size"
            )
    return Source.of(found, names, parts.notes(roles))


def _read_part(builder: Any, part: str, image_size: int | None) -> Examples:
    stored = builder.info.splits[part]
    for file, count in zip(stored.filepaths, stored.shard_lengths, strict=True):
        found = array_record_module.ArrayRecordReader(str(file)).num_records()
        if found != count:
            raise ValueError(f"{file.name} has {found} records, not {count}")
    records = builder.as_data_source(
        part, decoders={"image": tfds.decode.SkipDecoding()}
    )
    if not len(records):
        raise ValueError(f"{part} has no examples")
    labels, ids = [], []

    def decoded() -> Iterator[tuple[str, np.ndarray]]:
        channels = builder.info.features["image"].shape[-1]
        for start in range(0, len(records), _BLOCK):
            block = range(start, min(start + _BLOCK, len(records)))
            # One thread: on small images most of the work holds the GIL, and a pool was
            # slower.
            for index, record in zip(
                block, records.__getitems__(list(block)), strict=True
            ):
                labels.append(record["label"])
                ids.append(record.get("id", index))
                with Image.open(io.BytesIO(record["image"])) as image:
                    yield f"{part} {index}", images.decode(image, channels)

    pixels = images.collect(decoded(), len(records), image_size)
    if len(set(ids)) != len(ids):
        raise ValueError(f"{part} has the same example more than once")
    order = sorted(range(len(ids)), key=ids.__getitem__)
    examples = Examples(pixels, np.asarray(labels, np.int32))
    classes = builder.info.features["label"].num_classes
    if not all((examples.labels >= 0) & (examples.labels < classes)):
        raise errors.DataError(
            f"{builder.info.full_name} has {part} images without a label: it cannot be "
            "trained and tested on"
        )
    return examples.take(np.asarray(order))
