"""Parameter linear prediction: its coefficients, itself, and ready-made optimizers."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax

from plp_optax import _checks
from plp_optax._affine_window import (
    StepSchedule,
    Store,
    affine_window,
    average_coefficients,
)

Fit = Literal["midpoint", "least_squares"]
Mask = Any | Callable[[optax.Params], Any]


def plp(
    step: jax.typing.ArrayLike | StepSchedule = 1.0,
    *,
    window: int = 3,
    period: int = 4,
    fit: Fit = "midpoint",
    active: StepSchedule | None = None,
    store: Store = "folded",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Parameter linear prediction: jumps along the line of the last parameters.

    A cycle has ``period`` optimizer steps. Let :math:`w_1, w_2, w_3` be the
    parameters after its first three. The third step ends not at :math:`w_3` but at

    .. math::
        m_{12} = \tfrac12 (w_1 + w_2), \quad m_{23} = \tfrac12 (w_2 + w_3), \quad
        \text{slope} = m_{23} - m_{12}, \quad
        w = m_{23} + \text{step} \cdot \text{slope}

    and the next step starts from there. No gradient step is left out, and the state
    of the optimizer before it (momentum, moments) is not changed. With
    :math:`u_j = w_j - w_{j-1}` the jump is

    .. math::
        w - w_3 = \tfrac{\text{step}}{2} u_2 + \tfrac{\text{step} - 1}{2} u_3,

    at ``step=1`` half of the second update; hence one parameter-sized buffer is all
    the state (see :func:`plp_optax.affine_window`, which this is a member of).

    Put it **last** in the chain, after the learning rate::

        optax.chain(optax.sgd(learning_rate, momentum=0.9), plp_optax.plp())

    Before the learning rate it would see gradients, not steps, and a change of rate
    inside a cycle would rescale the jump. With gradient accumulation wrap the entire
    chain, ``optax.MultiSteps(optax.chain(..., plp()), k)``: after ``MultiSteps`` it
    would count mini-steps, and at k = period do nothing at all. With L-BFGS see the
    remark on line searches at :func:`plp_optax.affine_window`.

    On steady updates a cycle moves as far as the plain optimizer would at
    ``1 + (step - 1/2) / period`` times the learning rate
    (:func:`plp_optax.effective_rate_multiplier`): ``step=1/2`` is neutral, and
    ``step=0`` slows down rather than switches off. Compare with the optimizer at that
    matched rate. With heavy-ball momentum the jumps excite the oscillation of the
    momentum where learning rate times curvature is large (at momentum 0.9 and the
    defaults, from 0.47 on), and training may diverge where the plain optimizer would
    not.

    Args:
      step: How far to go along the line, in optimizer steps from the last midpoint.
        A number, a scalar array, or a schedule over the number of updates so far; it
        is read at the first step of each cycle.
      window: How many parameters the line is drawn through; at least 2.
      period: Optimizer steps in a cycle, at least ``window``. 4 is the paper's text
        (three stored, one plain step from the predicted point); 3 predicts back to
        back.
      fit: ``"midpoint"`` goes from the first midpoint to the last, divided by
        the steps between them; ``"least_squares"`` is the regression line,
        evaluated at time ``window - 1/2 + step``, so that both fits have the same rate
        multiplier.
      active: An optional predicate on the number of updates so far, read at the
        first step of each cycle. Cycles that start inactive change nothing.
      store: ``"folded"``, or ``"snapshots"``, which keeps ``w_0, ..., w_window``. See
        :func:`plp_optax.affine_window`.
      accumulator_dtype: The window's dtype; by default the parameters' own.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`plp_optax.AffineWindowState`.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = optax.chain(optax.sgd(0.1), plp_optax.plp())
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(5):
      ...     print(f"{loss(w):.2f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.00
      16.00
      10.24
      4.67
      2.99

      The third step went from 10.24 past 6.55, its own end, to 4.67.

    References:
      Ying et al., `Enhancing Deep Neural Network Training Efficiency and Performance
      through Linear Prediction <https://arxiv.org/abs/2310.10958>`_, 2023
      (also Scientific Reports 14:15197, 2024). The midpoint is printed there as a
      half difference, a misprint.
    """
    plp_coefficients(window=window, fit=fit)  # checks the two
    _checks.check_period(period, window)

    def coefficients(step: jax.typing.ArrayLike) -> np.ndarray | jax.Array:
        return plp_coefficients(step, window=window, fit=fit)

    return affine_window(
        (lambda n: coefficients(step(n))) if callable(step) else coefficients(step),
        period=period,
        active=active,
        store=store,
        accumulator_dtype=accumulator_dtype,
    )


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
    _checks.check_int("window", window, low=2)
    _checks.check_choice("fit", fit, ("midpoint", "least_squares"))
    _checks.check_number("step", step)
    position, slope = _LINES[fit](window)
    return position + step * slope


def plp_sgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    *,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    prediction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SGD as in the paper and in PyTorch, followed by :func:`plp_optax.plp`.

    L2 weight decay is added to the gradient, then come momentum and the learning rate,
    then the prediction.

    Args:
      learning_rate: As in :func:`optax.sgd`, like the three arguments that follow.
      momentum: Decay of the momentum buffer; None for none.
      nesterov: Whether the momentum is Nesterov's.
      accumulator_dtype: Dtype of the momentum buffer.
      weight_decay: L2 coefficient; unless it is 0, ``update`` needs ``params``.
      mask: Which parameters decay; see :func:`optax.add_decayed_weights`.
      prediction: The prediction, such as ``plp(0.5, period=3)``; by default
        ``plp()``.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = plp_optax.plp_sgd(0.05, momentum=0.9, weight_decay=1e-4)
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.1f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.0
      20.2
      13.0
      3.9
    """
    _check_numbers(learning_rate=learning_rate, weight_decay=weight_decay)
    if momentum is not None:
        _check_numbers(momentum=momentum)
    no_decay = not isinstance(weight_decay, jax.Array) and weight_decay == 0
    return optax.chain(
        # Neither has a state, but only the second needs parameters.
        optax.identity()
        if no_decay and mask is None
        else optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum, nesterov, accumulator_dtype),
        plp() if prediction is None else prediction,
    )


def plp_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: jax.typing.DTypeLike | None = None,
    weight_decay: float = 1e-4,
    mask: Mask | None = None,
    *,
    nesterov: bool = False,
    prediction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW, with its decoupled weight decay, followed by :func:`plp_optax.plp`.

    Its arguments are those of :func:`optax.adamw`, in their order, so that it is a
    drop-in replacement; the prediction is one more. ``update`` needs ``params``.

    Args:
      learning_rate: As in :func:`optax.adamw`, like the arguments that follow.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      eps_root: Added to the second moment under the root.
      mu_dtype: Dtype of the first moment.
      weight_decay: Decoupled weight decay, multiplied by the learning rate.
      mask: Which parameters decay.
      nesterov: Whether the first moment is Nesterov's.
      prediction: The prediction, such as ``plp(0.5, period=3)``; by default ``plp()``.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs`.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = plp_optax.plp_adamw(0.5)
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.1f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.0
      18.5
      13.0
      6.7
    """
    _check_numbers(
        learning_rate=learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        weight_decay=weight_decay,
    )
    return optax.chain(
        optax.adamw(
            learning_rate,
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            weight_decay,
            mask,
            nesterov=nesterov,
        ),
        plp() if prediction is None else prediction,
    )


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


def _check_numbers(**options: object) -> None:
    for name, value in options.items():
        if not callable(value):
            _checks.check_number(name, value)
