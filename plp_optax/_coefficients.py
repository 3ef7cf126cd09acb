r"""The affine windows that have a name, as their coefficients.

A cycle of an affine window ends at :math:`\sum_{i=0}^k c_i w_i` with
:math:`\sum_i c_i = 1`. These functions return :math:`(c_0, \dots, c_k)`.
"""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from plp_optax import _checks

Fit = Literal["midpoint", "least_squares"]


def plp_coefficients(
    step: jax.typing.ArrayLike = 1.0, *, window: int = 3, fit: Fit = "midpoint"
) -> np.ndarray | jax.Array:
    r"""Coefficients of parameter linear prediction over ``w_0, ..., w_window``.

    The prediction is a point on a line through the window's last parameters,

    .. math::
        \sum_i c_i w_i = \text{position} + \text{step} \cdot \text{slope}.

    Args:
      step: How far to go along the line, in optimizer steps; a number or a
        scalar array.
      window: How many parameters ``w_1, ..., w_window`` the line is drawn
        through; at least 2.
      fit: ``"midpoint"``, the paper's line from midpoint to midpoint, or
        ``"least_squares"``, the regression line at time ``window - 1/2 + step``.

    Returns:
      A float64 NumPy array of shape ``(window + 1,)``, or a jax array if ``step``
      is one. Its first entry is zero: ``w_0`` takes no part.

    Raises:
      ValueError: If ``window``, ``fit`` or ``step`` is not as above.

    Examples:
      >>> plp_coefficients(step=1.0).tolist()
      [0.0, -0.5, 0.5, 1.0]

    References:
      Ying et al., `Enhancing Deep Neural Network Training Efficiency and
      Performance through Linear Prediction <https://arxiv.org/abs/2310.10958>`_,
      2023.
    """
    _checks.check_int("window", window, at_least=2)
    _checks.check_choice("fit", fit, ("midpoint", "least_squares"))
    _checks.check_finite("step", step)
    position, slope = _LINES[fit](window)
    return position + step * slope


def lookahead_coefficients(
    sync_period: int = 5, slow_step_size: jax.typing.ArrayLike = 0.5
) -> np.ndarray | jax.Array:
    r"""Coefficients :math:`(1 - \alpha, 0, \dots, 0, \alpha)` of Lookahead.

    Used with ``period=sync_period``, :func:`plp_optax.affine_window` then follows
    the slow weights of ``optax.lookahead`` without a second copy in ``params``.

    Args:
      sync_period: The number k of fast steps between two synchronisations.
      slow_step_size: The slow weights' rate alpha; a number or a scalar array.

    Returns:
      An array of shape ``(sync_period + 1,)``.

    Raises:
      ValueError: If ``sync_period`` is not a positive int or ``slow_step_size``
        is not finite.

    Examples:
      >>> lookahead_coefficients(sync_period=3, slow_step_size=0.25).tolist()
      [0.75, 0.0, 0.0, 0.25]

    References:
      Zhang et al., `Lookahead Optimizer: k steps forward, 1 step back
      <https://arxiv.org/abs/1907.08610>`_, 2019, algorithm 1.
    """
    _checks.check_int("sync_period", sync_period, at_least=1)
    _checks.check_finite("slow_step_size", slow_step_size)
    first, last = np.eye(sync_period + 1)[[0, -1]]
    return first + slow_step_size * (last - first)


def average_coefficients(window: int = 3) -> np.ndarray:
    """Coefficients of the plain average of ``w_1, ..., w_window``.

    Args:
      window: How many parameters are averaged; at least 1.

    Returns:
      A float64 array of shape ``(window + 1,)``.

    Raises:
      ValueError: If ``window`` is not a positive int.

    Examples:
      >>> average_coefficients(window=2).tolist()
      [0.0, 0.5, 0.5]
    """
    _checks.check_int("window", window, at_least=1)
    return np.append(0.0, np.full(window, 1 / window))


def effective_rate_multiplier(
    coefficients: Sequence[float] | np.ndarray | jax.Array, *, period: int
) -> float:
    r"""How far a cycle moves on steady updates, relative to the plain optimizer.

    If every update were the same :math:`u`, a cycle would end at
    :math:`w_0 + \text{multiplier} \cdot \text{period} \cdot u`. Multiply a rate
    by it to get the **matched rate**, the control without which a comparison with
    the plain optimizer says nothing about prediction.

    Args:
      coefficients: ``c_0, ..., c_k`` with sum 1.
      period: Steps in a cycle, at least k.

    Returns:
      :math:`1 + (\sum_i i\,c_i - k) / \text{period}`, a float; for PLP
      :math:`1 + (\text{step} - 1/2) / \text{period}`.

    Raises:
      ValueError: If the coefficients do not sum to 1 or ``period`` is less than k.

    Examples:
      >>> effective_rate_multiplier(plp_coefficients(step=1.0), period=4)
      1.125
      >>> effective_rate_multiplier(lookahead_coefficients(5, 0.5), period=5)
      0.5
    """
    c = _checks.check_coefficients(coefficients)
    k = len(c) - 1
    _checks.check_period(period, k)
    return 1 + math.fsum([*(np.arange(k + 1) * c), -k]) / period


def _midpoint_line(window: int) -> tuple[np.ndarray, np.ndarray]:
    # The paper prints the midpoint of x and y as (y - x)/2, which would send every
    # weight to about zero; (x + y)/2 is meant.
    w = np.eye(window + 1)
    first, last = (w[1] + w[2]) / 2, (w[-2] + w[-1]) / 2
    if window == 2:
        return last, w[2] - w[1]  # one midpoint only: the slope is the last update
    return last, (last - first) / (window - 2)


def _least_squares_line(window: int) -> tuple[np.ndarray, np.ndarray]:
    # Regression of w_1..w_k on the times 1..k, read at the time k - 1/2 where the
    # midpoint fit starts too, so that both drift alike on steady updates.
    time = np.arange(1, window + 1) - (window + 1) / 2
    slope = np.append(0.0, time / (time @ time))
    mean = average_coefficients(window)
    return mean + (window - 0.5 - (window + 1) / 2) * slope, slope


_LINES = {"midpoint": _midpoint_line, "least_squares": _least_squares_line}
