"""The best variables of a run, on disk."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from training.errors import RunError


def save(path: Path, variables: Any) -> None:
    """Writes variables, replacing earlier ones only when the new ones are complete.

    Args:
      path: A directory, made by this call.
      variables: A tree of arrays that are the same on all local devices.
    """
    # As host arrays: they come back on any number of devices.
    host = jax.tree.map(np.asarray, jax.device_get(variables))
    new, old = _beside(path, "new"), _beside(path, "old")
    with uninterrupted():
        ocp.save(new.absolute(), host, overwrite=True)
        # At every moment one of the two names holds complete variables.
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def load(path: Path) -> Any:
    """Reads variables.

    Args:
      path: What :func:`save` wrote.

    Returns:
      The tree, with NumPy arrays.

    Raises:
      RunError: If there is nothing to read.
    """
    for place in (path, _beside(path, "old")):
        if ocp.is_orbax_checkpoint(place.absolute()):
            return ocp.load(place.absolute())
    raise RunError(f"{path} holds no saved variables: has the run got so far?")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it Ctrl-C is noted, and takes effect at the end.

    Orbax writes in threads of its own, which an exception would leave at work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        noted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if noted:
        raise KeyboardInterrupt


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
