"""Which curvature a cycle is stable at: its linear map on a quadratic.

On a quadratic with curvature ``lam``, gradient descent at the rate ``eta``, with
heavy-ball or Nesterov momentum and with any affine window
(:func:`plp_optax.affine_window`), maps the error and the momentum buffer linearly, and
only the product ``eta * lam`` matters, which is called ``curvature`` here. A cycle is
stable where its map has no eigenvalue outside the unit circle. Full-batch training is
such a quadratic along each eigenvector of the Hessian, as long as the Hessian does
not change.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

import plp_optax


class Cycle(NamedTuple):
    """An active cycle of an affine window.

    Attributes:
      coefficients: ``c_0, ..., c_k``, with sum 1.
      period: Optimizer steps in a cycle, at least k.
    """

    coefficients: tuple[float, ...]
    period: int

    @property
    def rate_multiplier(self) -> float:
        """The matched learning rate, in units of the cycle's."""
        return plp_optax.effective_rate_multiplier(
            self.coefficients, period=self.period
        )


# The optimizer alone: a window of one step without a jump.
PLAIN = Cycle((0.0, 1.0), 1)


def plp_cycle(
    step: float = 1.0,
    *,
    window: int = 3,
    period: int = 4,
    fit: Literal["midpoint", "least_squares"] = "midpoint",
) -> Cycle:
    """The cycle of :func:`plp_optax.plp` with the same arguments."""
    coefficients = plp_optax.plp_coefficients(step, window=window, fit=fit)
    return Cycle(tuple(map(float, coefficients)), period)


def cycle_map(
    cycle: Cycle,
    curvature: ArrayLike,
    momentum: ArrayLike = 0.0,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """The linear map of (error, momentum buffer) over a cycle.

    Momentum is heavy ball, or with ``nesterov`` that of PyTorch and optax.

    Returns:
      Matrices ``[..., 2, 2]``, with the buffer in units of the step.

    Raises:
      ValueError: If the coefficients do not sum to 1 or the period is less than k.
    """
    plp_optax.effective_rate_multiplier(  # checks the two
        cycle.coefficients, period=cycle.period
    )
    h, mu = np.broadcast_arrays(np.asarray(curvature, float), momentum)
    # buffer' = mu buffer + h error; then error' = error - buffer', or with Nesterov
    # error' = error - (h error + mu buffer').
    gain, kept = (1 + mu, mu * mu) if nesterov else (np.ones_like(mu), mu)
    step = np.stack([1 - h * gain, -kept, h, mu], axis=-1).reshape(*h.shape, 2, 2)
    powers = [np.broadcast_to(np.eye(2), step.shape)]
    for _ in cycle.coefficients[1:]:
        powers.append(step @ powers[-1])
    # The jump moves the error and leaves the buffer alone.
    end = powers[-1].copy()
    end[..., 0, :] = sum(
        c * power[..., 0, :]
        for c, power in zip(cycle.coefficients, powers, strict=True)
    )
    rest = cycle.period + 1 - len(cycle.coefficients)
    return np.linalg.matrix_power(step, rest) @ end


def growth(
    cycle: Cycle,
    curvature: ArrayLike,
    momentum: ArrayLike = 0.0,
    *,
    nesterov: bool = False,
) -> np.ndarray:
    """The long-run growth factor of an error, for each optimizer step.

    The spectral radius of the cycle's map to the power of 1/period. Below 1 the error
    shrinks; above 1 training is unstable.

    """
    matrix = cycle_map(cycle, curvature, momentum, nesterov=nesterov)
    half = np.trace(matrix, axis1=-2, axis2=-1) / 2
    # Eigenvalues of 2 x 2 matrices: half +- root.
    root = np.sqrt(half**2 - np.linalg.det(matrix) + 0j)
    radius = np.maximum(np.abs(half + root), np.abs(half - root))
    return radius ** (1 / cycle.period)


def stability_limit(
    cycle: Cycle, momentum: float = 0.0, *, nesterov: bool = False
) -> float:
    """The lowest learning rate times curvature at which a cycle becomes unstable.

    To 1e-9, of 4,000 values up to 8: a narrower unstable band can be missed. inf if
    there is none.
    """

    def is_unstable(curvature: ArrayLike) -> np.ndarray:
        # At curvature 0 the radius is 1, and may exceed it through rounding.
        return growth(cycle, curvature, momentum, nesterov=nesterov) > 1 + 1e-9

    grid = np.linspace(0, 8, 4001)
    flags = is_unstable(grid)
    if not flags.any():
        return math.inf
    low, high = grid[flags.argmax() - 1], grid[flags.argmax()]
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if is_unstable(middle) else (middle, high)
    return float(high)
