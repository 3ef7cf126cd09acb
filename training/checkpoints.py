"""The best variables of a run, on disk."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from training.errors import RunError


def save(path: Path, variables: Any) -> None:
    """Writes variables, replacing earlier ones.

    Args:
      path: A directory, made by this call.
      variables: A tree of arrays that are the same on all local devices.
    """
    # As host arrays: they come back on any number of devices.
    host = jax.tree.map(np.asarray, jax.device_get(variables))
    ocp.save(path.absolute(), host, overwrite=True)


def load(path: Path) -> Any:
    """Reads variables.

    Args:
      path: What :func:`save` wrote.

    Returns:
      The tree, with NumPy arrays.

    Raises:
      RunError: If there is nothing to read.
    """
    if not ocp.is_orbax_checkpoint(path.absolute()):
        raise RunError(f"{path} holds no saved variables: has the run got so far?")
    return ocp.load(path.absolute())
