"""Streams of samples to learn from in order: Mackey-Glass, with and without noise.

References:
  Mackey and Glass, "Oscillation and Chaos in Physiological Control Systems", Science
  197, 1977.
"""

from typing import NamedTuple

import numpy as np


class Stream(NamedTuple):
    """Samples to learn from, and samples to test on.

    Attributes:
      inputs: Shape (n, inputs); float64, as are the others.
      targets: Shape (n,).
      test_inputs: Shape (m, inputs).
      test_targets: Shape (m,).
    """

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


def mackey_glass(
    steps: int,
    *,
    tau: float,
    start: float = 1.2,
    step: float = 0.1,
) -> np.ndarray:
    r"""Integrates the equation of Mackey and Glass by a Runge-Kutta method of order 4.

    .. math::
        s'(t) = \frac{0.2\, s(t - \tau)}{1 + s(t - \tau)^{10}} - 0.1\, s(t)

    The delayed value in the middle of a step is interpolated by a cubic through values
    and slopes, which keeps the order.

    Args:
      steps: How many steps.
      tau: The delay in seconds, a multiple of ``step``; chaotic from about 17 on.
      start: s(t) for all t up to 0.
      step: The step in seconds.

    Returns:
      s at the times 0, step, ..., steps * step.

    Raises:
      ValueError: If tau is no positive multiple of the step.
    """
    lag = round(tau / step)
    if lag < 1 or not np.isclose(lag * step, tau):
        raise ValueError(f"tau must be a positive multiple of {step}, got {tau}")

    def slope(now: float, delayed: float) -> float:
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * now

    s, slopes = [start], [slope(start, start)]

    def delayed(i: int) -> tuple[float, float, float]:
        """The values one delay before the start, the middle and the end of step i."""
        i -= lag
        if i < 0:
            return start, start, start
        middle = (s[i] + s[i + 1]) / 2 + step * (slopes[i] - slopes[i + 1]) / 8
        return s[i], middle, s[i + 1]

    for i in range(steps):
        at_start, at_middle, at_end = delayed(i)
        k1 = slope(s[i], at_start)
        k2 = slope(s[i] + step / 2 * k1, at_middle)
        k3 = slope(s[i] + step / 2 * k2, at_middle)
        k4 = slope(s[i] + step * k3, at_end)
        s.append(s[i] + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        slopes.append(slope(s[-1], at_end))
    return np.array(s)


_LAGS = 7
_PERIOD = 6  # seconds between two samples
_TRANSIENT = 200  # samples before the first that is used


def draw(seed: int, *, noise_variance: float) -> Stream:
    """The next value from the last seven; 500 samples to learn from, 50 to test on.

    Each seed has its own start and its own noise. The noise is on all inputs and on
    the targets to learn from; targets to test on are without it. The variance of the
    series itself is 0.05.
    """
    rng = np.random.default_rng(seed)
    count = 500 + 50 + _LAGS
    per_sample = round(_PERIOD / 0.1)
    values = mackey_glass(
        (_TRANSIENT + count) * per_sample, tau=17.0, start=rng.uniform(0.8, 1.3)
    )
    clean = values[::per_sample][-count:]
    noisy = clean + rng.normal(scale=noise_variance**0.5, size=count)
    inputs = np.lib.stride_tricks.sliding_window_view(noisy, _LAGS)[:-1]
    return Stream(inputs[:500], noisy[_LAGS:][:500], inputs[500:], clean[_LAGS:][500:])
