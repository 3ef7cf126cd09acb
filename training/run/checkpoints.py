"""Checkpoints: one file each, with a checksum, renamed into place once complete.

A file is the SHA-256 of its content, 32 bytes, followed by the content: a tree of
arrays and a JSON object, serialised by Flax as MessagePack. All processes of a run hold
the same arrays; the coordinator writes them.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import serialization, traverse_util

from training.engine import parallel
from training.engine.state import merge_frozen
from training.errors import DamagedError, RunError
from training.run.display import warn

_NAME = re.compile(r"epoch-\d{5,}-step-\d{8,}\.msgpack")
_DIGEST_BYTES = hashlib.sha256().digest_size


class Checkpoint(NamedTuple):
    """Arrays and notes that are saved together.

    Attributes:
      tree: Arrays; NumPy arrays when read.
      notes: A JSON object.
    """

    tree: Any
    notes: dict[str, Any]


class Checkpoints:
    """The newest checkpoints of a run.

    Args:
      directory: Their directory. Other files in it are left alone.
      keep: How many of the newest are kept.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep
        self._damaged: set[Path] = set()

    def save(self, epoch: int, step: int, checkpoint: Checkpoint) -> None:
        """Saves a checkpoint at a position in the run; removes all but the newest.

        Those that :meth:`newest` found damaged are removed too, and so are those beyond
        the position, since the run was resumed from an earlier one.

        Raises:
          RunError: If it cannot be written; those before it remain.
        """
        path = self._directory / f"epoch-{epoch:05d}-step-{step:08d}.msgpack"

        def write_and_thin() -> None:
            write(path, checkpoint)
            self._damaged.discard(path)
            intact = [p for p in self._newest_first() if p not in self._damaged]
            kept = [p for p in intact if p.name <= path.name]
            for old in set(self._newest_first()) - set(kept[: self._keep]):
                if not old.is_dir():  # not one of ours
                    old.unlink()

        parallel.from_coordinator(write_and_thin)

    def newest(self, like: Any) -> tuple[Path, Checkpoint] | None:
        """Reads the newest undamaged checkpoint, and warns of damaged ones.

        Args:
          like: A tree of arrays of the same structure, shapes and dtypes.

        Returns:
          Its path and content; None if there is none.

        Raises:
          RunError: If all are damaged.
        """
        name = parallel.from_coordinator(self._choose)
        if name is None:
            return None
        path = self._directory / name
        return path, read(path, like)

    def _choose(self) -> str | None:
        """The name of the newest undamaged checkpoint."""
        damages = []
        for path in self._newest_first():
            try:
                _verified(path)
            except DamagedError as damage:
                self._damaged.add(path)
                damages.append(f"{path} is damaged ({damage})")
                continue
            for damage_ in damages:
                warn(f"{damage_}: resuming from {path} instead")
            return path.name
        if damages:
            raise RunError(
                f"no undamaged checkpoint is left: {'; '.join(damages)}: restore one "
                f"from a copy, or start again with --overwrite"
            )
        return None

    def _newest_first(self) -> list[Path]:
        if not self._directory.is_dir():
            return []
        paths = (p for p in self._directory.iterdir() if _NAME.fullmatch(p.name))
        return sorted(paths, reverse=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a file has the name of a checkpoint, or of one that is half written."""
    return _NAME.fullmatch(path.name.removesuffix(".tmp")) is not None


def copy_to_host(tree: Any) -> Any:
    """NumPy copies of a tree's arrays."""
    # Copies: on a CPU device_get may return a view of memory that a step reuses.
    return jax.tree.map(np.array, jax.device_get(tree))


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint so that ``path`` is complete at every moment, old or new.

    Raises:
      RunError: If the disk does not allow it.
    """
    tree = serialization.to_state_dict(jax.device_get(checkpoint.tree))
    content = serialization.msgpack_serialize(
        {"tree": tree, "notes": json.dumps(checkpoint.notes)}
    )
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room" if is_full else "make it writable"
        raise RunError(
            f"{path} could not be written ({error.strerror}): earlier checkpoints are "
            f"intact; {remedy}, and give the same command to resume"
        ) from error


def read(path: Path, like: Any = None) -> Checkpoint:
    """Reads what :func:`write` wrote.

    Args:
      path: The file.
      like: A tree of the same structure, shapes and dtypes. By default the tree is
        returned as nested dictionaries.

    Raises:
      RunError: If the file is absent, damaged, or does not fit ``like``.
    """
    if not path.exists():
        raise DamagedError(f"{path} does not exist: has the run reached a checkpoint?")
    try:
        fields = serialization.msgpack_restore(_verified(path))
        tree, notes = fields["tree"], json.loads(fields["notes"])
    except DamagedError as damage:
        raise DamagedError(f"{path} is damaged ({damage})") from damage
    if like is None:
        return Checkpoint(tree, notes)
    try:
        restored = serialization.from_state_dict(like, tree)
        for old, new in zip(
            jax.tree.leaves(like), jax.tree.leaves(restored), strict=True
        ):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise ValueError(f"{new.dtype}{new.shape}, not {old.dtype}{old.shape}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # Its checksum is right: another version of the program wrote it.
        reason = str(error).partition("\n")[0][:200]
        raise RunError(
            f"{path} does not fit this version of the program ({reason}): resume with "
            f"the version that started the run, or start again with --overwrite"
        ) from error
    return Checkpoint(restored, notes)


def read_variables(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a network's variables, of which a checkpoint has the last ones.

    Returns:
      The variables by path, such as ``params/stem/conv/kernel``; and the notes.

    Raises:
      DamagedError: If the file is absent, damaged, or has no variables.
    """
    tree, notes = read(path)
    if "state" in tree:
        state = tree["state"]
        params = merge_frozen(state["params"], state["frozen"])
        tree = {"params": params, "batch_stats": state["batch_stats"]}
    if not tree.get("params"):
        raise DamagedError(f"{path} holds no variables")
    return traverse_util.flatten_dict(tree, sep="/"), notes


def _verified(path: Path) -> bytes:
    """The content of a file whose checksum is right."""
    try:
        everything = path.read_bytes()
    except OSError as error:
        raise DamagedError(error.strerror) from error
    digest, content = everything[:_DIGEST_BYTES], everything[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        raise DamagedError("its checksum is wrong")
    return content


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
