"""Encoded images to arrays of one size, with Pillow."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps

from training import errors
from training.data.dataset import Examples


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Scales an image to a square, without distortion.

    The shorter side becomes ``size`` by bicubic interpolation; what is left of the
    longer side is cut off on both ends.

    Args:
      image: uint8 ``[height, width, channels]``.
      size: Side of the square in pixels.

    Returns:
      uint8 ``[size, size, channels]``; ``image`` itself if it has that size.
    """
    if image.shape[:2] == (size, size):
        return image
    channels = [
        ImageOps.fit(Image.fromarray(channel), (size, size), Image.Resampling.BICUBIC)
        for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def resize_all(examples: Examples, size: int) -> Examples:
    """Applies ``resize`` to every image."""
    if examples.images.shape[1:3] == (size, size):
        return examples
    pixels = np.stack([resize(image, size) for image in examples.images])
    return examples._replace(images=pixels)


def decode(image: Image.Image, channels: int) -> np.ndarray:
    """Returns an opened image as uint8 ``[height, width, channels]``.

    Args:
      image: An image of 8 bits a channel. Palettes are resolved and transparency is
        dropped.
      channels: 1 for grey, 3 for red, green and blue.
    """
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def collect(
    images: Iterable[tuple[str, np.ndarray]], count: int, size: int | None
) -> np.ndarray:
    """Gathers ``count`` images, one at a time, into one array.

    Args:
      images: Name of each image, for messages, and its pixels.
      count: How many there are, at least one.
      size: Side to resize them to; None if all have the same size already.

    Returns:
      uint8 ``[count, height, width, channels]``.

    Raises:
      DataError: If sizes differ.
    """
    first, gathered = "", np.empty(0, np.uint8)
    for index, (name, pixels) in enumerate(images):
        if size is not None:
            pixels = resize(pixels, size)
        if index == 0:
            first, gathered = name, np.empty((count, *pixels.shape), np.uint8)
        elif pixels.shape != gathered.shape[1:]:
            sizes = ["x".join(map(str, a.shape[:2])) for a in (gathered[0], pixels)]
            raise errors.DataError(
                f"images have different sizes ({first} {sizes[0]}, {name} {sizes[1]}, "
                "height first): choose one with --image-size"
            )
        gathered[index] = pixels
    return gathered
