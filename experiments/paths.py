"""How far apart training takes different arms from the same start."""

import base64
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

# Numbers that are kept of a displacement. Distances come out with a relative error
# (standard deviation) of 1/sqrt(2 * 256), 4 %, of smaller networks with none.
DIMENSIONS = 256


def sketch(displacement: Any) -> np.ndarray:
    """A short vector in the place of a parameter-like tree.

    Every parameter is added, with a random sign, to one of ``DIMENSIONS`` numbers at
    random (a count sketch). That is linear, and the same map for all trees of a size:
    the distance of two sketches is that of the two trees, but for a random error.

    Args:
      displacement: Parameters minus those at the start. The difference comes first,
        so that rounding does not drown it.

    Returns:
      float32 ``[DIMENSIONS]``, or all of the parameters where they are no more.

    References:
      Charikar et al., "Finding frequent items in data streams", 2002.
    """
    leaves = [np.ravel(x) for x in jax.tree.leaves(displacement)]
    flat = np.concatenate(leaves).astype(np.float64)
    if flat.size > DIMENSIONS:
        # The legacy generator, because its stream never changes.
        generator = np.random.RandomState(0)
        place = generator.randint(DIMENSIONS, size=flat.size)
        sign = generator.choice([-1.0, 1.0], size=flat.size)
        short = np.zeros(DIMENSIONS)
        np.add.at(short, place, sign * flat)
        flat = short
    return flat.astype(np.float32)


def pack(sketches: Sequence[np.ndarray]) -> str:
    """Sketches of one run as text, for a record."""
    data = np.stack(sketches).astype("<f4").tobytes()
    return base64.b64encode(data).decode("ascii")


def unpack(text: str, count: int) -> np.ndarray:
    """The sketches of :func:`pack`, float64 ``[count, dimensions]``."""
    data = np.frombuffer(base64.b64decode(text), "<f4")
    return data.reshape(count, -1).astype(np.float64)


def distance(path: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of two paths relative to the way that the first has come.

    Args:
      path: Sketches ``[times, dimensions]`` of displacements from the start.
      other: Those of a path from the same start, at the same times.

    Returns:
      ``||path - other|| / ||path||`` at each time; NaN where the first has not moved.
    """
    come = np.linalg.norm(path, axis=-1)
    apart = np.linalg.norm(path - other, axis=-1)
    return np.divide(apart, come, out=np.full_like(apart, np.nan), where=come > 0)
