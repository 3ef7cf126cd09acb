"""What a run must not lose, on disk: complete, verified, and the newest first."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from training import parallel
from training.errors import RunError

_TREE, _NOTES, _MANIFEST = "arrays", "notes.json", "manifest.json"
_OVERHEAD_BYTES = 16 * 1024  # Of an array on disk, amply.


class Checkpoint(NamedTuple):
    """What is saved together.

    Attributes:
      tree: Arrays; NumPy's when read.
      notes: A JSON object.
    """

    tree: Any
    notes: dict[str, Any]


class DamagedError(Exception):
    """A checkpoint is not what was written; the message says how."""


class Checkpoints:
    """The newest checkpoints of a run, written by a thread while training goes on.

    With several processes all of them call every method, in the same order.

    Args:
      directory: Where they lie, a directory each.
      keep: How many of the newest are kept.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._executor = ThreadPoolExecutor(1, "checkpoints")
        self._under_way: list[Future[None]] = []
        self._last: str | None = None

    def save(
        self,
        name: str,
        checkpoint: Checkpoint,
        others: Mapping[Path, Checkpoint] = MappingProxyType({}),
    ) -> None:
        """Copies the arrays, and leaves the rest to the thread.

        Waits for the save before it.

        Args:
          name: Of the checkpoint; names sort by age.
          checkpoint: Arrays that are the same on all devices.
          others: What else to write, by its place, behind the checkpoint.

        Raises:
          RunError: If the save before it did not succeed.
        """
        self.wait()
        files = {} if name == self._last else {self._directory / name: checkpoint}
        files |= others
        self._last = name
        for path, content in files.items():
            # Copied, since the next step reuses the memory.
            host = content._replace(tree=copy_to_host(content.tree))
            # Begun here, as processes agree on it by what must not meet a step's own
            # communication.
            finish = begin_write(path, host)
            self._under_way.append(self._executor.submit(finish))
        self._under_way.append(self._executor.submit(self._thin, name))

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          RunError: If it could not be written.
        """
        under_way, self._under_way = self._under_way, []
        for future in under_way:
            future.result()

    def close(self) -> None:
        """Waits, as :meth:`wait`, and ends the thread."""
        try:
            self.wait()
        finally:
            self._executor.shutdown()

    def newest(self, like: Any) -> tuple[str, Checkpoint] | None:
        """Reads the newest checkpoint that is undamaged, and warns of those that are.

        Args:
          like: A tree of arrays of the same structure, shapes and dtypes.

        Returns:
          Its name and content; None if there has never been any.

        Raises:
          RunError: If all are damaged.
        """
        choice = parallel.from_coordinator(self._choose)
        for warning in choice["warnings"]:
            if parallel.is_coordinator():
                print(f"train.py: warning: {warning}", file=sys.stderr, flush=True)
        if choice["name"] is None:
            return None
        self._last = choice["name"]
        return choice["name"], _read(self._directory / choice["name"], like)

    def _choose(self) -> dict[str, Any]:
        """The newest undamaged checkpoint, and what to say about newer ones."""
        damages = []
        for path in self._newest_first():
            try:
                verify(path)
            except DamagedError as damage:
                damages.append(f"{path} is damaged ({damage})")
                continue
            warnings = [f"{d}: going on from {path} instead" for d in damages]
            return {"name": path.name, "warnings": warnings}
        if damages:
            raise RunError(
                f"no checkpoint of the run is left whole: {'; '.join(damages)}: put "
                f"one back from a copy, or start anew with --overwrite"
            )
        return {"name": None, "warnings": []}

    def _newest_first(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        return sorted(
            (p for p in self._directory.iterdir() if not _is_partial(p)), reverse=True
        )

    def _thin(self, last: str) -> None:
        """Keeps the newest up to ``last``, and nothing else.

        What is beyond is damaged, and the run has stepped back behind it; what was
        left half-way is of no use.
        """
        if not parallel.is_coordinator():
            return
        kept = [p for p in self._newest_first() if p.name <= last][: self._keep]
        for path in self._directory.iterdir():
            if path not in kept:
                _remove(path)


def copy_to_host(tree: Any) -> Any:
    """NumPy copies of a tree's arrays; those that are NumPy's stay as they are."""
    return jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else np.array(x), tree)


def begin_write(path: Path, checkpoint: Checkpoint) -> Callable[[], None]:
    """Writes a checkpoint so that at every moment ``path`` is whole, old or new.

    Args:
      path: A directory, made anew.
      checkpoint: With NumPy arrays.

    Returns:
      A function that returns when it is written, to be called in any thread.

    Raises:
      RunError: If the disk does not allow it; so does the function.
    """
    partial, old = _beside(path, "partial"), _beside(path, "old")
    leads = parallel.is_coordinator()
    with _explained(path, OSError), _silent(logging.getLogger("absl")):
        if leads:
            _remove(partial)
            partial.mkdir(parents=True)
            _check_room(partial, checkpoint.tree)
        response = ocp.save_async((partial / _TREE).absolute(), checkpoint.tree)

    def finish() -> None:
        # Orbax's storage has errors of its own.
        with (
            _explained(path, OSError, ValueError),
            _silent(logging.getLogger("absl")),
        ):
            response.result()
            if not leads:
                return
            notes = json.dumps(checkpoint.notes)
            (partial / _NOTES).write_text(notes, encoding="utf-8")
            _seal(partial)
            _remove(old)
            if path.exists():
                path.rename(old)
            partial.rename(path)
            _sync(path.parent)
            _remove(old)

    return finish


@contextlib.contextmanager
def _explained(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns what a disk refuses into a sentence."""
    try:
        yield
    except errors as error:
        _remove(_beside(path, "partial"))
        reason = error.strerror if isinstance(error, OSError) else _first_line(error)
        raise RunError(
            f"{path} could not be written ({reason}): what was saved before it is "
            f"whole; make room, and give the same command to go on from there"
        ) from error


