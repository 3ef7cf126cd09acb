"""Getting hold of the official CIFAR archive, and preparing a set from it."""

import hashlib
import os
import pathlib

import tensorflow_datasets as tfds

from training import errors
from training.data import _cifar_builder, _download


def prepare(name: str, root: pathlib.Path) -> None:
    """Prepares ``cifar10`` or ``cifar100`` in the data directory ``root``.

    The archive is ``<root>/downloads/manual/cifar-10-binary.tar.gz`` or
    ``cifar-100-binary.tar.gz``. If nobody has put it there, it is downloaded. Its
    SHA-256 must be the one that tensorflow-datasets has registered. The set appears
    under its name only when it is complete.

    Args:
      name: of the set.
      root: directory of prepared sets; created if absent.

    Raises:
      DataError: if the archive cannot be downloaded or is wrong, or the directory
        cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise errors.DataError(
            f"{name} is not prepared in {root} and that directory cannot be written: "
            "name another data directory, or that of a prepared set."
        )
    builder_cls = _cifar_builder.BUILDERS[name]
    ((url, registered),) = builder_cls.url_infos.items()
    archive = root / "downloads" / "manual" / registered.filename
    if archive.exists():
        _verify(archive, registered.checksum, url)
    else:
        try:
            _download.download(url, archive, registered.size, registered.checksum)
        except errors.DataError as error:
            raise errors.DataError(
                f"{name} is not prepared in {root} and {error}, or download the "
                f"archive by other means and put it at {archive}, or name the "
                "directory of a prepared set with --data-dir."
            ) from error
    builder = builder_cls(data_dir=root, file_format="array_record")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                force_checksums_validation=True, try_download_gcs=False
            )
        )
    except OSError as error:
        if builder.data_path.exists():
            return  # Another process has prepared the same set meanwhile.
        raise errors.DataError(
            f"{name} cannot be prepared in {root} ({error}): try again, or name "
            "another data directory, or that of a prepared set."
        ) from error


def _verify(archive: pathlib.Path, expected: str, url: str) -> None:
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise errors.DataError(
            f"The archive {archive} cannot be read ({error}): replace it."
        ) from error
    if found != expected:
        raise errors.DataError(
            f"The archive {archive} has the SHA-256 {found}, but {expected} is "
            f"registered for {url}: download it again, or remove it."
        )
