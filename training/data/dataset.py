"""The containers that hold a data set in memory."""

import dataclasses
from typing import NamedTuple, Self

import numpy as np


class Examples(NamedTuple):
    """Labelled images, in a fixed order.

    Attributes:
      images: uint8 ``[n, height, width, channels]``, 0 is black and 255 is full.
      labels: int32 ``[n]``, each in ``[0, num_classes)``.
    """

    images: np.ndarray
    labels: np.ndarray

    def take(self, positions: np.ndarray) -> Self:
        """Returns a copy of the examples at these positions."""
        return type(self)(self.images[positions], self.labels[positions])


class Source(NamedTuple):
    """A set as it is stored, before a validation part is split off.

    Attributes:
      train: The training part.
      test: The test part. None if the set names none; ``load`` then splits off a
        fixed one.
      label_names: The names of the classes, in the order of the labels.
      flips: Whether a mirrored image still shows its class.
    """

    train: Examples
    test: Examples | None
    label_names: tuple[str, ...]
    flips: bool = True


# Compared by identity: the comparison of arrays has no single truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A set ready for training.

    Attributes:
      name: The name or the path that it was loaded by.
      num_classes: The number of classes.
      train: The examples to train on.
      validation: The examples to choose the best epoch by; empty if
        ``validation_fraction`` was 0.
      test: The examples for the final test.
      mean: float32 ``[channels]``, the mean of the training part's pixels, where a
        pixel is its uint8 value divided by 255.
      std: float32 ``[channels]``, the population standard deviation in the same unit.
      crop_padding: Pixels of padding on each side for random crops.
      flips: Whether a mirrored image still shows its class.
      label_names: The names of the classes, in the order of the labels.
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
