"""BEMA: an exponential average of the trajectory without its lag, to be read out."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._trees import (
    combine,
    fall_back,
    map_params,
    movement,
    rounded,
    select,
    zeros,
)


class BemaState(NamedTuple):
    """State of :func:`bema`.

    Attributes:
      bema_steps: Updates since initialisation; int32 scalar.
      bias_weight: The alpha of the last update of the average, 0 before; float scalar,
        or None without a correction.
      ema_offset: The exponential average minus the parameters, in float32 at least; a
        tree like the parameters.
      initial_params: The parameters when the average began; a tree like the parameters,
        or None if they are not kept.
    """

    bema_steps: jax.Array
    bias_weight: jax.Array | None
    ema_offset: optax.Updates
    initial_params: optax.Params | None


def bema(
    power: jax.typing.ArrayLike = 0.5,
    *,
    bias_power: jax.typing.ArrayLike | None = 0.2,
    lag: jax.typing.ArrayLike = 10.0,
    multiplier: jax.typing.ArrayLike = 1.0,
    every: int = 1,
    start: int = 0,
    keep_initial: bool = True,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the trajectory exponentially, and corrects the average's lag.

    With :math:`w_t` the parameters after t updates and :math:`w_0` those from which the
    average begins, every few updates

    .. math::
        \text{EMA}_t &= (1 - \beta_t) \text{EMA} + \beta_t w_t, &
        \beta_t &= (\rho + \gamma t)^{-\kappa}, \\
        \text{BEMA}_t &= \text{EMA}_t + \alpha_t (w_t - w_0), &
        \alpha_t &= (\rho + \gamma t)^{-\eta}.

    :func:`bema_params` reads it at any step. Training is not changed: updates pass as
    they are. Between two updates of the average the reference returns the last BEMA;
    here the correction follows the parameters, which needs no third buffer.

    It is made for fine-tuning, where :math:`w_0` is a pre-trained checkpoint and an
    average lags behind a short way. From a random start the correction is
    :math:`\alpha_t`, 0.2 after 3,000 updates at the defaults, times **all** that was
    learnt: compare it with the same average without a correction,
    ``bias_power=None``, and with :func:`~plp_optax.tail_average`.

    Place it **last** in a chain. Where the sources differ, this is the paper's formula,
    which TRL's ``BEMACallback`` has, too. In the authors' code t counts from the start
    of the average, :math:`\rho` is inside, :math:`(1 + \gamma (t + \rho))^{-\kappa}`,
    and :math:`w_0` is the parameters after the first update. A smallest
    :math:`\beta` is not offered. To disable the correction, TRL documents
    ``bias_power=0``, at which its :math:`\alpha_t` is 1.

    Args:
      power: :math:`\kappa`, at least 0.
      bias_power: :math:`\eta`, at least 0, or None for no correction.
      lag: :math:`\rho`, at least 1.
      multiplier: :math:`\gamma`, at least 0.
      every: Updates between two of the average. The paper has 400 in long runs.
      start: Updates before the average begins. Until then it is the parameters.
      keep_initial: Whether to keep :math:`w_0`, in a buffer of its own. Pass it to
        :func:`bema_params` if not. Without a correction nothing is kept.
      accumulator_dtype: The offset's dtype for real parameters, float32 or wider; by
        default float32, or the parameters' own if that is wider.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state :class:`BemaState`.
      Its ``update`` raises ValueError without ``params``, where :math:`w_0` is kept or
      updates are in half precision.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      Noisy gradients along a slow direction, whose minimum is at 0:

      >>> import jax, optax, plp_optax
      >>> tx = optax.chain(optax.sgd(0.01), plp_optax.bema())
      >>> w = jax.numpy.ones(50)
      >>> state = tx.init(w)
      >>> for key in jax.random.split(jax.random.key(0), 30):
      ...     gradient = w + jax.random.normal(key, w.shape)
      ...     updates, state = tx.update(gradient, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(f"{w.mean():.2f} {plp_optax.bema_params(state, w).mean():.2f}")
      0.73 0.64

    References:
      Block and Zhang, `EMA Without the Lag: Bias-Corrected Iterate Averaging Schemes
      <https://arxiv.org/abs/2508.00180>`_, 2025; reference code: abblock/bema
    """
    _checks.check_number("power", power, low=0)
    if bias_power is not None:
        _checks.check_number("bias_power", bias_power, low=0)
    _checks.check_number("lag", lag, low=1)
    _checks.check_number("multiplier", multiplier, low=0)
    _checks.check_int("every", every, low=1)
    _checks.check_int("start", start, low=0)
    _checks.check_bool("keep_initial", keep_initial)
    _checks.check_accumulator_dtype(accumulator_dtype)
    keeps = keep_initial and bias_power is not None

    def init_fn(params: optax.Params) -> BemaState:
        return BemaState(
            bema_steps=jnp.zeros((), jnp.int32),
            bias_weight=None if bias_power is None else jnp.zeros((), float),
            ema_offset=zeros(params, accumulator_dtype, wide=True),
            initial_params=zeros(params) if keeps else None,
        )

    def update_fn(
        updates: optax.Updates,
        state: BemaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BemaState]:
        del extra_args
        if keeps and params is None:
            raise ValueError(
                "bema keeps the initial parameters: pass params, as in "
                "tx.update(grads, state, params), or set keep_initial=False"
            )
        updates, before = rounded(updates), state.ema_offset
        step, initial = state.bema_steps, state.initial_params
        follows = step >= start
        averages = follows & ((step - start) % every == every - 1)
        age = jnp.asarray(lag, float) + multiplier * (step.astype(float) + 1)
        # With 0 the average stays, and its offset follows the parameters: o - u.
        beta = jnp.where(averages, age ** -jnp.asarray(power, float), 0)
        alpha: Any = state.bias_weight
        if bias_power is not None:
            alpha = jnp.where(averages, age ** -jnp.asarray(bias_power, float), alpha)
        back = fall_back(before, movement(updates, params), beta)
        offset = combine((1, before), (-1, back))
        return updates, BemaState(
            bema_steps=optax.safe_increment(step),
            bias_weight=alpha,
            ema_offset=select(follows, offset, before),
            initial_params=select(step == start, params, initial) if keeps else None,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def bema_params(
    state: optax.OptState, params: optax.Params, initial: optax.Params | None = None
) -> optax.Params:
    """The bias-corrected average that :func:`bema` follows.

    Args:
      state: Its state, or that of a chain or wrapper that contains it once.
      params: The parameters that belong to the state.
      initial: The parameters when the average began, a tree like the parameters. By
        default those that the state keeps.

    Returns:
      A tree like the parameters, in their dtypes. Parameters that the average does not
      see (``optax.masked``) stay as they are.

    Raises:
      ValueError: If the state does not contain exactly one :class:`BemaState`, or one
        of other parameters, or there are no initial parameters.
    """
    kept = _checks.only_state(state, BemaState)
    alpha, offset = kept.bias_weight, kept.ema_offset
    _checks.check_unstacked(kept.bema_steps)
    if alpha is None:
        return map_params(lambda w, o: combine((1, w), (1, o), like=w), params, offset)
    w_0 = kept.initial_params if initial is None else initial
    if w_0 is None:
        raise ValueError(
            "the state does not keep the initial parameters: pass them, as in "
            "bema_params(state, params, initial)"
        )
    # EMA + alpha (w - w_0), with the EMA at w + o.
    return map_params(
        lambda w, o, w_0: combine((1 + alpha, w), (1, o), (-alpha, w_0), like=w),
        params,
        offset,
        w_0,
    )
