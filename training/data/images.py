"""Encoded images to arrays of one size, with Pillow."""

import contextlib
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

from training import errors
from training.data.dataset import Examples

_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")
_MOST_CHANNELS = 4


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scales an image, without distortion, by bicubic interpolation.

    What is left of the side that is too long is cut off on both ends.

    Args:
      image: uint8 ``[height, width, channels]``.
      size: Height and width in pixels, or the side of a square.

    Returns:
      uint8 ``[height, width, channels]``; ``image`` itself if it has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    channels = [
        ImageOps.fit(
            Image.fromarray(channel), (width, height), Image.Resampling.BICUBIC
        )
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
      image: An image of 8 bits a channel. It is turned as its EXIF orientation says,
        and palettes are resolved. Transparent pixels show white.
      channels: 1 for grey, else red, green and blue.
    """
    image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata
        # Metadata that is damaged says nothing of the pixels.
        with contextlib.suppress(Exception):
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], -1)


@contextlib.contextmanager
def opened(file: pathlib.Path) -> Iterator[Image.Image]:
    """Opens an image file, and reports whatever is wrong with it.

    Raises:
      DataError: If it cannot be read, or does not have 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            if image.mode not in _GREY + _COLOUR:
                raise errors.DataError(
                    f"the image {file} has pixels of the kind {image.mode}: convert it "
                    "to 8 bits a channel"
                )
            yield image
    except errors.DataError:
        raise
    # Pillow raises many kinds of exceptions at damaged files.
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.DataError(
            f"the image {file} cannot be read ({reason}): replace or remove it"
        ) from error


def is_grey(image: Image.Image) -> bool:
    """Whether an opened image has no colours."""
    return image.mode in _GREY


def check_shape(shape: Sequence[int], count: int) -> None:
    """Raises ValueError unless a shape is ``[n, height, width, channels]``.

    Args:
      shape: The shape of some images.
      count: How many there are.
    """
    axes = "[n, height, width, channels], with 1 to 4 channels"
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"have the shape {tuple(shape)}: make it {axes}")
    if shape[-1] <= _MOST_CHANNELS and (shape[0] == count or count not in shape):
        return
    # Where the axes seem to be, for example in PyTorch's order.
    first = shape.index(count) if count in shape else 0
    others = [axis for axis in range(4) if axis != first]
    narrow = [axis for axis in others if shape[axis] <= _MOST_CHANNELS]
    hint = ""
    if narrow:
        last = 3 if 3 in narrow else narrow[0]
        order = (first, *(axis for axis in others if axis != last), last)
        hint = f", as images.transpose{order} does"
    raise ValueError(f"have the shape {tuple(shape)}: make it {axes}{hint}")


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
