"""Layer-wise gradient amplification, and what it measured."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plp_optax import _checks
from plp_optax._affine_window import StepSchedule
from plp_optax._layers import LayerRule, assign_layers, check_layers
from plp_optax._measures import (
    MEASURES,
    Measure,
    Sums,
    add_to_sums,
    check_layers_of_state,
    finite_layers,
    init_sums,
    layer_scores,
    scale_layers,
    standardize,
    weights_by_layer,
)
from plp_optax._selectors import Selector, by_score
from plp_optax._strategy import (
    StageTuples,
    TrainingStrategy,
    Windows,
    check_windows,
    phase_at,
)
from plp_optax._trees import AxisName, arrays


class AmplifyLayersState(NamedTuple):
    """State of :func:`amplify_layers`, for L layers.

    Attributes:
      gradients_seen: Updates since initialisation; int32 scalar.
      signed_sums: The current analysis epoch's sums of gradients: ``[L]`` for
        ``"g1"``, else a tree like the parameters.
      absolute_sums: Its sums of absolute gradients: a tree like the parameters for
        ``"g2"``, else ``[L]``.
      gradients_counted: How many gradients of each layer they hold; int32 ``[L]``.
      scores: The last finished analysis epoch's measure of each layer, ``[L]``.
      z_scores: The same, standardised over the layers, ``[L]``.
      gradients_analyzed: How many gradients of each layer counted in that epoch; int32
        ``[L]``.
      amplified: Which layers it selected; bool ``[L]``.
      selections: How many selections there have been; int32 scalar.
      factors: The factor of each layer's gradient in the next update; 1 outside of
        amplified epochs; ``[L]``.
      inner_state: State of the inner transformation.
    """

    gradients_seen: jax.Array
    signed_sums: Any
    absolute_sums: Any
    gradients_counted: jax.Array
    scores: jax.Array
    z_scores: jax.Array
    gradients_analyzed: jax.Array
    amplified: jax.Array
    selections: jax.Array
    factors: jax.Array
    inner_state: optax.OptState


def amplify_layers(
    strategy: TrainingStrategy | Windows | StageTuples,
    *,
    steps_per_epoch: int | None = None,
    select: Selector | None = None,
    measure: Measure = "g2",
    factor: float | jax.Array | StepSchedule | None = None,
    reselect_every: int | None = None,
    layers: LayerRule = "kernels",
    inner: optax.GradientTransformation | None = None,
    apply: bool = True,
    axis_name: AxisName | None = None,
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

    with 0/0 as 0; g2 is the mean over the weights that had a gradient, since taps of a
    kernel that see padding only, and units that are dead, say nothing. The scores are
    standardised over the layers, :math:`z = (G - \text{mean}) / \text{std}`, and in the
    epochs that follow the gradients of the selected layers are multiplied by the
    factor. :func:`by_score` selects as the paper does; :func:`at_random` and
    :func:`all_layers` are controls.

    The paper's equation 4 is read as ``"g1"``, since its text says that the value is
    0 when half of the weights move against the other half. ``"g1_per_weight"`` is the
    other reading. Gradients that are pure noise score about
    :math:`1/\sqrt{\text{iterations}}` (``"g1"``:
    :math:`1/\sqrt{\text{iterations} \cdot \text{weights}}`, which favours small
    layers); :func:`layer_table` shows scores next to that floor. A layer leaves
    out the steps in which its gradient is not finite, so that an infinity, as loss
    scaling gives now and then, does not spoil an epoch. A layer without any finite
    gradient takes no part in the standardisation. The absolute value of a complex
    gradient is its magnitude.

    Put it **first** in the chain, where it receives raw gradients, with weight decay
    after it, as where decay joins the gradient inside PyTorch's optimizers::

        optax.chain(
            amplify_layers(strategy),
            optax.add_decayed_weights(5e-4),
            optax.sgd(strategy.learning_rate, momentum=0.9),
        )

    **Scale-invariant optimizers undo it.** Adam, RMSProp, Lion, LARS and clipping by
    the global norm divide by the size of the gradient: a factor of 5 on all layers
    lengthens the path of Adam by a fifth, of Lion not at all. Pass such an optimizer
    as ``inner``: gradients are measured, go to it unchanged, and the factor multiplies
    the updates that it returns::

        optax.chain(
            amplify_layers(strategy, inner=optax.scale_by_adam()),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(strategy.learning_rate),
        )

    For a weight followed by batch normalisation, amplifying by f under SGD with weight
    decay equals unamplified training with weight and momentum buffer divided by
    :math:`\sqrt f`. So part of any gain is a temporary rise of the effective learning
    rate, and a drop when amplification ends.

    Everything happens inside ``update``, which counts its calls: it compiles once and
    does nothing on the host.

    Every device has to see the same gradients, so take their mean over the devices
    before ``update`` (``jax.lax.pmean``); otherwise replicas select different layers.
    Parameters that ``jit`` shards need nothing. Parameters that ``shard_map`` splits
    need ``axis_name``: without it each shard selects by the part that it holds.

    Args:
      strategy: A :class:`TrainingStrategy`, its stages with ``steps_per_epoch``, or
        windows (:class:`AmplificationWindow`) in steps.
      steps_per_epoch: Optimizer steps in an epoch, for stages ``(end epoch, learning
        rate, amplify?, factor)``.
      select: Which layers are amplified: :func:`by_score` (the default),
        :func:`at_random`, :func:`all_layers` or :func:`named`.
      measure: ``"g1"``, ``"g1_per_weight"`` or ``"g2"``, as above.
      factor: The factor of the selected gradients: a number, or a schedule over the
        number of updates so far. By default the strategy's. (One that is injected by
        ``optax.inject_hyperparams`` acts one update later.)
      reselect_every: With k, the last of every k amplified epochs is analysed too, on
        raw gradients while amplification continues; its selection holds from the next.
      layers: How parameters group into layers; see :func:`layer_names`.
      inner: A transformation whose updates are amplified instead of the gradients; see
        above. It receives the gradients and all other arguments of ``update``.
      apply: With False gradients are measured and never changed. ``factors`` in the
        state still say what would multiply them, for
        :func:`plp_optax.linen.propagate_amplification`; since that form hides the raw
        gradients, ``factors`` are then 1 in epochs that are analysed again.
      axis_name: Under ``shard_map``, the names of the mesh axes over which parameters
        are split; sums are then taken over these axes too. (A parameter of a layer
        that every shard holds entirely counts once for each shard.)
      accumulator_dtype: The buffers' dtype, float32 or wider; by default that of the
        parameters, and float32 at least. Narrower sums are wrong after hundreds of
        steps.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`AmplifyLayersState`. It needs ``params`` only if some gradients are None,
      or for ``inner``.

    Raises:
      ValueError: If an argument is not as above; from ``init``, if the selector does
        not fit the layers.

    Examples:
      The gradients of one layer agree, those of the other alternate:

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
      >>> print(plp_optax.layer_table(state, params))
      layer   score  noise floor      z  amplified
      noisy  0.0000       0.5000  -1.00
      steady 1.0000       0.5000   1.00  yes
      >>> updates["steady"]["kernel"].tolist(), updates["noisy"]["kernel"].tolist()
      ([3.0, 3.0], [1.0, 1.0])

      The threshold is injected by a function around both:

      >>> import optax
      >>> def amplified(threshold, factor):
      ...     select = plp_optax.by_score(threshold)
      ...     return plp_optax.amplify_layers(windows, select=select, factor=factor)
      >>> tx = optax.inject_hyperparams(amplified)(threshold=0.5, factor=3.0)
      >>> sorted(tx.init(params).hyperparams)
      ['factor', 'threshold']

    References:
      Basodi et al., `Intelligent Gradient Amplification for Deep Neural Networks
      <https://arxiv.org/abs/2305.18445>`_, 2023

      Basodi et al., `Gradient Amplification: An Efficient Way to Train Deep Neural
      Networks <https://arxiv.org/abs/2006.10560>`_, 2020

      Xiao et al., Fast Deep Learning Training through Intelligently Freezing Layers,
      2019 (where ``"g1_per_weight"`` comes from)
    """
    windows = check_windows(strategy, steps_per_epoch)
    selector = by_score() if select is None else select
    if not isinstance(selector, Selector):
        raise ValueError(
            f"select must be a selector such as by_score(1.5), at_random(0.2), "
            f"all_layers() or named('head'), got {select!r}"
        )
    _checks.check_choice("measure", measure, MEASURES)
    if factor is not None and not callable(factor):
        _checks.check_number("factor", factor, low=0)
    if reselect_every is not None:
        _checks.check_int("reselect_every", reselect_every, low=1)
    check_layers(layers)
    _checks.check_bool("apply", apply)
    _checks.check_accumulator_dtype(accumulator_dtype)
    wrapped = optax.with_extra_args_support(
        optax.identity() if inner is None else inner
    )

    def init_fn(params: optax.Params) -> AmplifyLayersState:
        names, _ = assign_layers(params, layers)
        if names:
            selector.check(names)
        sums = init_sums(measure, params, len(names), accumulator_dtype)
        return AmplifyLayersState(
            gradients_seen=jnp.zeros((), jnp.int32),
            signed_sums=sums.signed,
            absolute_sums=sums.absolute,
            gradients_counted=sums.counted,
            scores=jnp.zeros(len(names)),
            z_scores=jnp.zeros(len(names)),
            gradients_analyzed=jnp.zeros(len(names), jnp.int32),
            amplified=jnp.zeros(len(names), bool),
            selections=jnp.zeros((), jnp.int32),
            factors=jnp.ones(len(names)),
            inner_state=wrapped.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: AmplifyLayersState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AmplifyLayersState]:
        state, gradients = arrays(state), arrays(updates)
        # With parameters, a layer whose gradient is None keeps its position.
        names, places = assign_layers(updates if params is None else params, layers)
        check_layers_of_state(names, state.scores.size)
        now = phase_at(windows, reselect_every, state.gradients_seen)

        finite = finite_layers(measure, gradients, places, len(names), axis_name)
        sums = add_to_sums(
            measure,
            gradients,
            places,
            Sums(state.signed_sums, state.absolute_sums, state.gradients_counted),
            # Also at the first step: "g2" begins sums of magnitudes above init's 0.
            begins=now.begins | (state.gradients_seen == 0),
            counts=now.analyzes & finite,
            axis_name=axis_name,
        )
        fresh = layer_scores(measure, sums, places, axis_name)
        # Computed at every step and selected: a cond would copy the sums.
        scores = jnp.where(now.decides, fresh.astype(state.scores.dtype), state.scores)
        analyzed = jnp.where(now.decides, sums.counted, state.gradients_analyzed)
        z_scores = standardize(scores, analyzed > 0)
        chosen = selector.choose(names, z_scores, state.selections)
        amplified = jnp.where(now.decides, chosen, state.amplified)

        # The factors of the next update: the last step of an analysis epoch decides,
        # and the first one after it multiplies without waiting for any sum.
        step_after = optax.safe_increment(state.gradients_seen)
        after = phase_at(windows, reselect_every, step_after)
        multiplier: Any = after.factor if factor is None else factor
        if callable(multiplier):
            multiplier = multiplier(step_after)
        # Factors inside back-propagation would hide the raw gradients from an analysis.
        amplifies = after.amplifies if apply else after.amplifies & ~after.analyzes
        factors = jnp.where(
            amplified & amplifies, jnp.asarray(multiplier, state.factors.dtype), 1
        )

        updates, inner_state = wrapped.update(
            gradients, state.inner_state, params, **extra_args
        )
        if apply:
            updates = scale_layers(updates, state.factors, places)
        return updates, AmplifyLayersState(
            gradients_seen=step_after,
            signed_sums=sums.signed,
            absolute_sums=sums.absolute,
            gradients_counted=sums.counted,
            scores=scores,
            z_scores=z_scores,
            gradients_analyzed=analyzed,
            amplified=amplified,
            selections=state.selections + now.decides.astype(jnp.int32),
            factors=factors,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class LayerAnalysis(NamedTuple):
    """One layer after an analysis epoch.

    Attributes:
      layer: Its name.
      score: How consistently its gradients pointed one way, in [0, 1].
      noise_floor: The score of gradients that are pure noise.
      z_score: The score in standard deviations from the mean of the layers.
      amplified: Whether it was selected.
    """

    layer: str
    score: float
    noise_floor: float
    z_score: float
    amplified: bool


def layer_analyses(
    state: Any, params: Any, *, layers: LayerRule = "kernels"
) -> list[LayerAnalysis]:
    r"""The last finished analysis epoch, layer by layer.

    The noise floor is that of independent gradients with mean zero: :math:`1/\sqrt n`
    after n of them, and for ``"g1"`` :math:`1/\sqrt{n \cdot \text{weights}}`, because
    it sums over a layer's weights too.

    Args:
      state: The state of :func:`amplify_layers`, or any state that contains one, such
        as that of a chain.
      params: Parameters, or arrays of their shapes.
      layers: The rule that the transformation was given.

    Returns:
      One analysis per layer. Scores and floors are NaN before the first selection, and
      for a layer none of whose gradients was finite.

    Raises:
      ValueError: If ``state`` contains no amplification state or several, if it is
        that of several members (see :func:`layer_table`), or if the rule does
        not fit.
    """
    state = _checks.only_state(state, AmplifyLayersState)
    if state.scores.ndim != 1:
        raise ValueError(
            f"the state holds {state.scores.shape[0]} members: take one, as in "
            f"jax.tree.map(lambda x: x[0], state)"
        )
    names, places = assign_layers(params, layers)
    if len(names) != state.scores.size:
        raise ValueError(
            f"the state is of {state.scores.size} layers, the rule layers={layers!r} "
            f"finds {len(names)} in params: give both the same"
        )
    count = np.asarray(state.gradients_analyzed, float)
    samples = np.where(count > 0, count, np.nan)
    if isinstance(state.signed_sums, jax.Array | np.ndarray) and (
        state.signed_sums.shape == (len(names),)
    ):  # "g1", which sums over the layer's weights as well
        leaves = jax.tree.leaves(params, is_leaf=lambda x: x is None)
        samples = samples * weights_by_layer(leaves, places, len(names))
    columns = (
        np.where(count > 0, state.scores, np.nan),
        1 / np.sqrt(samples),
        np.where(count > 0, state.z_scores, np.nan),
        np.asarray(state.amplified),
    )
    return [
        LayerAnalysis(name, float(score), float(floor), float(z), bool(amplified))
        for name, score, floor, z, amplified in zip(names, *columns, strict=True)
    ]
