"""A set in one ``.npz`` file of NumPy arrays.

``numpy.savez_compressed("set.npz", images=images, labels=labels)`` writes one.
"""

import pathlib
import zipfile
import zlib

import numpy as np

from training import errors
from training.data import parts
from training.data.dataset import Examples, Source
from training.data.images import check_shape


def read(path: pathlib.Path) -> Source:
    """Reads a set from arrays.

    ``images`` is uint8 ``[n, height, width]`` or ``[n, height, width, channels]``, and
    ``labels`` are integers ``[n]`` from 0 to the number of classes minus one; they may
    also be called ``train_images`` and ``train_labels``. ``test_images`` and
    ``test_labels`` are optional and are the test part, and ``val_images`` and
    ``val_labels`` the validation part (see :func:`training.data.parts.roles`). Other
    arrays are ignored.

    Args:
      path: The file.

    Raises:
      DataError: If the file cannot be read, or its arrays are not as described.
    """
    try:
        # Opened here, as NumPy leaves a damaged file open.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            found = [name.rpartition("_")[::2] for name in file]
            names = {part for part, kind in found if kind in ("images", "labels")}
            roles = {"train": "", **parts.roles(names)}
            arrays = {
                f"{part}_{kind}".lstrip("_"): file[f"{part}_{kind}".lstrip("_")]
                for part, kind in found
                if part in roles.values() and kind in ("images", "labels")
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.DataError(
            f"{path} cannot be read ({error}): write it with numpy.savez"
        ) from error
    try:
        examples = {role: _examples(arrays, part) for role, part in roles.items()}
        classes = _count_classes(examples)
    except ValueError as error:
        raise errors.DataError(f"in {path} {error}") from error
    return Source.of(examples, map(str, range(classes)), parts.notes(roles))


def _examples(arrays: dict[str, np.ndarray], part: str) -> Examples:
    images_name = f"{part}_images".lstrip("_")
    labels_name = f"{part}_labels".lstrip("_")
    for name in (images_name, labels_name):
        if name not in arrays:
            raise ValueError(f"there is no array {name!r}: add it")
    images, labels = arrays[images_name], arrays[labels_name]
    if images.dtype != np.uint8:
        raise ValueError(
            f"{images_name!r} are {images.dtype}: convert them to uint8, 0 to 255"
        )
    if images.ndim == 3:
        images = images[..., np.newaxis]
    try:
        check_shape(images.shape, labels.shape[0] if labels.ndim else 0)
    except ValueError as error:
        raise ValueError(f"{images_name!r} {error}") from error
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{labels_name!r} are {labels.dtype} of the shape {labels.shape}: make "
            f"them integers, one for each of the {len(images)} images"
        )
    if labels.min() < 0 or labels.max() >= 2**31:
        raise ValueError(
            f"{labels_name!r} reach from {labels.min()} to {labels.max()}: number the "
            "classes from 0"
        )
    return Examples(images, labels.astype(np.int32))


def _count_classes(examples: dict[str, Examples]) -> int:
    train = examples["train"]
    present = np.unique(train.labels)
    if present[-1] != len(present) - 1:
        absent = int(np.argmax(present != np.arange(len(present))))
        raise ValueError(
            f"no image of 'images' has the label {absent}, but others have "
            f"{present[-1]}: number the classes from 0 without gaps"
        )
    for role, part in examples.items():
        if part.images.shape[1:] != train.images.shape[1:]:
            raise ValueError(
                f"images have the shape {train.images.shape[1:]}, {role} images "
                f"{part.images.shape[1:]}: make them equal"
            )
        if part.labels.max() > present[-1]:
            raise ValueError(
                f"{role} labels reach to {part.labels.max()}, labels only to "
                f"{present[-1]}: remove classes that cannot be learnt"
            )
    return len(present)
