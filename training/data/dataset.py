"""The containers that hold a data set in memory."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

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
      validation: The validation part. None if the set names none; ``load`` then splits
        off one.
      notes: Notes for the user on how it was read.
    """

    train: Examples
    test: Examples | None
    label_names: tuple[str, ...]
    flips: bool = True
    validation: Examples | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        parts: Mapping[str, Examples],
        label_names: Iterable[str],
        notes: tuple[str, ...],
    ) -> Self:
        """From parts by their roles; see :func:`training.data.parts.roles`."""
        train, test, validation = map(parts.get, ("train", "test", "validation"))
        assert train is not None
        names = tuple(label_names)
        return cls(train, test, names, validation=validation, notes=notes)


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
      notes: Notes for the user on how it was read.
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
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """The facts that a run records of its data, as JSON has them.

        With SHA-256 digests of the pixels and the labels, in any order, and of the
        split, that is, of the examples of each part in their order. They take about a
        second for a gigabyte of pixels.
        """
        parts = {part: getattr(self, part) for part in ("train", "validation", "test")}
        rows = {
            part: [
                (hashlib.sha256(image).digest(), int(label).to_bytes(4, "little"))
                for image, label in zip(
                    np.ascontiguousarray(examples.images), examples.labels, strict=True
                )
            ]
            for part, examples in parts.items()
        }
        everything = [row for own in rows.values() for row in own]
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "image_shape": list(self.train.images.shape[1:]),
            **{part: len(own) for part, own in rows.items()},
            # For pixels scaled to [0, 1].
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "label_names": list(self.label_names),
            "digests": {
                "pixels": _digest(sorted(pixels for pixels, _ in everything)),
                "labels": _digest(sorted(map(b"".join, everything))),
                "split": _digest(
                    _digest(map(b"".join, own)).encode() for own in rows.values()
                ),
                "class names": _digest([json.dumps(self.label_names).encode()]),
            },
        }

    def changes(self, facts: Mapping[str, Any]) -> list[str]:
        """The facts that have changed.

        Args:
          facts: The facts of earlier data; without digests nothing is compared.

        Returns:
          "class names", and the first of "pixels", "labels" and "split" that differs.
        """
        before, now = facts.get("digests", {}), self.facts["digests"]
        other = [name for name in before if before[name] != now.get(name)]
        names = [name for name in other if name == "class names"]
        return names + [name for name in other if name != "class names"][:1]


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()
