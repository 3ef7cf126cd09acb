"""A folder of image files with one sub-folder a class."""

import pathlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from training import errors
from training.data import images, parts
from training.data.dataset import Examples, Source

# Formats of which Pillow knows the name, and does not decode the pixels.
_NO_PIXELS = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")


def read(path: pathlib.Path, image_size: int | None) -> Source:
    """Reads a set of image files.

    The names of the sub-folders are the classes, in alphabetical order. Either they
    are in ``path`` itself, or in ``path/train`` and, optionally, ``path/test`` and
    ``path/val`` (see :func:`training.data.parts.roles`). Files of any format that
    Pillow reads count; other files and hidden ones are ignored. Images have one channel
    if all of them are grey, else three; see :func:`training.data.images.decode`.

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
    folders = _folders(path)
    notes: tuple[str, ...] = ()
    roles = parts.roles(folders)
    if "train" in roles:
        if others := set(folders) - set(roles.values()):
            raise errors.DataError(
                f"{path} has {roles['train']} and {', '.join(sorted(others))}: only "
                "folders with a validation and a test part may accompany train"
            )
        notes = parts.notes(roles)
        folders = {role: folders[name] for role, name in roles.items()}
    else:
        folders = {"train": path}
    ignored: Counter[str] = Counter()
    files = {role: _files(folder, ignored) for role, folder in folders.items()}
    classes = list(files["train"])
    for role, own in files.items():
        if unknown := set(own) - set(classes):
            raise errors.DataError(
                f"{folders[role]} has classes that {folders['train']} lacks "
                f"({', '.join(sorted(unknown))}): give both the same ones"
            )
    if ignored:
        kinds = ", ".join(sorted(ignored))
        notes += (f"ignored {ignored.total()} files that are no images ({kinds})",)
    everything = [
        file for part in files.values() for group in part.values() for file in group
    ]
    grey = []
    for file in everything:
        with images.opened(file) as image:
            grey.append(images.is_grey(image))
    channels = 1 if all(grey) else 3
    # All parts at once, so that their sizes agree, too.
    decoded = _decoded(everything, channels)
    pixels = images.collect(decoded, len(everything), image_size)
    labels = [
        classes.index(name)
        for part in files.values()
        for name, group in part.items()
        for _ in group
    ]
    ends = np.cumsum([sum(map(len, part.values())) for part in files.values()])
    arrays = pixels, np.asarray(labels, np.int32)
    split = zip(files, *(np.split(x, ends[:-1]) for x in arrays), strict=True)
    found = {role: Examples(*own) for role, *own in split}
    return Source.of(found, classes, notes)


def _folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
    return {
        entry.name: entry
        for entry in sorted(path.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }


def _files(path: pathlib.Path, ignored: Counter[str]) -> dict[str, list[pathlib.Path]]:
    """Returns the image files of each class; counts others by their suffix."""
    suffixes = {
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PIXELS
    }
    files: dict[str, list[pathlib.Path]] = {}
    folders = _folders(path)
    for name, folder in folders.items():
        if inner := _folders(folder):
            instead = ""
            if len(folders) == 1 or name == path.name:
                instead = f", or name {folder} as the data set"
            raise errors.DataError(
                f"{folder} has a sub-folder {next(iter(inner))}: put its images "
                f"directly into the folder of their class{instead}"
            )
        files[name] = []
        others: list[pathlib.Path] = []
        for file in sorted(folder.iterdir()):
            if not file.name.startswith("."):
                is_image = file.suffix.lower() in suffixes
                (files[name] if is_image else others).append(file)
        kinds = Counter(file.suffix.lower() or "no suffix" for file in others)
        ignored.update(kinds)
        if not files[name]:
            which = f", only {', '.join(sorted(kinds))}" if kinds else ""
            raise errors.DataError(
                f"{folder} has no image files{which}: add some, or remove it"
            )
    if not files:
        raise errors.DataError(
            f"{path} has no sub-folders: make one for each class, with its images"
        )
    return files


def _decoded(
    files: list[pathlib.Path], channels: int
) -> Iterator[tuple[str, np.ndarray]]:
    for file in files:
        with images.opened(file) as image:
            pixels = images.decode(image, channels)
        yield str(file), pixels
