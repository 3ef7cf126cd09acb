"""`load`: reads a set, splits it and measures its pixels."""

import os
import pathlib

import numpy as np

from training import errors
from training.data import folder, images, npz, registry
from training.data.dataset import Dataset, Source
from training.data.split import split_off_test, stratified_split


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    validation_fraction: float = 0.2,
    train_fraction: float = 1.0,
    split_seed: int = 0,
) -> Dataset:
    """Reads an image-classification set, by its name or its path.

    A path contains a separator (``./flowers``, not ``flowers``), ends in ``.npz``, or
    begins with ``~``. Everything else is a name, whatever files there are.

    - ``digits`` is embedded.
    - ``cifar10`` and ``cifar100`` are read from ``data_dir``: either a set that
      tensorflow-datasets has prepared there, or the official archive in
      ``<data_dir>/downloads/manual/``, which is downloaded if it is absent.
    - Any other name is a set that tensorflow-datasets has prepared in ``data_dir``
      (see ``training.data.prepared``).
    - A path is an ``.npz`` file (see ``training.data.npz``), a folder with one
      sub-folder a class (see ``training.data.folder``), or a folder of one prepared
      set of tensorflow-datasets.

    Where a set names no test part, a fixed, stratified fifth of it is the test part.
    All splits are stratified by class, and each class keeps an image to train on. They
    do not depend on the seed of a run, so runs with different seeds select and test on
    the same images. A set's own validation part takes the place of a split.

    Args:
      name: A name or a path.
      data_dir: Directory of prepared sets; None for ``TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``, which is created if needed.
      image_size: Side of the square, in pixels, to which every image is scaled and
        cropped (see ``images.resize``); None to keep the images as they are.
      validation_fraction: Share of the training part, in [0, 1). With 0 the
        validation part is empty; else a set's own validation part is complete.
      train_fraction: Share of the remaining training part to train on, in (0, 1].
      split_seed: Seed of these two choices, in ``[0, 2**32)``.

    Returns:
      The set, its three parts in memory. The statistics are those of the training
      part alone.

    Raises:
      UserError: If the fractions leave nothing, or nothing of a class, to train on.
      DataError: If the set is absent, damaged, unsuitable or cannot be obtained.
    """
    source = _read(name, data_dir, image_size)
    for part in filter(None, (source.train, source.validation, source.test)):
        try:
            images.check_shape(part.images.shape, len(part.labels))
        except ValueError as error:
            raise errors.DataError(f"the images of {name} {error}") from error
    if len(source.label_names) < 2:
        raise errors.DataError(f"{name} has fewer than two classes: add another")
    rest, test = source.train, source.test
    if test is None:
        rest, test = split_off_test(rest)
    if not len(test.labels):
        raise errors.DataError(f"{name} is too small for a test part: add images")
    own = source.validation
    share = validation_fraction if own is None else 0.0
    left, held_out = stratified_split(rest.labels, share, split_seed, keep=1)
    validation = rest.take(held_out)
    if own is not None and validation_fraction:
        validation = own
    _, drawn = stratified_split(rest.labels[left], train_fraction, split_seed)
    if not len(drawn):
        raise errors.UserError(
            f"the validation fraction {validation_fraction} and the training fraction "
            f"{train_fraction} leave nothing of {name} to train on: choose a smaller "
            "validation fraction or a larger training fraction"
        )
    train = rest.take(left[drawn])
    lost = np.setdiff1d(source.train.labels, train.labels)
    if len(lost):
        raise errors.UserError(
            f"the training fraction {train_fraction} leaves no image of the class "
            f"{source.label_names[lost[0]]} to train on: choose a larger one"
        )
    mean, std = _statistics(train.images)
    return Dataset(
        name=name,
        num_classes=len(source.label_names),
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        # The usual 4 pixels at 32x32, in proportion.
        crop_padding=train.images.shape[1] // 8,
        flips=source.flips,
        label_names=source.label_names,
        notes=source.notes,
    )


def _is_path(name: str) -> bool:
    separators = (os.sep, os.altsep or os.sep)
    return (
        any(separator in name for separator in separators)
        or name.lower().endswith((".npz", ".npy"))
        or name.startswith("~")
        or name in (".", "..")
    )


def _read(
    name: str, data_dir: str | os.PathLike[str] | None, image_size: int | None
) -> Source:
    if name in registry.DATASETS:
        source = registry.load(registry.DATASETS[name])(data_dir)
    elif _is_path(name):
        source = _read_path(name, image_size)
    else:
        # Imported here, as tensorflow-datasets takes a second to import.
        from training.data import prepared

        source = prepared.read(name, data_dir, image_size)
    if image_size is not None:
        source = source._replace(
            train=images.resize_all(source.train, image_size),
            test=source.test and images.resize_all(source.test, image_size),
            validation=source.validation
            and images.resize_all(source.validation, image_size),
        )
    return source


def _read_path(name: str, image_size: int | None) -> Source:
    try:
        path = pathlib.Path(name).expanduser()
        exists, is_prepared = path.exists(), (path / "dataset_info.json").exists()
    # The name may be too long, or begin with the home of an unknown user.
    except (OSError, RuntimeError) as error:
        raise errors.DataError(
            f"the data set {name} cannot be read ({error}): choose another path"
        ) from error
    if not exists:
        raise errors.DataError(
            f"the data set {name} does not exist: name an .npz file or a folder with "
            "one sub-folder a class"
        )
    if is_prepared:
        from training.data import prepared

        return prepared.read_directory(path, image_size)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        raise errors.DataError(
            f"{path} holds one array: write images and labels into one file with "
            "numpy.savez"
        )
    return npz.read(path) if suffix == ".npz" else folder.read(path, image_size)


def _statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation by channel, of pixels in [0, 1]."""
    mean, std = [], []
    for channel in range(pixels.shape[-1]):
        # Sums of integers: exact, so independent of the order of the examples.
        values = pixels[..., channel].astype(np.uint16)
        first = int(values.sum(dtype=np.int64)) / values.size
        second = int(np.square(values).sum(dtype=np.int64)) / values.size
        mean.append(first / 255)
        # A constant channel is left unscaled rather than divided by zero.
        std.append(np.sqrt(second - first**2) / 255 or 1.0)
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)
