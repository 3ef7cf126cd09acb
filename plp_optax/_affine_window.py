"""Affine combinations of the last parameters, every few steps."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plp_optax import _checks
from plp_optax._trees import arrays, combine, select, wide_count, zeros

StepSchedule = Callable[[jax.Array], jax.typing.ArrayLike]
Store = Literal["folded", "snapshots"]
Coefficients = Sequence[float] | np.ndarray | jax.Array | StepSchedule


class AffineWindowState(NamedTuple):
    """State of :func:`affine_window`.

    Attributes:
      steps_taken: Updates since initialisation, what schedules read; int32 scalar.
      cycle_step: Updates since the cycle's start, 0 to period - 1; int32 scalar.
      cycle_coefficients: The current cycle's ``c_0, ..., c_k``; shape ``(k + 1,)``.
      cycle_active: Whether the current cycle ends in a jump; bool scalar.
      window: Trees like the parameters. ``store="folded"``: one, the running
        combination of the cycle's updates. ``store="snapshots"``: the k + 1 parameters
        ``w_0, ..., w_k`` themselves (those of the last cycle until they are
        overwritten).
    """

    steps_taken: jax.Array
    cycle_step: jax.Array
    cycle_coefficients: jax.Array
    cycle_active: jax.Array
    window: tuple[optax.Params, ...]


def affine_window(
    coefficients: Coefficients,
    *,
    period: int,
    active: StepSchedule | None = None,
    store: Store = "folded",
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Jumps to an affine combination of the last parameters, once a cycle.

    A cycle has ``period`` optimizer steps. With :math:`w_0` the parameters at its
    start and :math:`w_1, \dots, w_k` those after its first k steps, step k ends not
    at :math:`w_k` but at

    .. math::
        \sum_{i=0}^k c_i w_i, \qquad \sum_{i=0}^k c_i = 1,

    and the cycle's remaining steps are the optimizer's own. Prediction (coefficients
    outside [0, 1]), averaging and Lookahead are members of this family:
    :func:`~plp_optax.plp_coefficients`, :func:`~plp_optax.average_coefficients`,
    :func:`~plp_optax.lookahead_coefficients`.

    Since the coefficients sum to 1, the jump depends on the updates
    :math:`u_j = w_j - w_{j-1}` alone,

    .. math::
        \sum_{i=0}^k c_i w_i - w_k = -\sum_{j=1}^k (c_0 + \dots + c_{j-1})\, u_j,

    so that one parameter-sized buffer is enough, whatever k. There are two ways to
    store the window:

    - ``"folded"`` holds the running sum of :math:`u_j` and needs no parameters.
    - ``"snapshots"`` keeps :math:`w_0, \dots, w_k`, k + 1 buffers, for plots and
      for inspection.

    They agree up to rounding as long as the emitted updates are applied unmodified.
    With low-precision *parameters* they differ by the rounding of the parameters,
    which ``"folded"`` does not see.

    Place it **last** in a chain: a transformation after it that rescales updates
    rescales the jump too, and the window is then not that of the parameters. Inside
    ``optax.MultiSteps`` a step is one update of the inner chain; in a chain after
    ``MultiSteps`` the mini-steps would be counted instead.

    A line search that reuses the last value of the loss, as ``optax.lbfgs`` does
    through ``optax.value_and_grad_from_state``, reuses that of the point before the
    jump. Discard the stored value, so that it is computed again::

        updates, state = tx.update(grad, state, params, value=value, ...)
        state = optax.tree.set(state, value=jnp.asarray(jnp.inf))

    Args:
      coefficients: ``c_0, ..., c_k``, at least two numbers with sum 1, or a schedule
        that maps the number of updates so far (an int32 scalar) to them. For schedules
        and jax arrays only the shape is checked; that they sum to 1 is up to you.
      period: Optimizer steps in a cycle, at least k.
      active: An optional predicate on the number of updates so far. A cycle whose
        first step finds it false passes all its updates through. It and the
        coefficients are read at the first step of a cycle only and kept in the
        state, so that nothing can change half-way through a cycle.
      store: ``"folded"`` or ``"snapshots"``.
      accumulator_dtype: The window's dtype for real parameters; by default the
        parameters' own. Sums are taken in float32 at least.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`AffineWindowState`. With ``store="snapshots"`` its ``update`` needs
      ``params``.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      The average of each three steps' parameters, from which the next cycle starts:

      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = optax.chain(
      ...     optax.sgd(0.1),
      ...     plp_optax.affine_window([0, 1 / 3, 1 / 3, 1 / 3], period=3),
      ... )
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.2f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.00
      16.00
      10.24
      10.58

    References:
      Zhang et al., `Lookahead Optimizer: k steps forward, 1 step back
      <https://arxiv.org/abs/1907.08610>`_, 2019

      Ying et al., `Enhancing Deep Neural Network Training Efficiency and Performance
      through Linear Prediction <https://arxiv.org/abs/2310.10958>`_, 2023
    """
    schedule, k = _as_schedule(coefficients)
    _checks.check_period(period, k)
    _checks.check_predicate("active", active)
    _checks.check_choice("store", store, ("folded", "snapshots"))
    _checks.check_float_dtype("accumulator_dtype", accumulator_dtype)

    def init_fn(params: optax.Params) -> AffineWindowState:
        trees = k + 1 if store == "snapshots" else 1
        return AffineWindowState(
            steps_taken=jnp.zeros((), jnp.int32),
            cycle_step=jnp.zeros((), jnp.int32),
            cycle_coefficients=jnp.zeros((k + 1,), float),
            cycle_active=jnp.zeros((), bool),
            window=tuple(zeros(params, accumulator_dtype) for _ in range(trees)),
        )

    def update_fn(
        updates: optax.Updates,
        state: AffineWindowState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AffineWindowState]:
        del extra_args
        if store != "folded" and params is None:
            raise ValueError(
                f"affine_window (and plp) with store={store!r} needs the parameters: "
                f"pass them, as in tx.update(grads, state, params)"
            )
        state, updates = arrays(state), arrays(updates)
        step, window = state.cycle_step, state.window
        starts = step == 0
        given = schedule(wide_count(state.steps_taken))
        # Read at a cycle's first step and kept, so that no schedule changes a cycle.
        c = jnp.where(starts, given, state.cycle_coefficients)
        c = c.astype(state.cycle_coefficients.dtype)
        active_now = True if active is None else active(state.steps_taken)
        is_active = jnp.where(starts, jnp.asarray(active_now, bool), state.cycle_active)
        # u_1 to u_k are collected, and the step of u_k ends in the jump.
        collects, jumps = is_active & (step < k), is_active & (step == k - 1)

        def collect(weights: jax.Array, tree: optax.Params) -> optax.Params:
            """The running combination, with this step's tree."""
            before = select(starts, zeros(window[0]), window[0])
            # Steps after the window index the weights, too, and collect nothing.
            term = (weights[jnp.minimum(step, k - 1)], tree)
            return select(collects, combine((1, before), term), window[0])

        if store == "folded":
            # The jump so far: u_j has the weight -(c_0 + ... + c_{j-1}).
            jump = collect(-jnp.cumsum(c[:-1]), updates)
            window = (jump,)
            updates = select(jumps, combine((1, updates), (1, jump)), updates)
        else:
            end = optax.apply_updates(params, updates)
            window = (
                select(starts, params, window[0]),
                *(select(step == j, end, w) for j, w in enumerate(window[1:])),
            )
            # sum_i c_i (w_i - w_k) with w_k = w_{k-1} + u, which is exactly 0 where no
            # parameter has moved, whatever the rounded sum of the coefficients.
            behind = [combine((1, w), (-1, params)) for w in window[:k]]
            jump = combine(*zip(c[:k], behind, strict=True), (-c[:k].sum(), updates))
            updates = select(jumps, combine((1, updates), (1, jump)), updates)
        return updates, AffineWindowState(
            steps_taken=optax.safe_increment(state.steps_taken),
            cycle_step=(step + 1) % period,
            cycle_coefficients=c,
            cycle_active=is_active,
            window=window,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def lookahead(
    sync_period: int = 5, slow_step_size: jax.typing.ArrayLike = 0.5
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead, after any optimizer and without paired parameters.

    Every ``sync_period`` steps the parameters go back towards those of the last
    synchronisation, to :math:`w_0 + \alpha (w_k - w_0)`. ``optax.lookahead`` follows
    the same parameters, and keeps the slow ones in ``params`` next to the fast ones;
    here they are folded into one buffer of the state, so that it is a link of a chain
    like any other. It is also DiLoCo with one worker and without outer momentum
    (:func:`~plp_optax.outer_nesterov`), and a member of
    :func:`~plp_optax.affine_window`. Place it **last** in a chain.

    On steady updates it moves ``slow_step_size`` times as far as the optimizer alone:
    compare it with a learning rate that much lower.

    Args:
      sync_period: The number k of optimizer steps between two synchronisations.
      slow_step_size: The slow parameters' rate :math:`\alpha`.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`AffineWindowState`.

    Raises:
      ValueError: If ``sync_period`` is not a positive int or ``slow_step_size`` is not
        finite.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = optax.chain(optax.sgd(0.1), plp_optax.lookahead(sync_period=2))
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.2f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.00
      16.00
      16.81
      10.76

    References:
      Zhang et al., `Lookahead Optimizer: k steps forward, 1 step back
      <https://arxiv.org/abs/1907.08610>`_, 2019
    """
    coefficients = lookahead_coefficients(sync_period, slow_step_size)
    return affine_window(coefficients, period=sync_period)


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
    _checks.check_int("sync_period", sync_period, low=1)
    _checks.check_number("slow_step_size", slow_step_size)
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
    _checks.check_int("window", window, low=1)
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
      >>> effective_rate_multiplier([0.0, -0.5, 0.5, 1.0], period=4)  # plp's
      1.125
      >>> effective_rate_multiplier(lookahead_coefficients(5, 0.5), period=5)
      0.5
    """
    c = _checks.check_coefficients(coefficients)
    k = len(c) - 1
    _checks.check_period(period, k)
    return 1 + math.fsum([*(np.arange(k + 1) * c), -k]) / period


def _as_schedule(
    coefficients: Coefficients,
) -> tuple[Callable[[jax.Array], jax.Array], int]:
    """Returns coefficients as a schedule of jax arrays, and k."""
    given: Any = coefficients
    if not isinstance(given, jax.Array) and not callable(given):
        given = _checks.check_coefficients(given)

    def schedule(count: jax.Array) -> jax.Array:
        return jnp.asarray(given(count) if callable(given) else given, float)

    shape = jax.eval_shape(schedule, jax.ShapeDtypeStruct((), jnp.int32)).shape
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"coefficients must have shape (k + 1,) with k of at least 1, got {shape}"
        )
    return schedule, shape[0] - 1
