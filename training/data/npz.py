"""A set in one ``.npz`` file of NumPy arrays.

``numpy.savez_compressed("set.npz", images=images, labels=labels)`` writes one.
"""

import pathlib
import zipfile
import zlib

import numpy as np

from training import errors
from training.data.dataset import Examples, Source


def read(path: pathlib.Path) -> Source:
    """Reads a set from arrays.

    ``images`` is uint8 ``[n, height, width]`` or ``[n, height, width, channels]``, and
    ``labels`` are integers ``[n]`` from 0 to the number of classes minus one.
    ``test_images`` and ``test_labels`` are optional and are the test part. Other arrays
    are ignored.

    Args:
      path: The file.

    Raises:
      DataError: If the file cannot be read, or its arrays are not as described.
    """
    try:
        # Opened here, as NumPy leaves a damaged file open.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            arrays = {
                name: file[name]
                for name in ("images", "labels", "test_images", "test_labels")
                if name in file
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise errors.DataError(
            f"{path} cannot be read ({error}): write it with numpy.savez"
        ) from error
    try:
        train = _examples(arrays, "images", "labels")
        test = None
        if "test_images" in arrays or "test_labels" in arrays:
            test = _examples(arrays, "test_images", "test_labels")
        classes = _count_classes(train, test)
    except ValueError as error:
        raise errors.DataError(f"in {path} {error}") from error
    return Source(train, test, tuple(map(str, range(classes))))


def _examples(
    arrays: dict[str, np.ndarray], images_name: str, labels_name: str
) -> Examples:
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
    if images.ndim != 4 or not images.size:
        raise ValueError(
            f"{images_name!r} have the shape {images.shape}: make it "
            "[n, height, width] or [n, height, width, channels], none of them 0"
        )
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


def _count_classes(train: Examples, test: Examples | None) -> int:
    present = np.unique(train.labels)
    if present[-1] != len(present) - 1:
        absent = int(np.argmax(present != np.arange(len(present))))
        raise ValueError(
            f"no image of 'images' has the label {absent}, but others have "
            f"{present[-1]}: number the classes from 0 without gaps"
        )
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise ValueError(
            f"images have the shape {train.images.shape[1:]}, test images "
            f"{test.images.shape[1:]}: make them equal"
        )
    if test is not None and test.labels.max() > present[-1]:
        raise ValueError(
            f"test labels reach to {test.labels.max()}, labels only to {present[-1]}: "
            "remove classes that cannot be learnt"
        )
    return len(present)
