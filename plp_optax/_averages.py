"""Averages of the trajectory, to be read out."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plp_optax import _checks
from plp_optax._bema import BemaState, bema_params
from plp_optax._gpa import GPAState, primal_average
from plp_optax._trees import (
    combine,
    fall_back,
    map_params,
    movement,
    own_copy,
    rounded,
    select,
    zeros,
)

# The best of 4, 8, 16 and 32 in the study `readouts`.
_POWER = 16.0


class TailAverageState(NamedTuple):
    """State of :func:`tail_average`.

    Attributes:
      tail_steps: Updates since initialisation; int32 scalar.
      average_offset: The average minus the parameters, in float32 at least; a tree like
        the parameters.
    """

    tail_steps: jax.Array
    average_offset: optax.Updates


def tail_average(
    power: jax.typing.ArrayLike | None = None,
    *,
    decay: jax.typing.ArrayLike | None = None,
    start: int = 0,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the trajectory, in place of a learning-rate decay.

    Train at a constant learning rate, and read the average with
    :func:`averaged_params` at any step: it stands for a run whose rate has decayed
    until then. No horizon is chosen beforehand, and training is not changed: updates
    pass as they are. The method is also known as iterate averaging, Polyak averaging,
    SWA, LAWA, WSM, checkpoint merging, or an EMA of weights.

    With :math:`w_1, w_2, \dots` the parameters after the updates that follow the first
    ``start`` ones, the average is

    .. math::
        \bar w_n = \bar w_{n-1} + \rho_n (w_n - \bar w_{n-1}), \qquad
        \rho_n = \frac{g + 1}{n + g} \text{ or } \frac{1 - d}{1 - d^n},

    the power average with :math:`g` = ``power`` (the mean for 0), or the exponential
    average with :math:`d` = ``decay``. That one is bias-corrected, as ``optax.ema`` is
    with ``debias``: its weights sum to 1 without the parameters before the first
    update, and until :math:`1/(1 - d)` updates it is about the mean.

    **Why it stands for a decay.** Any average is a weighting of updates
    :math:`u_j = w_j - w_{j-1}`:

    .. math::
        \sum_i c_i w_i = w_0 + \sum_j W_j u_j, \qquad W_j = c_j + \dots + c_n,

    and a learning rate that is multiplied by :math:`W_j` would weight its updates in
    the same way. (Its gradients would be taken elsewhere, so these are the same weights
    and not the same model.) The power average has :math:`W = 1 - s^{g + 1}` for the
    update at the part :math:`s = j/n` of the run, up to terms of order :math:`1/n`, at
    **every** :math:`n`: it is self-similar. A mean over the last tenth would stand for
    a linear decay over that tenth at one time only. The mean age of what a power
    average holds is :math:`1/(g + 2)` of the run.

    The state holds the offset :math:`o_n = \bar w_n - w_n`, which follows

    .. math::
        o_n = (1 - \rho_n) (o_{n-1} - u_n),

    so that there is one buffer, small where training has settled. Pass ``params`` to
    ``update``, as for weight decay: the offset then follows what the parameters do
    after rounding, and not what the update asked for. Without them half precision is
    refused.

    Place it **last** in a chain, so that it sees the final update. Parameters may
    change by these updates only: where they are clipped or normalised after
    ``optax.apply_updates``, the average does not see it. Running statistics of batch
    normalisation are not parameters: compute them again for the averaged ones
    (:func:`plp_optax.linen.recompute_batch_stats`). At rates well above the best one
    the average recovers less than a decay, and in the first hundred steps it lags.
    After a decay to 0 little is left to average out.

    Args:
      power: The exponent g, at least 0; 16 by default. A larger one averages over a
        shorter part of the run.
      decay: The decay of an exponential average in its place, at least 0 and below 1.
      start: Updates before the average begins. Until then it is the parameters.
      accumulator_dtype: The offset's dtype for real parameters, float32 or wider; by
        default float32, or the parameters' own if that is wider.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`TailAverageState`. Its ``update`` raises ValueError for updates in half
      precision without ``params``.

    Raises:
      ValueError: If an argument is not as above, or ``power`` and ``decay`` are both
        given.

    Examples:
      Noisy gradients of a quadratic at a constant rate:

      >>> import jax, optax, plp_optax
      >>> tx = optax.chain(optax.sgd(0.3), plp_optax.tail_average())
      >>> w = jax.numpy.array([1.0, -1.0])
      >>> state = tx.init(w)
      >>> for key in jax.random.split(jax.random.key(0), 400):
      ...     gradient = w + jax.random.normal(key, w.shape)
      ...     updates, state = tx.update(gradient, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> average = plp_optax.averaged_params(state, w)
      >>> bool(optax.tree.norm(average) < 0.5 * optax.tree.norm(w))
      True

    References:
      Shamir and Zhang, `Stochastic Gradient Descent for Non-smooth Optimization
      <https://arxiv.org/abs/1212.1824>`_, 2013 (polynomial-decay averaging)

      Karras et al., `Analyzing and Improving the Training Dynamics of Diffusion Models
      <https://arxiv.org/abs/2312.02696>`_, 2024 (power-function EMA)

      Tian et al., `WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for
      LLM Pre-training <https://arxiv.org/abs/2507.17634>`_, 2025

      Polyak and Juditsky, `Acceleration of Stochastic Approximation by Averaging
      <https://doi.org/10.1137/0330046>`_, 1992
    """
    _checks.check_average(power, decay)
    _checks.check_int("start", start, low=0)
    _checks.check_accumulator_dtype(accumulator_dtype)

    def init_fn(params: optax.Params) -> TailAverageState:
        return TailAverageState(
            tail_steps=jnp.zeros((), jnp.int32),
            average_offset=zeros(params, accumulator_dtype, wide=True),
        )

    def update_fn(
        updates: optax.Updates,
        state: TailAverageState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TailAverageState]:
        del extra_args
        updates, before = rounded(updates), state.average_offset
        # In floating point, since the count saturates at the largest int32.
        n = state.tail_steps.astype(float) - start + 1
        if decay is None:
            g = jnp.asarray(_POWER if power is None else power, float)
            rho = (g + 1) / (jnp.maximum(n, 1) + g)
        else:
            # (1 - d) / (1 - d^n), without the cancellation where d is near 1.
            log = jnp.log1p(-jnp.asarray(1 - decay, float))
            rho = jnp.expm1(log) / jnp.expm1(jnp.maximum(n, 1) * log)
        back = fall_back(before, movement(updates, params), rho)
        offset = combine((1, before), (-1, back))
        return updates, TailAverageState(
            tail_steps=optax.safe_increment(state.tail_steps),
            average_offset=select(n >= 1, offset, before),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged_params(
    state: optax.OptState,
    params: optax.Params,
    weight: jax.typing.ArrayLike = 1.0,
    *,
    mask: Any = None,
) -> optax.Params:
    """The average that :func:`tail_average` keeps, or a blend with it.

    Args:
      state: Its state, or that of a chain or wrapper that contains it once.
      params: The parameters that belong to the state.
      weight: The weight of the average, from 0 to 1; the parameters have the rest.
      mask: Which leaves to average: a tree of bools that is a prefix of the parameters,
        or a function from the parameters to one. The others stay as they are, as do
        parameters that the average does not see (``optax.masked``).

    Returns:
      A tree like the parameters, in their dtypes.

    Raises:
      ValueError: If the state does not contain exactly one
        :class:`TailAverageState`, or one of other parameters.
    """
    _checks.check_number("weight", weight, low=0, high=1)
    offset = _checks.only_state(state, TailAverageState).average_offset
    average = map_params(
        lambda p, o: combine((1, p), (weight, o), like=p), params, offset
    )
    if mask is None:
        return average
    chosen = mask(params) if callable(mask) else mask

    def choose(is_averaged: bool, averaged: Any, last: Any) -> Any:
        return averaged if is_averaged else jax.tree.map(own_copy, last)

    return jax.tree.map(choose, chosen, average, params)


def evaluation_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    """The parameters to evaluate, whatever optimizer has trained them.

    The state may be that of any chain: the averages of :func:`tail_average`,
    :func:`~plp_optax.bema`, :func:`~plp_optax.gpa`, :func:`~plp_optax.pace` and
    ``optax.contrib.schedule_free``, and the slow parameters of ``optax.lookahead`` are
    found inside ``optax.chain``, ``named_chain``, ``masked``, ``partition``,
    ``MultiSteps``, ``inject_hyperparams``, ``apply_if_finite``, and in the state of an
    ``nnx.Optimizer``. Leaves that it does not see, masked or frozen ones, are returned
    as they are. An average is kept as its offset from the parameters, so that state and
    parameters must be of one step.

    Running statistics of batch normalisation belong to other parameters: compute them
    again (:func:`plp_optax.linen.recompute_batch_stats`).

    Args:
      state: The optimizer's state.
      params: The parameters that belong to it; cast to float32 they give an average
        of half-precision ones without rounding.

    Returns:
      A tree like the parameters (like ``params.slow`` for ``optax.lookahead``), in
      their dtypes.

    Raises:
      ValueError: If the state holds none of these, or several, or one of other
        parameters.

    Examples:
      >>> import jax, optax, plp_optax
      >>> w = jax.numpy.ones(2)
      >>> tx = optax.contrib.schedule_free_sgd(0.5)
      >>> state = tx.init(w)
      >>> for _ in range(3):
      ...     updates, state = tx.update(w, state, w)
      ...     w = optax.apply_updates(w, updates)
      >>> plp_optax.evaluation_params(state, w).shape
      (2,)
    """
    kinds = tuple(_READ)
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kinds))
    found = [leaf for leaf in leaves if isinstance(leaf, kinds)]
    if len(found) > 1:
        names = ", ".join(type(leaf).__name__ for leaf in found)
        raise ValueError(
            f"the state holds {names}: pass the part of it that you mean, such as "
            f"state[-1] of a chain"
        )
    if not found:
        raise ValueError(
            "the state was restored without its structure: restore it into "
            "tx.init(params)"
            if _OFFSETS & _dict_keys(state)
            else "the state holds no average: chain plp_optax.tail_average() last, or "
            "evaluate the parameters themselves"
        )
    return _READ[type(found[0])](found[0], params)


