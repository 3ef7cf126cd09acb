"""Affine combinations of the last parameters that the updates themselves set."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from plp_optax import _checks
from plp_optax._trees import AxisName, arrays, combine, select, widened, zeros

# Sliding and restarted, by the bits of the shortest dtype among the updates; anything
# shorter has 1e-2. On logistic regression and a tanh network sliding does best near
# 1e-5, of 1e-12 to 1e-2 in both dtypes. Restarted gains from even less than 1e-7, which
# is as far as products in float32 are known.
_REGULARIZATION = {64: (1e-5, 1e-10), 32: (1e-5, 1e-7)}


class AndersonState(NamedTuple):
    """State of :func:`anderson`.

    It holds n updates: ``history`` when sliding, ``history - 1`` when restarted.

    Attributes:
      position: Updates since the window started. Restarted: 0 to period - 1.
        Sliding: 0 to 2 n - 1, where n and more mean that all places are filled. int32
        scalar.
      gram: Inner products of the stored updates over ``2**exponent``; shape ``(n, n)``.
      exponent: The binary exponent of the last update's largest entry; int32 scalar.
      stored_updates: n trees like the parameters: the last updates that came in.
      stored_moves: Sliding: n trees like the parameters, the updates that were
        emitted in their place. Restarted: empty.
      jumped: Whether the last step ended in a jump; bool scalar. False without
        ``revert``.
      value_before: The value at the parameters from which that step was taken; float
        scalar. Zero without ``revert``.
    """

    position: jax.Array
    gram: jax.Array
    exponent: jax.Array
    stored_updates: tuple[optax.Updates, ...]
    stored_moves: tuple[optax.Updates, ...]
    jumped: jax.Array
    value_before: jax.Array


def anderson(
    history: int = 10,
    *,
    period: int | None = None,
    mixing: jax.typing.ArrayLike = 1.0,
    regularization: jax.typing.ArrayLike | None = None,
    min_signal: jax.typing.ArrayLike | None = None,
    revert: bool = False,
    axis_name: AxisName | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Jumps to the combination of the last parameters with the smallest update.

    Anderson acceleration, also known as regularised nonlinear acceleration (RNA),
    reduced rank extrapolation (RRE) and Pulay mixing. With the last
    ``history`` updates :math:`u_0, \dots, u_k` and the parameters :math:`w_i` that each
    of them led to, a jump ends at

    .. math::
        \sum_i c_i w_i, \qquad
        c = \arg\min_{\sum_i c_i = 1} \Big\lVert \sum_i c_i u_i \Big\rVert^2
        + \lambda \lVert G \rVert_2 \lVert c \rVert^2,
        \qquad G_{ij} = \langle u_i, u_j \rangle,

    so that :math:`c = z / \sum_i z_i` with
    :math:`z = (G / \lVert G \rVert_2 + \lambda I)^{-1} \mathbf 1`. A large
    :math:`\lambda` gives the average of the window; a small one extrapolates. On a
    quadratic in n dimensions, ``n + 1`` steps of gradient descent and one jump reach
    the minimum.

    **Sliding** (``period=None``) jumps at each step: the strongest form, for plain
    gradient descent, ``optax.chain(optax.sgd(rate), anderson(10))``, on a full
    batch. **Restarted** (``period=history`` or more) takes ``history`` plain steps, the
    last of which ends in a jump, and the optimizer's own until the period is over: half
    the memory, and it also works after Nesterov momentum. With small batches use
    neither: noise turns the combination into the average, and the average lags; use
    :func:`~plp_optax.tail_average` there.

    Warnings:
      Do not use it after heavy-ball momentum. Its next point depends on a velocity that
      no combination of points holds, and a jump leaves that velocity as it was: on
      quadratics this is slower than heavy ball alone. On losses with saddles, the
      smallest update may be one at a saddle: on a small physics-informed network it
      stays where ``optax.lbfgs`` gets on.

    Place it **last** in a chain, so that it sees the final update. It holds
    ``history - 1`` parameter-sized buffers, or ``2 * history`` when sliding, and needs
    no parameters.

    Args:
      history: Updates that are combined; at least 2. Anderson's depth is one less.
      period: Steps in a cycle of the restarted form, at least ``history``; None for
        the sliding form.
      mixing: :math:`\beta`, how much of the combined update a jump takes: it ends at
        :math:`\sum_i c_i (w_i - (1 - \beta) u_i)`. 1 by default, as above. Set
        it below 1 to damp jumps, as a lower learning rate would.
      regularization: :math:`\lambda`, also called ridge; positive. By default 1e-5
        sliding; restarted 1e-10 if all updates are float64 and 1e-7 for float32; 1e-2
        for anything shorter. Raise it where jumps overshoot: they then end nearer to
        the window's average.
      min_signal: Where the mean product of different updates is less than this part of
        the mean square of updates, there is no jump. The quotient is about 1 for steady
        updates and 0 for noise, but also small where updates oscillate. None for no
        limit.
      revert: Whether to undo a jump after which the value is higher than it was before
        the step that ended in it. ``update`` then needs the ``value`` at the
        parameters, as ``optax.value_and_grad_from_state`` and line searches do. The
        step that finds it takes the parameters back to where the optimizer alone would
        have been, its own update is dropped, and the window starts again. For full
        batches: values of different batches differ by noise.
      axis_name: Mapped axis, or axes, of ``pmap`` or ``shard_map`` over which every
        parameter is split, for products of all parts. Leave it out where each device
        has all parameters, and under ``jit``, which needs no name for the same.
      accumulator_dtype: The stored updates' dtype for real parameters; by default the
        parameters' own. Products are taken in float32 at least.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`AndersonState`. With ``revert`` its ``update`` needs ``value``. An
      update that is not finite passes through, and the window starts again after it.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      Two dimensions, three steps, and there:

      >>> import jax, optax, plp_optax
      >>> loss = lambda w: w[0] ** 2 + 10 * w[1] ** 2
      >>> tx = optax.chain(
      ...     optax.sgd(0.08), plp_optax.anderson(3, period=3)
      ... )
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(w):.3f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      169.000
      63.950
      25.217
      0.000

    References:
      Anderson, `Iterative Procedures for Nonlinear Integral Equations
      <https://doi.org/10.1145/321296.321305>`_, 1965

      Scieur, d'Aspremont and Bach, `Regularized Nonlinear Acceleration
      <https://arxiv.org/abs/1606.04133>`_, 2016

      Scieur, Oyallon, d'Aspremont and Bach, `Nonlinear Acceleration of Deep Neural
      Networks <https://arxiv.org/abs/1805.09639>`_, 2018

      Pasini et al., `Anderson Acceleration for Distributed Training of Deep Learning
      Models <https://arxiv.org/abs/2110.14813>`_, 2021
    """
    _checks.check_int("history", history, low=2)
    if period is not None:
        _checks.check_period(period, history)
    _checks.check_number("mixing", mixing)
    if regularization is not None:
        _checks.check_number("regularization", regularization, above=0)
    if min_signal is not None:
        _checks.check_number("min_signal", min_signal)
    _checks.check_bool("revert", revert)
    _checks.check_float_dtype("accumulator_dtype", accumulator_dtype)
    slides = period is None
    # The newest update of a cycle is used when it comes, and not stored.
    n = history if slides else history - 1
    slots = np.arange(n)

    def init_fn(params: optax.Params) -> AndersonState:
        def trees() -> tuple[optax.Updates, ...]:
            return tuple(zeros(params, accumulator_dtype) for _ in range(n))

        return AndersonState(
            position=jnp.zeros((), jnp.int32),
            gram=jnp.zeros((n, n), float),
            exponent=jnp.zeros((), jnp.int32),
            stored_updates=trees(),
            stored_moves=trees() if slides else (),
            jumped=jnp.zeros((), bool),
            value_before=jnp.zeros((), float),
        )

    def update_fn(
        updates: optax.Updates,
        state: AndersonState,
        params: optax.Params | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AndersonState]:
        del params, extra_args
        if revert and value is None:
            raise ValueError(
                "anderson with revert compares values: pass the loss at the "
                "parameters, as in tx.update(grads, state, params, value=loss)"
            )
        updates = arrays(updates)
        position = state.position
        # All products are of updates over this one's size: those of float32 overflow
        # or vanish beyond norms of 1e19 and 1e-19.
        exponent = _exponent(updates, axis_name)
        unit = jax.tree.map(lambda u: _times_power(u, -exponent), updates)
        own = _product(updates, unit, axis_name)
        finite = jnp.isfinite(own)
        if revert:
            now = jnp.asarray(value, state.value_before.dtype)
            if now.shape:
                raise ValueError(f"value must be a scalar, got shape {now.shape}")
            # Not `now > before`, in which a NaN would be no failure.
            fails = state.jumped & ~(now <= state.value_before)
        else:
            fails = jnp.zeros((), bool)
        # Written before anything is read: otherwise XLA would have to copy the window.
        here = (slots == (position % n if slides else position)) & finite & ~fails
        stored = _stored(state.stored_updates, here, updates)
        is_used = (slots < position) & ~here

        products = jnp.stack([_product(u, unit, axis_name) for u in stored])
        before = _times_power(state.gram, state.exponent - exponent)
        gram = _bordered(before, products, own, is_used)
        strength = regularization
        if strength is None:
            strength = _default_strength(updates, slides=slides)
        c = _coefficients(gram, is_used, strength)
        if min_signal is not None:
            c = jnp.where(_signal(gram, is_used) >= min_signal, c, _no_jump(c))

        # sum_i c_i w_i - w_k, where w_i - w_k is u_i minus all moves from the i-th on.
        # Slots in the order of their updates: a full ring starts at `position`.
        full = position >= n
        age = jnp.where(full, (slots - position) % n, slots) if slides else slots
        is_earlier = is_used[:, None] & (age[:, None] <= age[None])
        of_moves = -jnp.where(is_earlier, c[:-1, None], 0).sum(axis=0)
        weights = jnp.where(is_used, c[:-1] if slides else c[:-1] + of_moves, 0)
        less = (1 - jnp.asarray(mixing, c.dtype)) * c  # of each update
        weights -= jnp.where(is_used, less[:-1], 0)
        terms = [(c[-1] - 1 - less[-1], updates), *zip(weights, stored, strict=True)]
        if slides:
            of_moves = jnp.where(is_used, of_moves, 0)
            terms += zip(of_moves, state.stored_moves, strict=True)
        # Without the barrier XLA would combine the window once more for each buffer
        # that the result is written to.
        jump = jax.lax.optimization_barrier(combine(*terms))
        longest = _largest(jump, axis_name)
        jumps = is_used.any() if slides else position == n
        jumps &= finite & jnp.isfinite(longest) & ~fails
        emitted = select(jumps, combine((1, updates), (1, jump)), updates)
        if revert:
            back = _undo(stored, state.stored_moves, slots == (position - 1) % n)
            emitted = select(fails, back, emitted)
            if not slides:  # where the cycle's first update is no longer needed
                stored = (select(jumps, jump, stored[0]), *stored[1:])

        following = position + 1
        if period is None:
            # Back to n and not to 0: from n on, all places are filled.
            following = jnp.where(following == 2 * n, n, following)
        else:
            following %= period
        gram = jnp.where(here[:, None], products[None], before)
        return emitted, AndersonState(
            position=jnp.where(finite & ~fails, following, 0),
            gram=jnp.where(here[None], products[:, None], gram),
            exponent=exponent,
            stored_updates=stored,
            stored_moves=_stored(state.stored_moves, here, emitted),
            jumped=jumps if revert else state.jumped,
            value_before=(
                jnp.where(fails, state.value_before, now)
                if revert
                else state.value_before
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _exponent(updates: optax.Updates, axis_name: AxisName | None) -> jax.Array:
    """The binary exponent of the largest entry; 0 if that is 0 or not finite."""
    largest = _largest(updates, axis_name)
    usable = jnp.isfinite(largest) & (largest > 0)
    # Without a derivative: a scale changes no result.
    largest = jax.lax.stop_gradient(jnp.where(usable, largest, 1))
    return jnp.frexp(largest)[1].astype(jnp.int32)


def _largest(tree: optax.Updates, axis_name: AxisName | None) -> jax.Array:
    largest = optax.tree.norm(tree, ord=jnp.inf).astype(float)
    return largest if axis_name is None else jax.lax.pmax(largest, axis_name)


def _times_power(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """``x`` times ``2**exponent`` squared, of which the square might overflow."""
    dtype = widened(x)
    factor = jnp.ldexp(jnp.ones((), jnp.finfo(dtype).dtype), exponent)
    return (x.astype(dtype) * factor) * factor


def _product(a: optax.Updates, b: optax.Updates, axis_name: AxisName | None) -> Any:
    """The inner product of two trees, a float scalar."""

    def of_leaves(x: jax.Array, y: jax.Array) -> jax.Array:
        dtype = widened(y)
        x, y = jnp.conj(x).astype(dtype), y.astype(dtype)
        if AxisType.Explicit in jax.typeof(y).sharding.mesh.axis_types:
            return jnp.real(x * y).sum().astype(float)
        axes = tuple(range(y.ndim))
        # A product of sums, and not a sum of products, which XLA would store.
        product = jax.lax.dot_general(
            x, y, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST
        )
        return jnp.real(product).astype(float)

    total = sum(jax.tree.leaves(jax.tree.map(of_leaves, a, b)), jnp.zeros((), float))
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def _bordered(
    gram: jax.Array, products: jax.Array, own: jax.Array, is_stored: jax.Array
) -> jax.Array:
    """The products of all n + 1 updates, the newest last; 0 where nothing is stored."""
    is_pair = is_stored[:, None] & is_stored[None]
    products = jnp.where(is_stored, products, 0)
    return jnp.block(
        [
            [jnp.where(is_pair, gram, 0), products[:, None]],
            [products[None], own[None, None]],
        ]
    )


def _coefficients(
    gram: jax.Array, is_stored: jax.Array, strength: jax.typing.ArrayLike
) -> jax.Array:
    """Coefficients of the stored updates and the newest; 0 where nothing is stored."""
    ones = jnp.append(is_stored, True).astype(gram.dtype)
    z = ones * _solve(gram, jnp.asarray(strength, gram.dtype), ones)
    c = z / z.sum()  # NaN if all updates are 0, and with them |G|
    return jnp.where(jnp.isfinite(c).all(), c, _no_jump(c))


@jax.custom_jvp
def _solve(gram: jax.Array, strength: jax.Array, ones: jax.Array) -> jax.Array:
    """``(G / |G| + strength I)^-1 ones``, for a G whose rounding is removed."""
    return _inverse(gram, strength)[0](ones)


def _inverse(
    gram: jax.Array, strength: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """A function that solves, and the eigenvector of the largest eigenvalue."""
    # Rounding may leave eigenvalues below 0, and G + lambda singular.
    # The matrix is tiny, so that eigh costs nothing next to the products.
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    relative = jnp.maximum(eigenvalues / eigenvalues[-1], 0)

    def solve(b: jax.Array) -> jax.Array:
        return vectors @ (1 / (relative + strength) * (b @ vectors))

    return solve, vectors[:, -1]


@_solve.defjvp
def _solve_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # The derivative of the solution, and not of eigenvectors: that of equal eigenvalues
    # does not exist.
    gram, strength, ones = primals
    d_gram, d_strength, d_ones = tangents
    solve, largest = _inverse(gram, strength)
    norm = largest @ gram @ largest
    z = solve(ones)
    d_norm = largest @ d_gram @ largest
    d_matrix = d_gram / norm - gram * (d_norm / norm**2)
    return z, solve(d_ones - d_matrix @ z - d_strength * z)


def _no_jump(c: jax.Array) -> jax.Array:
    return jnp.zeros_like(c).at[-1].set(1)


def _default_strength(updates: optax.Updates, *, slides: bool) -> float:
    bits = [jnp.finfo(u.dtype).bits for u in jax.tree.leaves(updates)]
    sliding, restarted = _REGULARIZATION.get(min(bits, default=32), (1e-2, 1e-2))
    return sliding if slides else restarted


def _signal(gram: jax.Array, is_stored: jax.Array) -> jax.Array:
    """The mean product of different updates, relative to their mean square."""
    others, squares = is_stored.sum(dtype=gram.dtype), jnp.trace(gram)
    return (gram.sum() - squares) / (jnp.maximum(others, 1) * squares)


def _stored(
    trees: tuple[optax.Updates, ...], here: jax.Array, new: optax.Updates
) -> tuple[optax.Updates, ...]:
    """The trees, with ``new`` in the place that ``here`` marks, if any."""
    # All trees are written again: with a lax.cond for each, XLA copies the window.
    return tuple(select(h, new, tree) for h, tree in zip(here, trees, strict=False))


def _undo(
    stored: tuple[optax.Updates, ...],
    moves: tuple[optax.Updates, ...],
    is_newest: jax.Array,
) -> optax.Updates:
    """Minus the last jump: the newest update minus the move in its place."""
    if not moves:
        return jax.tree.map(jnp.negative, stored[0])
    back = zeros(stored[0])
    for is_here, update, move in zip(is_newest, stored, moves, strict=True):
        back = select(is_here, combine((1, update), (-1, move)), back)
    return back