def read(path: Path) -> Checkpoint:
    """Reads what :func:`begin_write` wrote.

    Raises:
      RunError: If there is nothing, or it is damaged.
    """
    for place in (path, _beside(path, "old")):
        if place.exists():
            try:
                verify(place)
                return _read(place)
            except DamagedError as damage:
                raise RunError(f"{place} is damaged ({damage})") from damage
    raise RunError(f"{path} holds no saved variables: has the run got so far?")


def _read(path: Path, like: Any = None) -> Checkpoint:
    notes = json.loads((path / _NOTES).read_text(encoding="utf-8"))
    if like is not None:
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    try:
        return Checkpoint(ocp.load((path / _TREE).absolute(), like), notes)
    except (ValueError, KeyError, TypeError) as error:
        # Its checksums are right: it was so written.
        raise RunError(
            f"{path} does not fit this version of the program "
            f"({_first_line(error)}): go on with the version that began the run, or "
            f"start anew with --overwrite"
        ) from error


def _check_room(path: Path, tree: Any) -> None:
    # Orbax's own way to find out is a hundred tracebacks.
    arrays = jax.tree.leaves(tree)
    needed = sum(x.nbytes for x in arrays) + len(arrays) * _OVERHEAD_BYTES
    if shutil.disk_usage(path).free < needed:
        raise OSError(errno.ENOSPC, f"no space left for {needed:,} bytes")


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    # What Orbax logs as an error it also raises.
    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def _seal(path: Path) -> None:
    """Brings all files to the disk, and writes their sizes and checksums."""
    files = {
        file.relative_to(path).as_posix(): _describe(file) for file in _files(path)
    }
    manifest = path / _MANIFEST
    manifest.write_text(json.dumps(files, indent=1), encoding="utf-8")
    for place in (manifest, *(p for p in path.rglob("*") if p.is_dir()), path):
        _sync(place)


def verify(path: Path) -> None:
    """Compares every file with the manifest.

    Raises:
      DamagedError: If one is missing, or is not as it was written.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        for name, described in dict(manifest).items():
            if _describe(path / name) != described:
                raise DamagedError(f"{name} is not as it was written")
        if not {_NOTES} < set(manifest):
            raise DamagedError(f"{_MANIFEST} is incomplete")
    except OSError as error:
        name = Path(error.filename or path).name
        raise DamagedError(f"{name}: {error.strerror}") from error
    # Garbage that is nested too deeply exhausts the parser.
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{_MANIFEST} cannot be read") from error


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _files(path: Path) -> Iterator[Path]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            _sync(file)
            yield file


def _sync(path: Path) -> None:
    """Waits until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _is_partial(path: Path) -> bool:
    return ".partial" in path.name or path.suffix == ".old"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
