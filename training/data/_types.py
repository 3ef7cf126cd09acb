"""The containers that hold a data set in memory."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """Labelled images, in a fixed order.

    Attributes:
      images: uint8 ``[n, height, width, channels]``, 0 is black and 255 full.
      labels: int32 ``[n]``, each in ``[0, num_classes)``.
    """

    images: np.ndarray
    labels: np.ndarray


class Source(NamedTuple):
    """A set as its publisher cut it, before a validation part is split off.

    Attributes:
      train: the training part.
      test: the test part.
      label_names: one name a class, in the order of the labels.
    """

    train: Examples
    test: Examples
    label_names: tuple[str, ...]


# Compared by identity: arrays have no single truth value to compare by.
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A set ready for training.

    Attributes:
      name: one of ``NAMES``.
      num_classes: the number of classes.
      train: the examples to train on.
      validation: the examples to select by; empty if ``validation_fraction`` was 0.
      test: the examples to report on, once.
      mean: float32 ``[channels]``, mean of the training part's pixels, where a pixel
        is its uint8 value over 255, so in [0, 1].
      std: float32 ``[channels]``, population standard deviation in the same unit.
      crop_padding: pixels of padding on each side for random crops.
      flips: whether a mirrored image still shows its class.
      label_names: one name a class, in the order of the labels.
    """

    name: str
    num_classes: int
    train: Examples
    validation: Examples
    test: Examples
    mean: np.ndarray
    std: np.ndarray
    crop_padding: int
    flips: bool
    label_names: tuple[str, ...]
