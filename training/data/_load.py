"""The one way in: a set by its name, split and with its statistics."""

import os

import numpy as np

from training import errors
from training.data import _split
from training.data._types import Dataset, Examples, Source

NAMES = ("digits", "cifar10", "cifar100")


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.2,
    train_fraction: float = 1.0,
    split_seed: int = 0,
) -> Dataset:
    """Reads a set, splits off its validation part and measures its pixels.

    ``digits`` comes with scikit-learn and needs neither network nor ``data_dir``.
    ``cifar10`` and ``cifar100`` are read through tensorflow-datasets from a prepared
    set in ``data_dir``. If there is none, it is prepared there from the official
    archive, which is taken from
    ``<data_dir>/downloads/manual/cifar-10-binary.tar.gz`` (or ``cifar-100-...``) if
    someone has put it there, and is downloaded otherwise.

    Parts are stratified by class and depend on ``split_seed`` only, so runs with other
    training seeds select on the same images.

    Args:
      name: one of ``NAMES``.
      data_dir: directory of prepared sets; None for that of tensorflow-datasets,
        ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``, which is created if needed.
      validation_fraction: share of the official training part, in [0, 1). With 0 the
        validation part is empty and the caller has nothing to select by.
      train_fraction: share of what is left that is trained on, in (0, 1]; the rest is
        not read again.
      split_seed: seed of these choices, in ``[0, 2**32)``.

    Returns:
      The set, its three parts in memory. The statistics are those of the training
      part alone.

    Raises:
      UserError: if an argument is out of range.
      DataError: if the set is absent and cannot be obtained, or is damaged.
    """
    if name not in NAMES:
        raise errors.UserError(
            f"There is no data set {name!r}: choose one of {', '.join(NAMES)}."
        )
    if not 0 <= validation_fraction < 1:
        raise errors.UserError(
            f"The validation fraction is {validation_fraction}: choose it in [0, 1)."
        )
    if not 0 < train_fraction <= 1:
        raise errors.UserError(
            f"The training fraction is {train_fraction}: choose it in (0, 1]."
        )
    if not 0 <= split_seed < 2**32:
        raise errors.UserError(
            f"The split seed is {split_seed}: choose it in [0, {2**32})."
        )
    source = _read(name, data_dir)
    labels = source.train.labels
    left, held_out = _split.stratified_split(labels, validation_fraction, split_seed)
    _, drawn = _split.stratified_split(labels[left], train_fraction, split_seed)
    kept = left[drawn]
    if not len(left):
        raise errors.UserError(
            f"The validation fraction {validation_fraction} leaves nothing of {name} "
            "to train on: choose a smaller one."
        )
    if not len(kept):
        raise errors.UserError(
            f"The training fraction {train_fraction} leaves nothing of {name} to train "
            "on: choose a larger one."
        )
    train, validation = (
        Examples(source.train.images[part], source.train.labels[part])
        for part in (kept, held_out)
    )
    mean, std = _statistics(train.images)
    return Dataset(
        name=name,
        num_classes=len(source.label_names),
        train=train,
        validation=validation,
        test=source.test,
        mean=mean,
        std=std,
        # The usual 4 pixels at 32x32, in proportion.
        crop_padding=train.images.shape[1] // 8,
        flips=name != "digits",  # A mirrored 2 is not a 2.
        label_names=source.label_names,
    )


def _read(name: str, data_dir: str | os.PathLike[str] | None) -> Source:
    # Imported here, because scikit-learn and tensorflow-datasets take their time to
    # import and a run needs at most one of them.
    if name == "digits":
        from training.data import _digits

        return _digits.read()
    from training.data import _cifar

    return _cifar.read(name, data_dir)


def _statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation by channel, of pixels in [0, 1]."""
    mean, std = [], []
    for channel in range(images.shape[-1]):
        # Sums of integers: exact, so independent of the order of the examples.
        pixels = images[..., channel].astype(np.uint16)
        first = int(pixels.sum(dtype=np.int64)) / pixels.size
        second = int(np.square(pixels).sum(dtype=np.int64)) / pixels.size
        mean.append(first / 255)
        # A constant channel is left unscaled rather than divided by zero.
        std.append(np.sqrt(second - first**2) / 255 or 1.0)
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)
