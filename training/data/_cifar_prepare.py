"""Getting hold of the official CIFAR archive, and preparing a set from it."""

import hashlib
import os
import pathlib
import threading

import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import (
    download_manager,
    resource,
)

from training import errors
from training.data import _cifar_builder

# Seconds to connect and to wait for the first bytes, and for all of it with the
# look-up of the name, which has no limit of its own.
_CONNECT_SECONDS = 3.0
_PROBE_SECONDS = 8.0


def prepare(name: str, root: pathlib.Path) -> None:
    """Prepares ``cifar10`` or ``cifar100`` in the data directory ``root``.

    The archive is ``<root>/downloads/manual/cifar-10-binary.tar.gz`` or
    ``cifar-100-binary.tar.gz`` if someone has put it there; else an earlier download;
    else it is downloaded. Its SHA-256 must be the one that tensorflow-datasets has
    registered. The set appears under its name only when it is complete.

    Args:
      name: of the set.
      root: directory of prepared sets; created if absent.

    Raises:
      DataError: if the server cannot be reached, the archive is wrong, or the
        directory cannot be written.
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
    downloads = root / "downloads"
    by_hand = downloads / "manual" / registered.filename
    downloaded = downloads / name / resource.get_dl_fname(url, registered.checksum)
    archive = next((path for path in (by_hand, downloaded) if path.exists()), None)
    if archive:
        _verify(archive, registered.checksum, url)
    elif reason := _unreachable(url):
        raise errors.DataError(
            f"{name} is not prepared in {root} and {url} cannot be reached ({reason}): "
            f"download that archive elsewhere and put it at {by_hand}, or name the "
            f"directory of a prepared set with --data-dir, or connect to the network."
        )
    builder = builder_cls(data_dir=root, file_format="array_record")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                force_checksums_validation=True, try_download_gcs=False
            )
        )
    except download_manager.NonMatchingChecksumError as error:
        raise errors.DataError(
            f"What {url} sent is not the registered archive with SHA-256 "
            f"{registered.checksum}: try again, or put the archive at {by_hand} "
            f"({' '.join(str(error).split())})."
        ) from error
    # `requests` reports a broken connection as an OSError, too.
    except (OSError, tfds.download.DownloadError) as error:
        if builder.data_path.exists():
            return  # Another process has prepared the same set meanwhile.
        raise errors.DataError(
            f"{name} cannot be prepared in {root} ({error}): try again, or put the "
            f"archive {url} at {by_hand}, or name the directory of a prepared set with "
            "--data-dir."
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


def _unreachable(url: str) -> str | None:
    """Says why ``url`` cannot be downloaded, or None if it looks as if it can.

    Left alone, tensorflow-datasets retries for minutes. A server that answers slowly
    is not taken for an absent one.
    """
    reasons: list[str | None] = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_CONNECT_SECONDS) as answer:
                reasons.append(None if answer.ok else f"HTTP {answer.status_code}")
        except requests.ReadTimeout:
            reasons.append(None)
        except requests.RequestException as error:
            reasons.append(type(error).__name__)

    # In a thread, because looking up a name cannot be given a time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer in {_PROBE_SECONDS:g} s"
