"""The distance between the paths of arms that start from the same parameters."""

from typing import Any

import jax
import numpy as np

# Length of a sketch. Distances have a relative error (standard deviation) of
# 1/sqrt(2 * 256), 4 %; they are exact for networks with no more parameters.
DIMENSIONS = 256


def sketch(displacement: Any) -> np.ndarray:
    """A short vector that stands for a parameter-like tree.

    Every parameter is added, with a random sign, to one of ``DIMENSIONS`` numbers
    chosen at random (a count sketch). This map is linear and the same for all trees of
    one size, so the distance of two sketches is that of their trees plus a random
    error.

    Args:
      displacement: Parameters minus those at the start. Subtracting first keeps
        rounding small.

    Returns:
      float32 ``[DIMENSIONS]``, or all parameters if they are no more than that.

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


def distance(path: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of two paths relative to the distance that the first has covered.

    Args:
      path: Sketches ``[times, dimensions]`` of displacements from the start.
      other: Those of a path from the same start, at the same times.

    Returns:
      ``||path - other|| / ||path||`` at each time; NaN where the first has not moved.
    """
    covered = np.linalg.norm(path, axis=-1)
    apart = np.linalg.norm(path - other, axis=-1)
    unknown = np.full_like(apart, np.nan)
    return np.divide(apart, covered, out=unknown, where=covered > 0)