def _schedule_free(state: Any, params: optax.Params) -> optax.Params:
    # x of y = b1 x + (1 - b1) z, as optax.contrib.schedule_free_eval_params has it.
    b1 = state.b1
    _checks.check_unstacked(b1)
    return map_params(
        lambda y, z: combine((1 / b1, y), (1 - 1 / b1, z), like=y), params, state.z
    )


def _lookahead(state: Any, params: Any) -> optax.Params:
    del state
    if not isinstance(params, optax.LookaheadParams):
        raise ValueError(
            f"optax.lookahead has pairs of parameters: pass its LookaheadParams, got "
            f"{type(params).__name__}"
        )
    return jax.tree.map(own_copy, params.slow)


_READ: dict[type, Callable[[Any, Any], optax.Params]] = {
    TailAverageState: averaged_params,
    BemaState: bema_params,
    GPAState: primal_average,
    optax.contrib.ScheduleFreeState: _schedule_free,
    optax.LookaheadState: _lookahead,
}

_OFFSETS = {"average_offset", "ema_offset", "primal_offset"}


def _dict_keys(state: Any) -> set[Any]:
    """The keys of all dicts inside a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    keys = (key for path, _ in leaves for key in path)
    return {key.key for key in keys if isinstance(key, jax.tree_util.DictKey)}


# The learning rate over its peak, by the part of a decay that is done.
_DECAYS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - np.sqrt(x),
    "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2,
}


def merge(
    means: Sequence[optax.Params],
    counts: Sequence[int] | None = None,
    *,
    decay: str | Callable[[np.ndarray], Any] = "linear",
    over: float = 0.2,
) -> optax.Params:
    r"""The average of means of blocks that stands for a decay, chosen after training.

    Training at a constant rate, with the mean of the parameters since the last
    checkpoint saved in each, leaves the choice of a decay for later. A rate that is
    multiplied by :math:`W(x)` over the last part of the run weights its updates by
    :math:`W`; so does the average of the block means with weights
    :math:`W(x_{k-1}) - W(x_k)`, where :math:`x_k` is the part of the decay that is done
    at the end of block :math:`k`. This is exact for a :math:`W` that is linear within
    blocks. Checkpoints in place of means give a noisier average.

    Args:
      means: The mean parameters of consecutive blocks of steps, oldest first; or
        checkpoints.
      counts: Steps of each block; by default all the same.
      decay: ``"linear"``, ``"1-sqrt"``, ``"cosine"``, or a function from the part of
        the decay that is done, an array in [0, 1], to the rate over its peak, which
        falls from 1 to 0.
      over: The last part of all steps, over which the rate would fall; above 0, at
        most 1.

    Returns:
      A tree like the means, in their dtypes.

    Raises:
      ValueError: If an argument is not as above.

    Examples:
      >>> import jax.numpy as jnp, plp_optax
      >>> blocks = [jnp.array(float(i)) for i in range(10)]
      >>> print(plp_optax.merge(blocks, decay="linear", over=0.4))
      7.5

    References:
      Tian et al., `WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for
      LLM Pre-training <https://arxiv.org/abs/2507.17634>`_, 2025

      Sandler et al., `Training trajectories, mini-batch losses and the curious role of
      the learning rate <https://arxiv.org/abs/2301.02312>`_, 2023
    """
    if not isinstance(means, Sequence):
        raise ValueError(
            f"means must be a sequence of trees, such as a list, got "
            f"{type(means).__name__}"
        )
    weights = merge_weights(len(means), counts, decay=decay, over=over)
    # Blocks before the decay have the weight 0, and need not be read.
    used = [(w, m) for w, m in zip(weights, means, strict=True) if w]
    return combine(*used, like=means[-1])


def merge_weights(
    blocks: int,
    counts: Sequence[int] | None = None,
    *,
    decay: str | Callable[[np.ndarray], Any] = "linear",
    over: float = 0.2,
) -> np.ndarray:
    """The weights of :func:`merge`, which sum to 1; float64 ``[blocks]``.

    Args:
      blocks: How many blocks there are.
      counts: See :func:`merge`, as for the others.
      decay: The decay.
      over: The last part of all steps.

    Raises:
      ValueError: If an argument is not as above.
    """
    _checks.check_int("blocks", blocks, low=1)
    _checks.check_number("over", over, above=0, high=1)
    if not callable(decay):
        _checks.check_choice("decay", decay, tuple(_DECAYS))
    shape = decay if callable(decay) else _DECAYS[decay]
    sizes = np.asarray([1] * blocks if counts is None else counts, np.float64)
    if sizes.shape != (blocks,) or not (sizes > 0).all():
        raise ValueError(
            f"counts must be {blocks} positive numbers of steps, got {counts!r}"
        )
    after = np.concatenate([[0.0], np.cumsum(sizes)])
    # Exactly 1 at the end, also where the decay is shorter than a rounding of 1.
    done = np.clip(1 - (1 - after / after[-1]) / over, 0, 1)
    rates = np.asarray(shape(done), np.float64)
    if rates.shape != done.shape or not np.allclose(rates[[0, -1]], [1, 0], atol=1e-9):
        raise ValueError(
            f"decay must map an array of parts to rates from 1 to 0, got {rates!r}"
        )
    return -np.diff(rates)
