"""Downloading one file over a slow network: resumed, verified, or told why not."""

import fcntl
import hashlib
import os
import pathlib
import threading
from io import BufferedRandom

import requests
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from urllib3.exceptions import HTTPError, ReadTimeoutError

from training import errors

_CONNECT_SECONDS = 3.0  # To connect to one address.
_PROBE_SECONDS = 7.0  # To connect at all, with the look-up of the name.
_STALL_SECONDS = 60.0  # Without a single byte, once connected.
_CHUNK = 1 << 14  # Small, so that the bar moves at 10 kB/s, too.


def download(url: str, target: pathlib.Path, size: int, checksum: str) -> None:
    """Downloads ``url`` to ``target``.

    What has come so far is in ``<target>.part``, and the next call goes on from there
    if the server can. ``target`` appears when it is complete and verified.

    Args:
      url: of the file.
      target: where to put it; its directory is created if absent.
      size: of the file, in bytes.
      checksum: SHA-256 of the file, in hexadecimal digits.

    Raises:
      DataError: if the file cannot be had or stored. The message has no full stop, for
        the caller to add what else can be done.
    """
    if reason := _unreachable(url):
        raise errors.DataError(
            f"{url} cannot be reached ({reason}): connect to the network"
        )
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as file:
            _claim(file)
            try:
                if not target.exists():  # Another process may just have finished it.
                    _complete(url, file, size, checksum)
                    part.replace(target)
            finally:
                if file.seek(0, os.SEEK_END) == 0:
                    part.unlink(missing_ok=True)
    # Before OSError, which those of `requests` are, too.
    except (requests.RequestException, HTTPError) as error:
        stalled = isinstance(error, requests.ReadTimeout | ReadTimeoutError)
        reason = f"nothing came for {_STALL_SECONDS:g} s" if stalled else None
        raise errors.DataError(
            f"{url} broke off at {part.stat().st_size / 1e6:.1f} of {size / 1e6:.1f} "
            f"MB ({reason or type(error).__name__}): what was fetched is kept and the "
            "same command goes on from there"
        ) from error
    except OSError as error:
        raise errors.DataError(
            f"{part} cannot be written ({error}): make it writable, with room for "
            f"{size / 1e6:.0f} MB"
        ) from error


def _claim(file: BufferedRandom) -> None:
    """Keeps other processes from writing to ``file`` until it is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise errors.DataError(
            f"another process is writing {file.name}: wait for it and start again"
        ) from error
    except OSError:
        pass  # Some network file systems have no locks.


def _complete(url: str, file: BufferedRandom, size: int, checksum: str) -> None:
    """Appends to ``file`` what it lacks, or writes it anew, and verifies it."""
    if file.tell() != size:
        with _ask(url, file.tell()) as answer, _bar() as bar:
            if not answer.ok:
                raise errors.DataError(
                    f"{url} answers HTTP {answer.status_code}: try again later"
                )
            if file.tell() and answer.status_code != requests.codes.partial_content:
                file.seek(0)
                file.truncate()
            name = pathlib.Path(file.name).stem
            task = bar.add_task(name, total=size, completed=file.tell())
            # Before version 2 urllib3 takes a cut connection for the end otherwise.
            answer.raw.enforce_content_length = True
            while chunk := answer.raw.read(_CHUNK):
                file.write(chunk)
                bar.update(task, advance=len(chunk))
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != checksum:
        pathlib.Path(file.name).unlink()
        raise errors.DataError(
            f"what {url} sent has the SHA-256 {found}, not the registered {checksum}, "
            "and was removed: try again"
        )


def _ask(url: str, start: int) -> requests.Response:
    """Asks for ``url`` from byte ``start`` on; if that is refused, for all of it."""
    # Nothing may be encoded on the way, or the bytes could not be counted.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = (_CONNECT_SECONDS, _STALL_SECONDS)
    answer = requests.get(url, headers=headers, stream=True, timeout=timeout)
    if start and answer.status_code == requests.codes.requested_range_not_satisfiable:
        answer.close()
        return _ask(url, 0)
    return answer


def _bar() -> Progress:
    console = Console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _unreachable(url: str) -> str | None:
    """Says why no connection to ``url`` can be made, or None if one can.

    A server that answers slowly, or not what it should, is not taken for an absent one.
    """
    reasons: list[str | None] = []

    def ask() -> None:
        try:
            requests.head(url, allow_redirects=True, timeout=_CONNECT_SECONDS).close()
        except requests.ReadTimeout:
            reasons.append(None)
        except requests.RequestException as error:
            reasons.append(type(error).__name__)
        else:
            reasons.append(None)

    # In a thread, because looking up a name cannot be given a time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer in {_PROBE_SECONDS:g} s"
