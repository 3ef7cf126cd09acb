"""Momentum over the slow trajectory: of an average of updates, or of cycles."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._trees import (
    arrays,
    combine,
    movement,
    rounded,
    select,
    wide_count,
    zeros,
)


class EmaNesterovState(NamedTuple):
    """State of :func:`ema_nesterov`.

    Attributes:
      extrapolations: Updates since initialisation, what the schedule reads; int32
        scalar.
      extrapolation: The beta of the last update; float scalar.
      slow_update: The average update m; a tree like the parameters.
    """

    extrapolations: jax.Array
    extrapolation: jax.Array
    slow_update: optax.Updates


class OuterNesterovState(NamedTuple):
    """State of :func:`outer_nesterov`.

    Attributes:
      outer_step: Updates since the cycle's start, 0 to period - 1; int32 scalar.
      displacement: The sum of the cycle's updates; a tree like the parameters.
      outer_velocity: The momentum b over cycles; a tree like the parameters.
    """

    outer_step: jax.Array
    displacement: optax.Updates
    outer_velocity: optax.Updates


def ema_nesterov(
    extrapolation: optax.ScalarOrSchedule = 0.5,
    *,
    decay: jax.typing.ArrayLike = 0.95,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Extrapolates along the average of the last updates, at each step.

    Let A be a step of the optimizer before it in the chain, x the slow parameters and m
    the average of their updates. The gradient is taken ahead of them,

    .. math::
        x_{t+1} = A(x_t + \beta_t m_t), \qquad
        m_{t+1} = \gamma m_t + (1 - \gamma) (x_{t+1} - x_t).

    The parameters that training holds are :math:`w_t = x_t + \beta_t m_t`. With the
    optimizer's update :math:`u_t = A(w_t) - w_t`, the slow ones move by
    :math:`x_{t+1} - x_t = \beta_t m_t + u_t`, and so

    .. math::
        m_{t+1} &= (\gamma + (1 - \gamma) \beta_t) m_t + (1 - \gamma) u_t, \\
        w_{t+1} - w_t &= u_t + \beta_{t+1} m_{t+1}.

    That is one buffer, and no parameters are needed.

    **Drift.** On steady updates it moves :math:`1 / (1 - \beta)` times as far as the
    optimizer alone: compare it with a learning rate that much higher. An update that
    lasts for one step only is at once amplified by :math:`1 + \beta (1 - \gamma)`,
    1.025 by default, so that noise and oscillation grow less than the slow component.
    (:func:`~plp_optax.plp` amplifies everything alike, by 9/8.)

    Use it with small batches where a higher learning rate is limited by noise or by
    sharp directions, as a cheap alternative to more momentum. Let ``extrapolation``
    fall to 0 before training ends, so that it ends at the slow parameters. The paper
    takes :math:`\gamma = 0.99` in runs of thousands of steps, and 0.3 to 0.6 times the
    learning rate over its peak for :math:`\beta_t`, with 0 during the warm-up and in
    the last part of the run. If the matched learning rate does as well, use that.

    Place it **last** in a chain. Heavy-ball momentum before it is a second pole near 1:
    where the two together overshoot, lower ``decay`` or the momentum.

    Args:
      extrapolation: :math:`\beta`, at least 0 and below 1, or a schedule that maps the
        number t of updates, the current one included, to :math:`\beta_t`.
      decay: :math:`\gamma`, at least 0 and below 1. An average over about ``1 / ((1 -
        decay) (1 - extrapolation))`` steps.
      accumulator_dtype: The average's dtype for real parameters, float32 or wider; by
        default float32, or the parameters' own if that is wider.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`EmaNesterovState`.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = optax.chain(
      ...     optax.sgd(0.05),
      ...     plp_optax.ema_nesterov(optax.linear_schedule(0.8, 0.0, 20), decay=0.9),
      ... )
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.2f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.00
      19.91
      15.59
      12.01

    References:
      Yau et al., `EMA-Nesterov: Stabilizing Nesterov's Lookahead for Accelerated Deep
      Learning Optimization <https://arxiv.org/abs/2605.25395>`_, 2026

      Defazio et al., `Smoothing DiLoCo with Primal Averaging for Faster Training of
      LLMs <https://arxiv.org/abs/2512.17131>`_, 2025
    """
    if not callable(extrapolation):
        _checks.check_number("extrapolation", extrapolation, low=0, below=1)
    _checks.check_number("decay", decay, low=0, below=1)
    _checks.check_accumulator_dtype(accumulator_dtype)

    def init_fn(params: optax.Params) -> EmaNesterovState:
        return EmaNesterovState(
            extrapolations=jnp.zeros((), jnp.int32),
            extrapolation=jnp.zeros((), float),
            slow_update=zeros(params, accumulator_dtype, wide=True),
        )

    def update_fn(
        updates: optax.Updates,
        state: EmaNesterovState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EmaNesterovState]:
        del params, extra_args
        count = optax.safe_increment(state.extrapolations)
        given: Any = extrapolation
        if callable(extrapolation):
            given = extrapolation(wide_count(count))
        # The last one is in the state, as a schedule or a caller may have changed it.
        beta, last_beta = jnp.asarray(given, float), state.extrapolation
        gamma = jnp.asarray(decay, float)
        kept = gamma + (1 - gamma) * last_beta

        updates = arrays(updates)
        m = state.slow_update
        m = combine((kept, m), (1 - gamma, updates), like=m)
        return combine((1, updates), (beta, m), like=updates), EmaNesterovState(
            extrapolations=count,
            extrapolation=beta,
            slow_update=m,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def outer_nesterov(
    outer_rate: jax.typing.ArrayLike = 0.7,
    *,
    momentum: jax.typing.ArrayLike = 0.9,
    period: int = 20,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov momentum over cycles of optimizer steps: DiLoCo with one worker, SNOO.

    A cycle of K = ``period`` steps leads from :math:`w_0` to :math:`w_K`. Its
    displacement serves as the gradient of an outer optimizer,

    .. math::
        s = w_0 - w_K, \qquad b \leftarrow \mu b + s, \qquad
        w \leftarrow w_0 - \eta (\mu b + s).

    The sum of the cycle's updates is :math:`-s`, so that no copy of :math:`w_0` is
    kept: two buffers. Parameters are needed in half precision only, in which they round
    and do not follow their updates. The last update of a cycle,
    :math:`u_K`, becomes :math:`u_K + s - \eta (\mu b + s)`; all others pass. The inner
    optimizer's state is left alone.

    **Drift.** On steady updates :math:`b = s / (1 - \mu)`, and a cycle moves
    :math:`\eta / (1 - \mu)` times as far as the optimizer alone, 7 times by default:
    compare it with a learning rate that much higher. With :math:`\mu = 0` it is
    Lookahead (:func:`~plp_optax.lookahead_coefficients`).

    Use it in long runs with small batches, at an inner learning rate that is chosen
    with it. It reacts once a cycle only: in short runs, or on few cycles, use
    :func:`~plp_optax.ema_nesterov`. If the matched learning rate does as well, use
    that.

    Args:
      outer_rate: :math:`\eta`; positive.
      momentum: :math:`\mu`, at least 0 and below 1.
      period: K, at least 1.
      accumulator_dtype: The buffers' dtype for real parameters, float32 or wider; by
        default float32, or the parameters' own if that is wider.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`OuterNesterovState`. Place it last in a chain.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = optax.chain(
      ...     optax.sgd(0.02), plp_optax.outer_nesterov(momentum=0.5, period=2)
      ... )
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.2f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.00
      23.04
      21.05
      19.40

    References:
      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language
      Models <https://arxiv.org/abs/2311.08105>`_, 2023

      Kallusky et al., `SNOO: Step-K Nesterov Outer Optimizer
      <https://arxiv.org/abs/2510.15830>`_, 2025
    """
    _checks.check_number("outer_rate", outer_rate, above=0)
    _checks.check_number("momentum", momentum, low=0, below=1)
    _checks.check_int("period", period, low=1)
    _checks.check_accumulator_dtype(accumulator_dtype)

    def init_fn(params: optax.Params) -> OuterNesterovState:
        return OuterNesterovState(
            outer_step=jnp.zeros((), jnp.int32),
            displacement=zeros(params, accumulator_dtype, wide=True),
            outer_velocity=zeros(params, accumulator_dtype, wide=True),
        )

    def update_fn(
        updates: optax.Updates,
        state: OuterNesterovState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OuterNesterovState]:
        del extra_args
        starts, ends = state.outer_step == 0, state.outer_step == period - 1
        eta, mu = jnp.asarray(outer_rate, float), jnp.asarray(momentum, float)

        updates = rounded(updates)
        d, b = state.displacement, state.outer_velocity
        # With d = -s: b <- mu b - d, and u <- u - d - eta (mu b - d).
        u = movement(updates, params, of_wide=False)
        d = combine((1, select(starts, zeros(d), d)), (1, u), like=d)
        b = select(ends, combine((mu, b), (-1, d)), b)
        last = combine((1, u), (eta - 1, d), (-eta * mu, b))
        return select(ends, last, updates), OuterNesterovState(
            outer_step=(state.outer_step + 1) % period,
            displacement=d,
            outer_velocity=b,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
