"""PACE: AdamW that pulls its parameters towards their average."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._averages import TailAverageState
from plp_optax._trees import (
    arrays,
    combine,
    fall_back,
    movement,
    rounded,
    scale,
    wide_count,
    zeros,
)


class PaceState(NamedTuple):
    """State of :func:`pace`.

    Attributes:
      adamw: The states of ``optax.scale_by_adam``, whose moments are in float32 at
        least, and of weight decay.
      average: The average of the parameters, as :func:`~plp_optax.tail_average` has it.
    """

    adamw: optax.OptState
    average: TailAverageState


def pace(
    learning_rate: optax.ScalarOrSchedule,
    pull: jax.typing.ArrayLike = 0.15,
    *,
    power: jax.typing.ArrayLike = 0.5,
    b1: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: jax.typing.ArrayLike = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW whose parameters are pulled towards their average, which is evaluated.

    With AdamW's step and its bias-corrected second moment :math:`\hat v_t`, for each
    coordinate i,

    .. math::
        w_t &= w_{t-1} + \text{AdamW}_t + \lambda_t (\bar w_{t-1} - w_{t-1}), &
        \lambda_{t,i} &= \min\Big(1, \frac{\eta_t c \beta_t}
            {\sqrt{\hat v_{t,i}} + \epsilon}\Big), \\
        \bar w_t &= (1 - \beta_t) \bar w_{t-1} + \beta_t w_t, &
        \beta_t &= (1 + t)^{-\kappa}.

    The pull is as long as a part of the offset that :func:`~plp_optax.tail_average`
    keeps, and larger where gradients are small. The average is what to evaluate:
    :func:`~plp_optax.evaluation_params` and :func:`~plp_optax.averaged_params` read it.
    It holds three buffers, one more than AdamW, all in float32 at least.

    **Drift.** On steady updates the average lags by :math:`(1 - \beta) / \beta` of
    them: the pull slows a coordinate down by
    :math:`1 / (1 + \lambda (1 - \beta) / \beta)`. Compare it with AdamW at a learning
    rate that much lower, and with the same average of plain AdamW, which is c = 0: a
    gain over AdamW alone is mostly the average's.

    Where the sources differ: this is the formula of the reference's README, with the
    average followed at each step. The reference's code has also a smallest
    :math:`\beta` of 1e-4, which a :math:`\kappa` of 0.5 reaches after 1e8 steps, a
    switch for the minimum, a fixed :math:`\beta`, and an average that is followed every
    few steps.

    Args:
      learning_rate: :math:`\eta`, or a schedule from the number of updates so far.
      pull: c, at least 0. The paper has 0.15 and 0.25 in its main runs.
      power: :math:`\kappa`, at least 0. The paper has 0.2 and 0.5 there.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled weight decay, multiplied by the learning rate.
      mask: Which parameters decay, as in :func:`optax.adamw`.
      accumulator_dtype: The buffers' dtype for real parameters, float32 or wider; by
        default float32, or the parameters' own if that is wider.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state :class:`PaceState`, a
      complete optimizer. Its ``update`` needs ``params``.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> loss = lambda w: (w**2).sum()
      >>> tx = plp_optax.pace(0.5)
      >>> w = jax.numpy.array([3.0, -4.0])
      >>> state = tx.init(w)
      >>> for _ in range(4):
      ...     print(f"{loss(plp_optax.evaluation_params(state, w)):.1f}")
      ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
      ...     w = optax.apply_updates(w, updates)
      25.0
      20.3
      15.9
      12.0

    References:
      Au and Block, `Training for the Model You Return: Improving Optimization for
      Iterate-Averaged Language Models <https://arxiv.org/abs/2606.25086>`_, 2026;
      reference code: leonou2010/pace-optimizer
    """
    if not callable(learning_rate):
        _checks.check_number("learning_rate", learning_rate)
    _checks.check_number("pull", pull, low=0)
    _checks.check_number("power", power, low=0)
    _checks.check_number("b1", b1, low=0, below=1)
    _checks.check_number("b2", b2, low=0, below=1)
    _checks.check_number("eps", eps, low=0)
    _checks.check_number("weight_decay", weight_decay)
    _checks.check_accumulator_dtype(accumulator_dtype)
    adamw = optax.chain(
        optax.scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay, mask)
    )

    def init_fn(params: optax.Params) -> PaceState:
        buffer = zeros(params, accumulator_dtype, wide=True)
        count = jnp.zeros((), jnp.int32)
        return PaceState(adamw.init(buffer), TailAverageState(count, buffer))

    def update_fn(
        updates: optax.Updates,
        state: PaceState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PaceState]:
        del extra_args
        if params is None:
            raise ValueError(
                "pace needs the parameters: pass them, as in "
                "tx.update(grads, state, params)"
            )
        gradient, count, o = arrays(updates), *state.average
        given: Any = learning_rate
        if callable(learning_rate):
            given = learning_rate(wide_count(count))
        eta, t = jnp.asarray(given, float), count.astype(float) + 1
        beta = (1 + t) ** -jnp.asarray(power, float)
        # combine((1, x)) is x in float32 at least, the dtype of the moments.
        direction, adamw_state = adamw.update(
            combine((1, gradient)), state.adamw, combine((1, params))
        )

        def pulled(v: jax.Array, offset: jax.Array) -> jax.Array:
            root = jnp.sqrt(scale(v, 1 / (1 - jnp.asarray(b2, float) ** t))) + eps
            # c eta beta in the dtype of v, as strict promotion asks for.
            strength = jnp.full_like(v, eta * pull * beta) / root
            return jnp.minimum(strength, 1) * offset

        towards = jax.tree.map(pulled, adamw_state[0].nu, o)
        updates = rounded(combine((-eta, direction), (1, towards), like=gradient))
        back = fall_back(o, movement(updates, params), beta)
        o = combine((1, o), (-1, back), like=o)
        average = TailAverageState(optax.safe_increment(count), o)
        return updates, PaceState(adamw_state, average)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
