"""Slow, literal NumPy float64 twins of what the library computes.

They keep every parameter of a cycle and follow the papers' equations as printed
(misprints mended), so that they share no formula with the library's folded form.
"""

import itertools
from collections.abc import Callable

import numpy as np

Gradient = Callable[[np.ndarray, int], np.ndarray]


def predict_midpoint(w: list[np.ndarray], step: float) -> np.ndarray:
    """Ying et al. 2023, the line through midpoints; ``w`` is [w_0, ..., w_window]."""
    w = w[1:]
    midpoints = [(a + b) / 2 for a, b in itertools.pairwise(w)]
    if len(midpoints) == 1:
        slope = w[1] - w[0]
    else:
        slope = (midpoints[-1] - midpoints[0]) / (len(midpoints) - 1)
    return midpoints[-1] + step * slope


def predict_least_squares(w: list[np.ndarray], step: float) -> np.ndarray:
    """The regression line through w_1, ..., w_k at the time k - 1/2 + step."""
    k = len(w) - 1
    design = np.stack([np.ones(k), np.arange(1, k + 1)], axis=1)
    flat = np.stack([np.ravel(x) for x in w[1:]])
    (intercept, slope), *_ = np.linalg.lstsq(design, flat)
    return (intercept + slope * (k - 0.5 + step)).reshape(np.shape(w[0]))


PREDICT = {"midpoint": predict_midpoint, "least_squares": predict_least_squares}


def combine(w: list[np.ndarray], coefficients: list[float]) -> np.ndarray:
    """The affine combination ``sum_i c_i w_i``."""
    return sum(c * x for c, x in zip(coefficients, w, strict=True))


class MomentumSGD:
    """SGD as PyTorch documents it: L2 decay, then momentum, then the rate."""

    def __init__(self, learning_rate, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.buffer = 0.0

    def step(self, w: np.ndarray, gradient: np.ndarray, count: int) -> np.ndarray:
        g = gradient + self.weight_decay * w
        self.buffer = self.momentum * self.buffer + g
        direction = g + self.momentum * self.buffer if self.nesterov else self.buffer
        rate = self.learning_rate
        return w - (rate(count) if callable(rate) else rate) * direction


def train(
    w: np.ndarray,
    gradient: Gradient,
    optimizer: MomentumSGD,
    steps: int,
    *,
    jump: Callable[[list[np.ndarray], int], np.ndarray] | None,
    k: int,
    period: int,
) -> list[np.ndarray]:
    """Parameters after each of ``steps`` steps.

    ``jump(w_0_to_k, start)`` gives the point where the k-th step of a cycle ends;
    ``start`` is the number of steps taken before the cycle.
    """
    history, cycle, start = [], [w], 0
    for count in range(steps):
        w = optimizer.step(w, gradient(w, count), count)
        cycle.append(w)
        if jump is not None and len(cycle) == k + 1:
            w = jump(cycle, start)
        if count + 1 - start == period:
            cycle, start = [w], count + 1
        history.append(w)
    return history


def cycle_map(
    curvature: float,
    *,
    coefficients: list[float],
    period: int,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """One cycle's linear map of (error, momentum buffer) on a quadratic.

    ``curvature`` is learning rate times curvature; the matrix is found column by
    column, by training from the two unit vectors.
    """
    columns = []
    for w0, buffer in np.eye(2):
        optimizer = MomentumSGD(1.0, momentum, nesterov)
        optimizer.buffer = buffer
        history = train(
            np.array(w0),
            lambda w, _: curvature * w,
            optimizer,
            period,
            jump=lambda w, _: combine(w, coefficients),
            k=len(coefficients) - 1,
            period=period,
        )
        columns.append([history[-1], optimizer.buffer])
    return np.array(columns).T


def spectral_radius(matrix: np.ndarray) -> float:
    """The largest modulus of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())
