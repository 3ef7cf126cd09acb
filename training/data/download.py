"""Downloads one file over a slow network: resumed, and verified by its checksum.

pooch always starts at the first byte. The official CIFAR server sends some tens of
kB/s, so 170 MB take an hour or more, and a broken connection must not cost that hour.
"""

import contextlib
import hashlib
import pathlib
import queue
import shutil
import threading

import filelock
import requests
import rich.console
import rich.progress
import urllib3

from training import errors

_CONNECT_SECONDS = 3.0  # To connect to one address.
_LOOKUP_SECONDS = 7.0  # To look up the name and connect.
_STALL_SECONDS = 60.0  # Without a single byte, once connected.
_CHUNK = 1 << 14  # Small, so that the bar moves at 10 kB/s, too.


def fetch(url: str, target: pathlib.Path, size: int, sha256: str) -> None:
    """Downloads ``url`` to ``target`` unless it is there, and verifies its checksum.

    An unfinished download is kept as ``<target>.part`` and continued by the next call.
    ``target`` appears when it is complete and verified.

    Args:
      url: The address of the file.
      target: Where it is stored; its directory is created if absent.
      size: Its size in bytes.
      sha256: Its SHA-256 checksum, in hexadecimal digits.

    Raises:
      DataError: If the file cannot be downloaded or stored, or is another one.
    """
    part = target.with_name(f"{target.name}.part")
    otherwise = f"or put the file at {target}, or name another --data-dir"
    try:
        if not target.exists():
            if failure := _connect(url):
                raise errors.DataError(
                    f"{url} cannot be reached ({failure}): connect to the network, "
                    f"{otherwise}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(target.with_name(".lock"), timeout=0):
                _download(url, part, size)
                if (found := _checksum(part)) != sha256:
                    part.unlink()
                    raise errors.DataError(
                        f"the file from {url} has the SHA-256 {found}, not the "
                        f"registered {sha256}, and was removed: try again, {otherwise}"
                    )
                part.replace(target)
        elif (found := _checksum(target)) != sha256:
            raise errors.DataError(
                f"{target} has the SHA-256 {found}, but {sha256} is registered for "
                f"{url}: remove it, or download it again"
            )
    except filelock.Timeout as error:
        raise errors.DataError(
            f"another process is downloading {target}: start again when it has finished"
        ) from error
    except requests.HTTPError as error:
        raise errors.DataError(
            f"{url} cannot be downloaded ({error}): try again later, {otherwise}"
        ) from error
    # Before OSError, a base class of RequestException.
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        done = part.stat().st_size if part.exists() else 0
        raise errors.DataError(
            f"the download of {url} broke off at {done / 1e6:.1f} of {size / 1e6:.1f} "
            f"MB ({type(error).__name__}): give the same command to continue it, "
            f"{otherwise}"
        ) from error
    except OSError as error:
        raise errors.DataError(
            f"{target} cannot be stored or read ({error}): make sure that it can be, "
            "or name another --data-dir"
        ) from error


def _checksum(file: pathlib.Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _download(url: str, part: pathlib.Path, size: int) -> None:
    """Appends to ``part`` what it lacks."""
    done = part.stat().st_size if part.exists() else 0
    if done == size:
        return
    # An encoded answer could not be continued.
    headers = {"Accept-Encoding": "identity"}
    if 0 < done < size:
        headers["Range"] = f"bytes={done}-"
    timeout = (_CONNECT_SECONDS, _STALL_SECONDS)
    with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
        answer.raise_for_status()
        # A server may ignore the range and send everything.
        partial = answer.status_code == requests.codes.partial_content
        console = rich.console.Console()
        with (
            part.open("ab" if partial else "wb") as file,
            rich.progress.wrap_file(
                answer.raw,
                total=size - done if partial else size,
                description=part.stem,
                transient=True,
                console=console,
                disable=not console.is_terminal,
            ) as content,
        ):
            shutil.copyfileobj(content, file, _CHUNK)


def _connect(url: str) -> str | None:
    """Returns why no connection to ``url`` can be made, or None if one can."""
    failures: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def connect() -> None:
        failure = None
        try:
            # A server that answers slowly is there.
            with contextlib.suppress(requests.ReadTimeout):
                requests.head(url, timeout=_CONNECT_SECONDS)
        except requests.RequestException as error:
            failure = type(error).__name__
        failures.put(failure)

    # In a thread, because the look-up of a name has no time limit of its own.
    threading.Thread(target=connect, daemon=True).start()
    try:
        return failures.get(timeout=_LOOKUP_SECONDS)
    except queue.Empty:
        return f"no answer in {_LOOKUP_SECONDS:g} s"
