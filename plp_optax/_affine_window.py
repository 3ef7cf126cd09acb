"""Affine combinations of the last parameters, every few steps."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plp_optax import _checks
from plp_optax._dtypes import widened, zeros

Schedule = Callable[[jax.Array], jax.typing.ArrayLike]
Store = Literal["folded", "parameters", "snapshots"]
Coefficients = Sequence[float] | np.ndarray | jax.Array | Schedule


class AffineWindowState(NamedTuple):
    """State of :func:`affine_window`.

    Attributes:
      steps_taken: Updates since initialisation, what schedules read; int32 scalar.
      cycle_step: Updates since the cycle's start, 0 to period - 1; int32 scalar.
      cycle_coefficients: The current cycle's ``c_0, ..., c_k``; shape ``(k + 1,)``.
      cycle_active: Whether the current cycle ends in a jump; bool scalar.
      window: Trees like the parameters. ``store="folded"``: one, the running
        combination of the cycle's updates. ``store="parameters"``: one, that of its
        parameters. ``store="snapshots"``: the k + 1 parameters ``w_0, ..., w_k``
        themselves (those of the last cycle until they are overwritten).
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
    active: Schedule | None = None,
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

    so that one parameter-sized buffer is enough, whatever k. There are three ways to
    store the window:

    - ``"folded"`` holds the running sum of :math:`u_j` and needs no parameters.
    - ``"parameters"`` holds the running sum :math:`\sum_{i<j} c_i w_i`. The compiler
      then reads each update once. After an optimizer with expensive updates, such as
      Adam, that saves a temporary copy of the parameters and some time. The sum has
      the size of the parameters and not of the updates, so use it with parameters, or
      an ``accumulator_dtype``, of float32 or wider.
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
        that maps the number of updates so far (an int32 scalar) to them. Of a
        schedule and of jax arrays only the shape is checked, not the sum.
      period: Optimizer steps in a cycle, at least k.
      active: An optional predicate on the number of updates so far. A cycle whose
        first step finds it false passes all its updates through. It and the
        coefficients are read at the first step of a cycle only and kept in the
        state, so that nothing can change half-way through a cycle.
      store: ``"folded"``, ``"parameters"`` or ``"snapshots"``.
      accumulator_dtype: The window's dtype for real parameters; by default the
        parameters' own. Sums are taken in float32 at least.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`AffineWindowState`. Unless ``store="folded"``, its ``update`` needs
      ``params``.

    Raises:
      ValueError: If an argument is not as above. Under
        ``optax.inject_hyperparams`` pass :func:`plp_optax.static_args`.

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
    _checks.check_choice("store", store, ("folded", "parameters", "snapshots"))
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
        state = jax.tree.map(jnp.asarray, state)  # NumPy arrays, once restored
        updates = jax.tree.map(jnp.asarray, updates)
        starts = state.cycle_step == 0
        c = jnp.where(starts, schedule(state.steps_taken), state.cycle_coefficients)
        c = c.astype(state.cycle_coefficients.dtype)
        active_now = True if active is None else active(state.steps_taken)
        is_active = jnp.where(starts, jnp.asarray(active_now, bool), state.cycle_active)
        jumps = is_active & (state.cycle_step == k - 1)

        if store != "folded" and params is None:
            raise ValueError(
                f"affine_window (and plp) with store={store!r} needs the parameters: "
                f"pass them, as in tx.update(grads, state, params)"
            )
        if store == "folded":
            updates, window = _folded(
                updates, state.window, c, state.cycle_step, is_active, jumps
            )
        elif store == "parameters":
            updates, window = _parameters(
                updates, state.window, params, c, state.cycle_step, is_active, jumps
            )
        else:
            updates, window = _snapshots(
                updates, state.window, params, c, state.cycle_step, jumps
            )
        return updates, AffineWindowState(
            steps_taken=optax.safe_increment(state.steps_taken),
            cycle_step=(state.cycle_step + 1) % period,
            cycle_coefficients=c,
            cycle_active=is_active,
            window=window,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _folded(
    updates: optax.Updates,
    window: tuple[optax.Params, ...],
    c: jax.Array,
    cycle_step: jax.Array,
    is_active: jax.Array,
    jumps: jax.Array,
) -> tuple[optax.Updates, tuple[optax.Params, ...]]:
    """One step that keeps only the jump so far, ``sum_{i<=j} a_i u_i``."""
    # a_j = -(c_0 + ... + c_{j-1}) for j = 1..k, where cycle_step = j - 1.
    a = -jnp.cumsum(c[:-1])
    k = a.size
    a_j = a[jnp.minimum(cycle_step, k - 1)]
    starts, collects = cycle_step == 0, is_active & (cycle_step < k)

    # Gates are selections, not products with 0 or 1: a NaN must not pass them.
    def accumulate(u: jax.Array, v: jax.Array) -> jax.Array:
        dtype = widened(v)
        term = a_j.astype(dtype) * u.astype(dtype)
        total = jnp.where(starts, term, v.astype(dtype) + term)
        return jnp.where(collects, total.astype(v.dtype), v)

    def emit(u: jax.Array, v: jax.Array) -> jax.Array:
        dtype = widened(v)
        jumped = u.astype(dtype) + v.astype(dtype)
        return jnp.where(jumps, jumped.astype(u.dtype), u)

    window = (jax.tree.map(accumulate, updates, window[0]),)
    return jax.tree.map(emit, updates, window[0]), window


def _parameters(
    updates: optax.Updates,
    window: tuple[optax.Params, ...],
    params: optax.Params,
    c: jax.Array,
    cycle_step: jax.Array,
    is_active: jax.Array,
    jumps: jax.Array,
) -> tuple[optax.Updates, tuple[optax.Params, ...]]:
    """One step that keeps only ``sum_{i<=j} c_i w_i`` of the parameters so far."""
    k = c.size - 1
    c_j, c_k = c[jnp.minimum(cycle_step, k - 1)], c[k]
    starts, collects = cycle_step == 0, is_active & (cycle_step < k)

    def accumulate(p: jax.typing.ArrayLike, v: jax.Array) -> jax.Array:
        dtype = widened(v)
        term = c_j.astype(dtype) * jnp.asarray(p).astype(dtype)
        total = jnp.where(starts, term, v.astype(dtype) + term)
        return jnp.where(collects, total.astype(v.dtype), v)

    # sum_{i<k} c_i w_i + c_k (w_{k-1} + u) - w_{k-1}. Each update occurs once, so that
    # what computes it is fused into this loop.
    scale = jnp.where(jumps, c_k, jnp.ones_like(c_k))

    def emit(u: jax.Array, p: jax.typing.ArrayLike, v: jax.Array) -> jax.Array:
        dtype = widened(v)
        rest = v.astype(dtype) + (c_k - 1).astype(dtype) * jnp.asarray(p).astype(dtype)
        rest = jnp.where(jumps, rest, jnp.zeros_like(rest))
        return (scale.astype(dtype) * u.astype(dtype) + rest).astype(u.dtype)

    window = (jax.tree.map(accumulate, params, window[0]),)
    return jax.tree.map(emit, updates, params, window[0]), window


def _snapshots(
    updates: optax.Updates,
    window: tuple[optax.Params, ...],
    params: optax.Params,
    c: jax.Array,
    cycle_step: jax.Array,
    jumps: jax.Array,
) -> tuple[optax.Updates, tuple[optax.Params, ...]]:
    """One step that keeps ``w_0, ..., w_k`` and combines them as the paper does."""
    next_params = optax.apply_updates(params, updates)

    def keep(here: jax.Array, snapshots: optax.Params, p: optax.Params) -> optax.Params:
        return jax.tree.map(
            lambda s, x: jnp.where(here, jnp.asarray(x).astype(s.dtype), s),
            snapshots,
            p,
        )

    window = (
        keep(cycle_step == 0, window[0], params),
        *(keep(cycle_step == j, w, next_params) for j, w in enumerate(window[1:])),
    )

    def emit(u: jax.Array, p: jax.Array, *w: jax.Array) -> jax.Array:
        dtype = widened(w[0])
        combination = sum(
            c_i.astype(dtype) * w_i.astype(dtype) for c_i, w_i in zip(c, w, strict=True)
        )
        jump = combination - jnp.asarray(p).astype(dtype)
        return jnp.where(jumps, jump.astype(u.dtype), u)

    return jax.tree.map(emit, updates, params, *window), window


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
