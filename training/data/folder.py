"""A folder of image files with one sub-folder a class."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from training import errors
from training.data import images
from training.data.dataset import Examples, Source

_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


def read(path: pathlib.Path, image_size: int | None) -> Source:
    """Reads a set of image files.

    The names of the sub-folders are the classes, in alphabetical order. Either they
    are in ``path`` itself, or in ``path/train`` and, optionally, ``path/test``. Files
    of any format that Pillow reads count; other files and hidden ones are ignored.
    Images have one channel if all of them are grey, else three.

    Args:
      path: The folder.
      image_size: Side to resize images to; None if all have the same size.

    Raises:
      DataError: If there are no images, one cannot be read, sizes differ, or folders
        are not as described.
    """
    try:
        return _read(path, image_size)
    except OSError as error:
        raise errors.DataError(
            f"{path} cannot be read ({error}): name a folder with one sub-folder a "
            "class"
        ) from error


def _read(path: pathlib.Path, image_size: int | None) -> Source:
    parts = {"train": path}
    if "train" in (folders := _folders(path)):
        if others := set(folders) - {"train", "test"}:
            raise errors.DataError(
                f"{path} has train and {', '.join(sorted(others))}: the only folder "
                "that may accompany train is test"
            )
        parts = {part: folders[part] for part in ("train", "test") if part in folders}
    files = {part: _files(folder) for part, folder in parts.items()}
    classes = list(files["train"])
    if unknown := set(files.get("test", classes)) - set(classes):
        raise errors.DataError(
            f"{path / 'test'} has classes that {path / 'train'} lacks "
            f"({', '.join(sorted(unknown))}): give both the same ones"
        )
    everything = [
        file for part in files.values() for group in part.values() for file in group
    ]
    grey = [_is_grey(file) for file in everything]
    channels = 1 if all(grey) else 3
    # Both parts at once, so that their sizes agree, too.
    decoded = _decoded(everything, channels)
    pixels = images.collect(decoded, len(everything), image_size)
    labels = [
        classes.index(name)
        for part in files.values()
        for name, group in part.items()
        for _ in group
    ]
    examples = Examples(pixels, np.asarray(labels, np.int32))
    count = sum(map(len, files["train"].values()))
    train, test = (
        Examples(*(array[half] for array in examples))
        for half in (slice(count), slice(count, None))
    )
    return Source(train, test if "test" in files else None, tuple(classes))


def _folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
    return {
        entry.name: entry
        for entry in sorted(path.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }


def _files(path: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Returns the image files of each class."""
    suffixes = Image.registered_extensions()
    files = {}
    for name, folder in _folders(path).items():
        if inner := _folders(folder):
            raise errors.DataError(
                f"{folder} has a sub-folder {next(iter(inner))}: put its images "
                "directly into the folder of their class"
            )
        files[name] = [
            file
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in suffixes and not file.name.startswith(".")
        ]
        if not files[name]:
            raise errors.DataError(
                f"{folder} has no image files: add some, or remove it"
            )
    if not files:
        raise errors.DataError(
            f"{path} has no sub-folders: make one for each class, with its images"
        )
    return files


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Image.Image]:
    """Opens an image file, and reports whatever is wrong with it."""
    try:
        with Image.open(file) as image:
            yield image
    # Pillow raises many kinds of exceptions at damaged files.
    except Exception as error:
        raise errors.DataError(
            f"the image {file} cannot be read ({error}): replace or remove it"
        ) from error


def _is_grey(file: pathlib.Path) -> bool:
    with _opened(file) as image:
        mode = image.mode
    if mode not in _GREY + _COLOUR:
        raise errors.DataError(
            f"the image {file} has pixels of the kind {mode}: convert it to 8 bits a "
            "channel"
        )
    return mode in _GREY


def _decoded(
    files: list[pathlib.Path], channels: int
) -> Iterator[tuple[str, np.ndarray]]:
    for file in files:
        with _opened(file) as image:
            pixels = images.decode(image, channels)
        yield str(file), pixels
