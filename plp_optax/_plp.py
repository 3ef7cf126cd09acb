"""Parameter linear prediction."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any

import jax
import optax

from plp_optax import _checks
from plp_optax._affine_window import Schedule, Store, affine_window
from plp_optax._coefficients import Fit, plp_coefficients


def plp(
    step: jax.typing.ArrayLike | Schedule = 1.0,
    *,
    window: int = 3,
    period: int = 4,
    fit: Fit = "midpoint",
    active: Schedule | None = None,
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
      store: ``"folded"``; ``"parameters"``, which saves a temporary copy of the
        parameters after Adam; or ``"snapshots"``, which keeps ``w_0, ..., w_window``.
        See :func:`plp_optax.affine_window`.
      accumulator_dtype: The window's dtype; by default the parameters' own.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`plp_optax.AffineWindowState`.

    Raises:
      ValueError: If an argument is not as above. Under
        ``optax.inject_hyperparams`` pass :func:`plp_optax.static_args`; ``step`` can
        be injected.

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
    coefficients: Any = None
    if callable(step):
        schedule = step

        def coefficients(count: jax.Array) -> jax.typing.ArrayLike:
            return plp_coefficients(schedule(count), window=window, fit=fit)

    else:
        coefficients = plp_coefficients(step, window=window, fit=fit)
    return affine_window(
        coefficients,
        period=period,
        active=active,
        store=store,
        accumulator_dtype=accumulator_dtype,
    )
