"""Layer-wise gradient amplification."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._affine_window import Schedule
from plp_optax._layers import Layers, assign_layers, check_layers, layer_names
from plp_optax._measures import MEASURES, Measure, add_to_sums, init_sums, layer_scores
from plp_optax._selectors import Selector, by_score
from plp_optax._strategy import AmplificationWindow, TrainingStrategy


class AmplifyLayersState(NamedTuple):
    """State of :func:`amplify_layers`, for L layers.

    Attributes:
      gradients_seen: Updates since initialisation; int32 scalar.
      signed_sums: The current analysis epoch's sums of gradients: ``[L]`` for
        ``"g1"``, else a tree like the parameters.
      absolute_sums: Its sums of absolute gradients: a tree like the parameters for
        ``"g2"``, else ``[L]``.
      scores: The last finished analysis epoch's measure of each layer, ``[L]``.
      z_scores: The same, standardised over the layers, ``[L]``.
      gradients_analyzed: How many gradients that epoch had; int32 scalar.
      amplified: Which layers it selected; bool ``[L]``.
      selections: How many selections there have been; int32 scalar.
      factors: What each layer's gradient is multiplied by in the next update; 1
        outside of amplified epochs; ``[L]``.
    """

    gradients_seen: jax.Array
    signed_sums: Any
    absolute_sums: Any
    scores: jax.Array
    z_scores: jax.Array
    gradients_analyzed: jax.Array
    amplified: jax.Array
    selections: jax.Array
    factors: jax.Array


def amplify_layers(
    strategy: TrainingStrategy | Sequence[AmplificationWindow],
    *,
    select: Selector | None = None,
    measure: Measure = "g2",
    factor: float | jax.Array | Schedule | None = None,
    reselect_every: int | None = None,
    layers: Layers = "kernels",
    apply: bool = True,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Layer-wise gradient amplification: multiplies the gradients of some layers.

    In the first epoch of each amplified stage, the analysis epoch, gradients pass
    unchanged while their sums are taken. From these every layer gets a score in
    [0, 1]: how consistently its gradients pointed one way. With :math:`g_{ij}` the
    gradient of its weight j in iteration i, the measures are

    .. math::
        \text{g1} = \frac{|\sum_i \sum_j g_{ij}|}{\sum_i \sum_j |g_{ij}|}, \quad
        \text{g1\_per\_weight} =
          \frac{\sum_j |\sum_i g_{ij}|}{\sum_j \sum_i |g_{ij}|}, \quad
        \text{g2} = \operatorname{mean}_j
          \frac{|\sum_i g_{ij}|}{\sum_i |g_{ij}|}

    with 0/0 as 0. The scores are standardised over the layers,
    :math:`z = (G - \text{mean}) / \text{std}`, and the layers with
    :math:`z > \text{threshold}` (case 1; ``two_sided``, case 2:
    :math:`|z| > \text{threshold}`) have their gradients multiplied by the factor in
    the epochs that follow.

    The paper's equation 4 is read as ``"g1"``, since its text says that the value is
    0 when half of the weights move against the other half. ``"g1_per_weight"`` is the
    other reading. Gradients that are pure noise score about
    :math:`1/\sqrt{\text{iterations}}` (``"g1"``:
    :math:`1/\sqrt{\text{iterations} \cdot \text{weights}}`, which favours small
    layers); :func:`amplification_table` shows scores beside that floor.

    Put it **first** in the chain, where it sees raw gradients, with weight decay
    behind it, as where decay joins the gradient inside PyTorch's optimizers::

        optax.chain(
            amplify_layers(strategy),
            optax.add_decayed_weights(5e-4),
            optax.sgd(strategy.learning_rate, momentum=0.9),
        )

    For a weight followed by batch normalisation, amplifying by f under SGD with weight
    decay equals unamplified training with weight and momentum buffer divided by
    :math:`\sqrt f`. So part of any gain is a temporary rise of the effective learning
    rate, and a drop when amplification ends; ``all_layers()`` and ``at_random()`` are
    the controls for that.

    Everything happens inside ``update``, from the number of updates so far: one
    compilation, and no work on the host.

    Args:
      strategy: A :class:`TrainingStrategy`, or windows in steps.
      select: Which layers are amplified: :func:`by_score` (the default),
        :func:`at_random`, :func:`all_layers` or :func:`named`.
      measure: ``"g1"``, ``"g1_per_weight"`` or ``"g2"``, as above.
      factor: What gradients are multiplied by: a number, or a schedule over the
        number of updates so far. By default the strategy's. (One that is injected by
        ``optax.inject_hyperparams`` acts one update later.)
      reselect_every: With k, the last of every k amplified epochs is analysed too, on
        raw gradients while amplification goes on; its selection holds from the next.
      layers: How parameters group into layers; see :func:`layer_names`.
      apply: With False gradients are measured and never changed. ``factors`` in the
        state still say what would multiply them, for
        :func:`plp_optax.linen.propagate_amplification`; since that form hides the raw
        gradients, ``factors`` are then 1 in epochs that are analysed again.
      accumulator_dtype: Of the buffers; by default the parameters' own, and float32
        at least.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`AmplifyLayersState`. It does not need ``params``.

    Raises:
      ValueError: If an argument is not as above; from ``init``, if a layer named in
        ``select`` does not exist, or the threshold cannot be exceeded. Under
        ``optax.inject_hyperparams`` name all arguments but ``threshold`` and
        ``factor`` in ``static_args``.

    Examples:
      Two layers, of which one's gradients agree and the other's alternate:

      >>> import jax.numpy as jnp, plp_optax
      >>> windows = [plp_optax.AmplificationWindow(0, 8, epoch_steps=4, factor=3.0)]
      >>> tx = plp_optax.amplify_layers(windows, select=plp_optax.by_score(0.5))
      >>> params = {name: {"kernel": jnp.zeros(2)} for name in ("steady", "noisy")}
      >>> state = tx.init(params)
      >>> for step in range(5):
      ...     sign = (-1.0) ** step
      ...     gradients = {
      ...         "steady": {"kernel": jnp.ones(2)},
      ...         "noisy": {"kernel": sign * jnp.ones(2)},
      ...     }
      ...     updates, state = tx.update(gradients, state)
      >>> print(plp_optax.amplification_table(state, params))
      layer   score  noise floor      z  amplified
      noisy  0.0000       0.5000  -1.00
      steady 1.0000       0.5000   1.00  yes
      >>> updates["steady"]["kernel"].tolist(), updates["noisy"]["kernel"].tolist()
      ([3.0, 3.0], [1.0, 1.0])

    References:
      Basodi et al., `Intelligent Gradient Amplification for Deep Neural Networks
      <https://arxiv.org/abs/2305.18445>`_, 2023

      Basodi et al., `Gradient Amplification: An Efficient Way to Train Deep Neural
      Networks <https://arxiv.org/abs/2006.10560>`_, 2020

      Xiao et al., Fast Deep Learning Training through Intelligently Freezing Layers,
      2019 (where ``"g1_per_weight"`` comes from)
    """
    windows = _check_windows(strategy, reselect_every)
    selector = by_score() if select is None else select
    if not isinstance(selector, Selector):
        raise ValueError(
            f"select must be a selector such as by_score(1.5), at_random(0.2), "
            f"all_layers() or named('head'), got {select!r}"
        )
    _checks.check_choice("measure", measure, MEASURES)
    _checks.check_bool("apply", apply)
    if factor is not None and not callable(factor):
        _checks.check_finite("factor", factor)
        if not isinstance(factor, jax.Array) and factor <= 0:
            raise ValueError(f"factor must be positive, got {factor!r}")
    check_layers(layers)
    _checks.check_float_dtype("accumulator_dtype", accumulator_dtype)

    def init_fn(params: optax.Params) -> AmplifyLayersState:
        names = layer_names(params, layers)
        if jax.tree.leaves(params):
            selector.check(names)
        signed, absolute = init_sums(measure, params, len(names), accumulator_dtype)
        return AmplifyLayersState(
            gradients_seen=jnp.zeros((), jnp.int32),
            signed_sums=signed,
            absolute_sums=absolute,
            scores=jnp.zeros(len(names)),
            z_scores=jnp.zeros(len(names)),
            gradients_analyzed=jnp.zeros((), jnp.int32),
            amplified=jnp.zeros(len(names), bool),
            selections=jnp.zeros((), jnp.int32),
            factors=jnp.ones(len(names)),
        )

    def update_fn(
        updates: optax.Updates,
        state: AmplifyLayersState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AmplifyLayersState]:
        del params, extra_args
        gradients = jax.tree.map(jnp.asarray, updates)
        assigned = assign_layers(gradients, layers)
        names = tuple(dict.fromkeys(n for n in assigned if n))
        index = [None if n is None else names.index(n) for n in assigned]
        now = _clock(windows, reselect_every, state.gradients_seen)

        signed, absolute = add_to_sums(
            measure,
            gradients,
            index,
            (state.signed_sums, state.absolute_sums),
            begins=now.begins,
            collects=now.analyzes,
        )
        fresh = layer_scores(measure, signed, absolute, index, len(names))
        scores = jnp.where(now.decides, fresh, state.scores)
        z_scores = standardize(scores)
        chosen = selector.choose(names, z_scores, state.selections)
        amplified = jnp.where(now.decides, chosen, state.amplified)

        step_after = optax.safe_increment(state.gradients_seen)
        after = _clock(windows, reselect_every, step_after)
        multiplier: Any = after.factor if factor is None else factor
        if callable(multiplier):
            multiplier = multiplier(step_after)
        amplifies = after.amplifies if apply else after.amplifies & ~after.analyzes
        factors = jnp.where(amplified & amplifies, multiplier, 1)

        if apply:
            leaves, treedef = jax.tree.flatten(gradients)
            scaled = [
                g if i is None else _scale(g, state.factors[i])
                for g, i in zip(leaves, index, strict=True)
            ]
            updates = jax.tree.unflatten(treedef, scaled)
        return updates, AmplifyLayersState(
            gradients_seen=step_after,
            signed_sums=signed,
            absolute_sums=absolute,
            scores=scores,
            z_scores=z_scores,
            gradients_analyzed=jnp.where(
                now.decides, now.epoch_steps, state.gradients_analyzed
            ),
            amplified=amplified,
            selections=state.selections + now.decides,
            factors=factors.astype(state.factors.dtype),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def standardize(scores: jax.Array) -> jax.Array:
    """Scores ``[L]`` less their mean, over their population standard deviation.

    Zero for equal scores: rounding leaves them a deviation of about 1e-8, also where
    sums cancel to a score of 0, which would make every z about 1. Scores are in
    [0, 1], so the tolerance is absolute.
    """
    if not scores.size:
        return scores
    mean, std = scores.mean(), scores.std()
    equal = std <= 1e-6
    return jnp.where(equal, 0, (scores - mean) / jnp.where(equal, 1, std))


class _Clock(NamedTuple):
    """What happens at a step.

    Attributes:
      begins: Whether an epoch of analysis begins.
      analyzes: Whether it is in such an epoch.
      decides: Whether that epoch ends with it.
      amplifies: Whether it is in an epoch after a window's first.
      epoch_steps: Steps of an epoch of its window.
      factor: Its window's factor.
    """

    begins: Any
    analyzes: Any
    decides: Any
    amplifies: Any
    epoch_steps: Any
    factor: Any


def _clock(
    windows: tuple[AmplificationWindow, ...],
    reselect_every: int | None,
    step: jax.Array,
) -> _Clock:
    no = jnp.zeros((), bool)
    clock = _Clock(no, no, no, no, jnp.zeros((), jnp.int32), jnp.ones(()))
    for window in windows:
        inside = (step >= window.start) & (step < window.stop)
        epoch, position = jnp.divmod(step - window.start, window.epoch_steps)
        analyzes = epoch == 0
        if reselect_every is not None:
            # Not in the window's last epoch, as nothing would follow.
            goes_on = step - position < window.stop - window.epoch_steps
            analyzes |= (epoch % reselect_every == 0) & goes_on
        analyzes &= inside
        clock = _Clock(
            begins=clock.begins | (analyzes & (position == 0)),
            analyzes=clock.analyzes | analyzes,
            decides=clock.decides | (analyzes & (position == window.epoch_steps - 1)),
            amplifies=clock.amplifies | (inside & (epoch > 0)),
            epoch_steps=jnp.where(inside, window.epoch_steps, clock.epoch_steps),
            factor=jnp.where(inside, window.factor, clock.factor),
        )
    return clock


def _scale(gradient: jax.Array, factor: jax.Array) -> jax.Array:
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    return (gradient.astype(dtype) * factor.astype(dtype)).astype(gradient.dtype)


def _check_windows(
    strategy: TrainingStrategy | Sequence[AmplificationWindow],
    reselect_every: int | None,
) -> tuple[AmplificationWindow, ...]:
    if isinstance(strategy, TrainingStrategy):
        windows = strategy.windows
    else:
        try:
            windows = tuple(AmplificationWindow(*window) for window in strategy)
        except TypeError as error:
            raise ValueError(
                f"strategy must be a TrainingStrategy or amplification windows, "
                f"got {strategy!r}"
            ) from error
    if not windows:
        raise ValueError(
            f"no stage of the strategy is amplified, and there is nothing to do: "
            f"{strategy!r}"
        )
    end = 0
    for window in windows:
        _checks.check_int("start of an amplification window", window.start, at_least=0)
        _checks.check_int("stop of an amplification window", window.stop, at_least=1)
        _checks.check_int(
            "epoch_steps of an amplification window", window.epoch_steps, at_least=1
        )
        _checks.check_finite("factor of an amplification window", window.factor)
        if window.factor <= 0:
            raise ValueError(f"the factor of {window} must be positive")
        if window.start < end:
            raise ValueError(f"{window} begins before the window ahead of it ends")
        if window.stop - window.start <= window.epoch_steps:
            raise ValueError(f"{window} ends before its analysis epoch does")
        end = window.stop
    if reselect_every is not None:
        _checks.check_int("reselect_every", reselect_every, at_least=1)
    return windows
