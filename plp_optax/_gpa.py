"""Generalised primal averaging: gradients between an iterate and its average."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._trees import arrays, combine, fall_back, map_params, movement, zeros

# The reference's; of DiLoCo with 32 inner steps.
_DECAY = 0.9967


class GPAState(NamedTuple):
    """State of :func:`gpa`.

    Attributes:
      primal_steps: Updates since initialisation; int32 scalar.
      interpolation: The mu_y of the last update; float scalar.
      primal_offset: The average minus the iterate, x - z, in float32 at least; a tree
        like the parameters.
    """

    primal_steps: jax.Array
    interpolation: jax.Array
    primal_offset: optax.Updates


def gpa(
    interpolation: jax.typing.ArrayLike = 0.7,
    *,
    decay: jax.typing.ArrayLike | None = None,
    power: jax.typing.ArrayLike | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Generalised primal averaging: trains near an average, and evaluates it.

    Let :math:`u_t` be the update of the optimizer before it in the chain, computed at
    :math:`y_t`, the parameters that training holds:

    .. math::
        y_t &= \mu_y x_t + (1 - \mu_y) z_t, \\
        z_{t+1} &= z_t + u_t, \\
        x_{t+1} &= \mu_x x_t + (1 - \mu_x) z_{t+1}.

    The average x is what to evaluate: :func:`~plp_optax.evaluation_params` reads it, as
    :math:`y + (1 - \mu_y) o` from the offset :math:`o = x - z`. That is one buffer, and
    it follows

    .. math::
        o_{t+1} = \mu_x (o_t - u_t), \qquad
        y_{t+1} - y_t = u_t + \mu_y (o_{t+1} - o_t).

    **Members.** :math:`\mu_x = 0` is the optimizer alone. With ``power=0``, that is
    :math:`1 - \mu_x = 1/t`, it is schedule-free
    (``optax.contrib.schedule_free`` at a constant rate). With :math:`\mu_x = \mu_y` on
    plain SGD it is Nesterov momentum at :math:`1 - \mu_x` times the rate, and so DiLoCo
    with one worker and one inner step (:func:`~plp_optax.outer_nesterov`); with K inner
    steps and the outer momentum :math:`\mu` the paper takes
    :math:`\mu_x = \mu^{1/K}`, which smooths over as many steps.

    **Drift.** On steady updates it moves as far as the optimizer alone, once the
    average has filled; until then :math:`1 - \mu_x \mu_y` times as far. With a power g
    it never fills: :math:`1 - \mu_y / (g + 2)` times as far.
    Compare it with the optimizer at the same learning rate, and with an average of the
    plain run (:func:`~plp_optax.tail_average`), which is :math:`\mu_y = 0`.

    It is a momentum: after one of a similar length the two overshoot. The reference has
    AdamW with its first moment before it, and an average that is much longer; in a
    short run use ``optax.adamw(..., b1=0.0)`` or plain SGD.

    Place it **last** in a chain. Weight decay before it is of the parameters y, as in
    the reference's code; its README applies it to z. The learning rate is scheduled as
    usual. Parameters are needed in half precision only.

    Args:
      interpolation: :math:`\mu_y`, from 0 to 1.
      decay: :math:`\mu_x`, at least 0 and below 1; 0.9967 by default. It averages over
        about ``1 / (1 - decay)`` steps: choose it for the run.
      power: A power average in its place, as in :func:`~plp_optax.tail_average`; at
        least 0, and 0 is the uniform one.
      accumulator_dtype: The offset's dtype for real parameters, float32 or wider; by
        default float32, or the parameters' own if that is wider.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state :class:`GPAState`.
      Its ``update`` raises ValueError for updates in half precision without ``params``.

    Raises:
      ValueError: If an argument is not as above, or ``power`` and ``decay`` are both
        given.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = optax.chain(optax.sgd(0.1), plp_optax.gpa(0.7, decay=0.8))
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(plp_optax.evaluation_params(state, w)):.2f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.00
      23.04
      19.87
      16.17

    References:
      Defazio et al., `Smoothing DiLoCo with Primal Averaging for Faster Training of
      LLMs <https://arxiv.org/abs/2512.17131>`_, 2025; reference code:
      facebookresearch/optimizers, gpa

      Defazio et al., `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_,
      2024
    """
    _checks.check_number("interpolation", interpolation, low=0, high=1)
    _checks.check_average(power, decay)
    _checks.check_accumulator_dtype(accumulator_dtype)

    def init_fn(params: optax.Params) -> GPAState:
        return GPAState(
            primal_steps=jnp.zeros((), jnp.int32),
            interpolation=jnp.zeros((), float),
            primal_offset=zeros(params, accumulator_dtype, wide=True),
        )

    def update_fn(
        updates: optax.Updates,
        state: GPAState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GPAState]:
        del extra_args
        updates, o = arrays(updates), state.primal_offset
        mu_y = jnp.asarray(interpolation, float)
        if power is None:
            # rho is 1 - mu_x.
            rho = 1 - jnp.asarray(_DECAY if decay is None else decay, float)
        else:
            g, t = jnp.asarray(power, float), state.primal_steps.astype(float) + 1
            rho = (g + 1) / (t + g)
        # In half precision z goes where the plain optimizer would: where parameters
        # are too coarse for the updates, the average would otherwise leave them.
        u = movement(updates, params, of_wide=False)
        back = fall_back(o, u, rho)
        # The next offset is o - back, so that y moves by u - mu_y back.
        return combine((1, u), (-mu_y, back), like=updates), GPAState(
            primal_steps=optax.safe_increment(state.primal_steps),
            interpolation=mu_y,
            primal_offset=combine((1, o), (-1, back), like=o),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def primal_average(state: GPAState, params: optax.Params) -> optax.Params:
    """The average x = y + (1 - mu_y) (x - z)."""
    _checks.check_unstacked(state.interpolation)
    weight = 1 - state.interpolation
    return map_params(
        lambda y, o: combine((1, y), (weight, o), like=y), params, state.primal_offset
    )
