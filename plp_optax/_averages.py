"""Averages of the trajectory, to be read out."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._trees import arrays, combine, select, zeros


class TailAverageState(NamedTuple):
    """State of :func:`tail_average`.

    Attributes:
      tail_steps: Updates since initialisation; int32 scalar.
      average_offset: The average minus the parameters; a tree like the parameters.
    """

    tail_steps: jax.Array
    average_offset: optax.Updates


def tail_average(
    decay: jax.typing.ArrayLike | None = None,
    *,
    start: int = 0,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the parameters of the trajectory's tail; training is left as it is.

    Read the average with :func:`averaged_params`, for evaluation and at the end. With
    :math:`w_1, w_2, \dots` the parameters after the updates that follow the first
    ``start`` ones, it is

    .. math::
        \bar w_n = \bar w_{n-1} + \rho_n (w_n - \bar w_{n-1}), \qquad
        \rho_n = 1/n \text{ or } 1 - \text{decay},

    their mean, or the exponential average that begins at :math:`w_0`. The state
    keeps the offset :math:`o_n = \bar w_n - w_n`. With the update
    :math:`u_n = w_n - w_{n-1}` it follows

    .. math::
        o_n = (1 - \rho_n) (o_{n-1} - u_n),

    so that there is one buffer, small in training's last part, and no parameters are
    needed. The drift is that of the optimizer: updates pass unchanged.

    Use it with small batches at a constant or slowly falling learning rate, in place of
    part of its decay; it costs one buffer. After a decay to about 0 little is left to
    average out. Start it where the loss has settled: an average over the descent lags.
    With full batches use :func:`~plp_optax.adaptive_window`, whose coefficients
    extrapolate.

    Place it **last** in a chain, so that it sees the final update. Statistics of batch
    normalisation are not parameters: compute them again for the averaged ones.

    Args:
      decay: None for the mean; otherwise the exponential average's decay, at least 0
        and below 1.
      start: Updates before the tail begins. Until then the average is the parameters.
      accumulator_dtype: The offset's dtype for real parameters; by default the
        parameters' own. Sums are taken in float32 at least.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`TailAverageState`.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax, optax, plp_optax
      >>> tx = optax.chain(optax.sgd(1.0), plp_optax.tail_average(start=1))
      >>> w = jax.numpy.array(0.0)
      >>> state = tx.init(w)
      >>> for gradient in (-1.0, -2.0, 1.0, -2.0):
      ...     updates, state = tx.update(jax.numpy.array(gradient), state)
      ...     w = optax.apply_updates(w, updates)
      ...     print(f"{w:.1f} {plp_optax.averaged_params(state, w):.1f}")
      1.0 1.0
      3.0 3.0
      2.0 2.5
      4.0 3.0

    References:
      Polyak and Juditsky, `Acceleration of Stochastic Approximation by Averaging
      <https://doi.org/10.1137/0330046>`_, 1992

      Sanyal et al., `Early Weight Averaging meets High Learning Rates for LLM
      Pre-training <https://arxiv.org/abs/2306.03241>`_, 2023 (LAWA)
    """
    if decay is not None:
        _checks.check_number("decay", decay, low=0, below=1)
    _checks.check_int("start", start, low=0)
    _checks.check_float_dtype("accumulator_dtype", accumulator_dtype)

    def init_fn(params: optax.Params) -> TailAverageState:
        return TailAverageState(
            tail_steps=jnp.zeros((), jnp.int32),
            average_offset=zeros(params, accumulator_dtype),
        )

    def update_fn(
        updates: optax.Updates,
        state: TailAverageState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TailAverageState]:
        del params, extra_args
        n = state.tail_steps - start + 1  # below 1 before the tail begins
        if decay is None:
            kept = 1 - 1 / jnp.maximum(n, 1).astype(float)
        else:
            kept = jnp.asarray(decay, float)

        updates, before = arrays(updates), state.average_offset
        offset = combine((kept, before), (-kept, updates))
        return updates, TailAverageState(
            tail_steps=optax.safe_increment(state.tail_steps),
            average_offset=select(n >= 1, offset, before),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """The average that :func:`tail_average` keeps.

    Args:
      state: Its state, or that of a chain that contains it once.
      params: The parameters that belong to the state.

    Returns:
      A tree like the parameters, in their dtypes.

    Raises:
      ValueError: If the state does not contain exactly one
        :class:`TailAverageState`.
    """
    offset = _checks.only_state(state, TailAverageState).average_offset
    return combine((1, params), (1, offset), like=params)
