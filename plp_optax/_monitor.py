"""Statistics of each layer's gradients and updates, inside the optimizer's state."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plp_optax import _checks
from plp_optax._layers import LayerRule, Place, assign_layers, check_layers
from plp_optax._measures import (
    MEASURES,
    Leaves,
    Measure,
    Sums,
    add_to_sums,
    check_layers_of_state,
    init_sums,
    layer_scores,
    sum_by_layer,
    tree_leaves,
    weights_by_layer,
)
from plp_optax._trees import AxisName, arrays, widened


class Moments(NamedTuple):
    r"""Statistics of L layers, each ``[L]``; 0 before there are any.

    Attributes:
      samples: How many gradients they stand for: the steps in a window, or the
        effective number :math:`(\sum_i c_i)^2 / \sum_i c_i^2` of weights c.
      gradient_norm: Root mean square of the norm of the gradient.
      update_norm: The same of the update.
      parameter_norm: The same of the parameters.
      signal: Squared norm of the mean gradient, without the share of the noise; None
        for the measure ``"g1"``.
      noise: Variance of the gradient, summed over the weights; None for ``"g1"``.
      agreement: The measure of agreement, in [0, 1].
    """

    samples: jax.Array
    gradient_norm: jax.Array
    update_norm: jax.Array
    parameter_norm: jax.Array
    signal: jax.Array | None
    noise: jax.Array | None
    agreement: jax.Array


class MonitorLayersState(NamedTuple):
    """State of :func:`monitor_layers`, for L layers.

    Attributes:
      monitored_steps: Updates since initialisation; int32 scalar.
      weighted_sums: Sums of gradients and of their absolute values, and of the weights
        with which gradients count.
      squared_weights: The sum of the squares of these weights, ``[L]``.
      squared_norms: Sums of the squared norms of gradients, updates and parameters,
        ``[3, L]``.
      moments: The statistics, which :func:`layer_statistics` reads, as arrays ``[L]``:
        ``samples``, ``gradient_norm``, ``update_norm``, ``parameter_norm``, ``signal``
        and ``noise`` (None for the measure ``"g1"``), ``agreement``.
      monitored: State of the inner transformation.
    """

    monitored_steps: jax.Array
    weighted_sums: Any
    squared_weights: jax.Array
    squared_norms: jax.Array
    moments: Any
    monitored: optax.OptState


def monitor_layers(
    inner: optax.GradientTransformation | None = None,
    *,
    measure: Measure = "g1",
    decay: float | jax.Array | None = None,
    window: int | None = None,
    layers: LayerRule = "kernels",
    axis_name: AxisName | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Measures each layer's gradients, updates and parameters, and changes nothing.

    Gradients go to ``inner`` and its updates come out as they are. The statistics are
    exponential averages, or those of each window of steps. With :math:`c_i` the weights
    of the steps, :math:`C = \sum_i c_i`, and :math:`n = C^2 / \sum_i c_i^2` samples,

    .. math::
        \bar g = \frac{1}{C} \sum_i c_i g_i, \quad
        \text{noise} = \frac{n}{n - 1} \Big(\frac{1}{C} \sum_i c_i \|g_i\|^2
          - \|\bar g\|^2\Big), \quad
        \text{signal} = \|\bar g\|^2 - \frac{\text{noise}}{n}

    are unbiased for independent gradients of a constant mean. Parameters move, so that
    a long average counts some of the signal as noise. The signal-to-noise ratio is
    signal / noise; the batch size over it is the simple noise scale, the batch size up
    to which larger ones pay.

    The measures of agreement are those of :func:`amplify_layers`, with the weights c in
    the sums. Statistics are ``O(layers)`` in memory with ``"g1"``, which gives no
    signal and no noise. ``"g1_per_weight"`` keeps the mean gradient, a buffer like the
    parameters, and gives them; ``"g2"`` has two buffers.

    A layer leaves out the steps in which its gradient is not finite. Everything happens
    inside ``update``: one compilation, and nothing on the host. Devices, sharding and
    stacked layers are as in :func:`amplify_layers`.

    Args:
      inner: The optimizer to watch; None to watch what passes a place in a chain.
      measure: The measure of agreement, as above.
      decay: The exponential average's decay, in (0, 1); by default 0.99. A scalar jax
        array may be traced.
      window: With n, statistics over the steps 1 to n, n + 1 to 2n, and so on, instead
        of the exponential average.
      layers: How parameters group into layers; see :func:`layer_names`.
      axis_name: Under ``shard_map``, the names of the mesh axes over which parameters
        are split.
      accumulator_dtype: The buffers' dtype, float32 or wider; by default that of the
        parameters, and float32 at least.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`MonitorLayersState`, which :func:`layer_statistics` and
      :func:`layer_table` read. It needs ``params``.

    Raises:
      ValueError: If an argument is not as above, or from ``update`` without parameters.

    Examples:
      The gradients of one layer agree, those of the other alternate:

      >>> import jax.numpy as jnp, optax, plp_optax
      >>> tx = plp_optax.monitor_layers(
      ...     optax.sgd(0.1), measure="g1_per_weight", window=4
      ... )
      >>> params = {name: {"kernel": jnp.ones(4)} for name in ("steady", "noisy")}
      >>> state = tx.init(params)
      >>> for step in range(4):
      ...     sign = (-1.0) ** step
      ...     gradients = {
      ...         "steady": {"kernel": jnp.ones(4)},
      ...         "noisy": {"kernel": sign * jnp.ones(4)},
      ...     }
      ...     updates, state = tx.update(gradients, state, params)
      >>> print(plp_optax.layer_table(state, params))
      layer  gradient   update  parameters  upd./par.       SNR  agreement
      noisy   2.0e+00  2.0e-01     2.0e+00    1.0e-01   0.0e+00     0.0000
      steady  2.0e+00  2.0e-01     2.0e+00    1.0e-01       inf     1.0000
      >>> noisy, steady = plp_optax.layer_statistics(state, params)
      >>> round(noisy.noise, 4)  # the variance of 4 weights
      5.3333

    References:
      McCandlish et al., `An Empirical Model of Large-Batch Training
      <https://arxiv.org/abs/1812.06162>`_, 2018 (the simple noise scale)

      Liu et al., `Understanding Why Neural Networks Generalize Well Through GSNR of
      Parameters <https://arxiv.org/abs/2001.07384>`_, 2020 (the ratio, of one weight)
    """
    _checks.check_choice("measure", measure, MEASURES)
    if window is not None:
        _checks.check_int("window", window, low=2)
        if decay is not None:
            raise ValueError(
                f"decay {decay!r} is of the exponential average, and window {window!r} "
                f"replaces it: give one of them"
            )
    elif decay is None:
        decay = 0.99
    else:
        _checks.check_number("decay", decay, above=0, below=1)
    check_layers(layers)
    _checks.check_accumulator_dtype(accumulator_dtype)
    wrapped = optax.with_extra_args_support(
        optax.identity() if inner is None else inner
    )

    def init_fn(params: optax.Params) -> MonitorLayersState:
        names, _ = assign_layers(params, layers)

        def zeros() -> jax.Array:
            return jnp.zeros(len(names))

        has_mean = measure != "g1"
        return MonitorLayersState(
            monitored_steps=jnp.zeros((), jnp.int32),
            weighted_sums=init_sums(
                measure, params, len(names), accumulator_dtype, float
            ),
            squared_weights=zeros(),
            squared_norms=jnp.zeros((3, len(names))),
            moments=Moments(
                samples=zeros(),
                gradient_norm=zeros(),
                update_norm=zeros(),
                parameter_norm=zeros(),
                signal=zeros() if has_mean else None,
                noise=zeros() if has_mean else None,
                agreement=zeros(),
            ),
            monitored=wrapped.init(params),
        )

    def update_fn(
        updates: optax.Updates,
        state: MonitorLayersState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MonitorLayersState]:
        if params is None:
            raise ValueError(
                "monitor_layers measures the parameters: pass them, as in "
                "update(updates, state, params)"
            )
        state, gradients = arrays(state), arrays(updates)
        names, places = assign_layers(params, layers)
        check_layers_of_state(names, state.squared_weights.size)
        updates, monitored = wrapped.update(
            gradients, state.monitored, params, **extra_args
        )

        flat = tree_leaves(gradients)
        squares = jnp.stack(
            [
                sum_by_layer(_squared(x), places, len(names), axis_name)
                for x in (flat, tree_leaves(updates), tree_leaves(arrays(params)))
            ]
        )
        exists = weights_by_layer(flat, places, len(names)) > 0
        counts = jnp.isfinite(squares).all(0) & jnp.asarray(exists)
        step = state.monitored_steps
        position = step if window is None else step % window
        begins = position == 0
        factor = None if decay is None else jnp.asarray(decay, squares.dtype)
        sums = add_to_sums(
            measure,
            gradients,
            places,
            state.weighted_sums,
            begins=begins,
            counts=counts,
            decay=factor,
            axis_name=axis_name,
        )

        def add(old: jax.Array, value: jax.Array, power: int) -> jax.Array:
            base = jnp.where(begins, jnp.zeros_like(old), old)
            kept = base if factor is None else factor**power * base
            # Ranks are made equal by hand, for jax_numpy_rank_promotion="raise".
            counted = counts.reshape((1,) * (old.ndim - 1) + counts.shape)
            return jnp.where(counted, kept + value.astype(old.dtype), base)

        squared_weights = add(
            state.squared_weights, jnp.ones_like(state.squared_weights), 2
        )
        squared_norms = add(state.squared_norms, squares, 1)
        moments = _moments(
            measure, sums, squared_weights, squared_norms, places, axis_name
        )
        if window is not None:
            moments = jax.tree.map(
                lambda new, old: jnp.where(position == window - 1, new, old),
                moments,
                state.moments,
            )
        return updates, MonitorLayersState(
            monitored_steps=optax.safe_increment(step),
            weighted_sums=sums,
            squared_weights=squared_weights,
            squared_norms=squared_norms,
            moments=moments,
            monitored=monitored,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _moments(
    measure: Measure,
    sums: Sums,
    squared_weights: jax.Array,
    squared_norms: jax.Array,
    places: list[Place | None],
    axis_name: AxisName | None,
) -> Moments:
    """The statistics, from their sums; see :func:`monitor_layers`."""
    # C, n and the mean of |g_i|^2; divisors of 0 become 1, so that no NaN arises.
    has_any = sums.counted > 0
    total = jnp.where(has_any, sums.counted, 1)
    samples = total * total / jnp.where(has_any, squared_weights, 1)
    mean_squares = squared_norms / total[None]
    signal = noise = None
    if measure != "g1":
        squared_sums = sum_by_layer(
            _squared(tree_leaves(sums.signed)), places, total.size, axis_name
        ).astype(total.dtype)
        squared_mean = squared_sums / (total * total)
        # One sample has no variance.
        several = samples > 1.5
        others = jnp.where(several, samples - 1, 1)
        variance = jnp.maximum(mean_squares[0] - squared_mean, 0) * samples / others
        noise = jnp.where(several, variance, 0)
        signal = jnp.maximum(squared_mean - noise / samples, 0)
        signal = jnp.where(several, signal, 0)
    norms = jnp.sqrt(mean_squares)
    agreement = layer_scores(measure, sums, places, axis_name)
    return Moments(
        samples=jnp.where(has_any, samples, 0),
        gradient_norm=norms[0],
        update_norm=norms[1],
        parameter_norm=norms[2],
        signal=signal,
        noise=noise,
        agreement=agreement.astype(total.dtype),
    )


def _squared(leaves: Leaves) -> Leaves:
    """Squared magnitudes, in float32 at least."""

    def square(x: jax.Array) -> jax.Array:
        magnitude = jnp.abs(x)
        magnitude = magnitude.astype(widened(magnitude))
        return magnitude * magnitude

    return [None if x is None else square(x) for x in leaves]


class LayerStatistics(NamedTuple):
    """One layer's statistics; NaN where there are none.

    Attributes:
      layer: Its name.
      samples: How many gradients they stand for.
      gradient_norm: Root mean square of the norm of the gradient.
      update_norm: The same of the update.
      parameter_norm: The same of the parameters.
      update_ratio: Norm of the update over that of the parameters.
      noise: Variance of the gradient, summed over the weights.
      snr: Signal-to-noise ratio of the gradient: the squared norm of its mean over the
        noise.
      agreement: The measure of agreement, in [0, 1].
    """

    layer: str
    samples: float
    gradient_norm: float
    update_norm: float
    parameter_norm: float
    update_ratio: float
    noise: float
    snr: float
    agreement: float


def layer_statistics(
    state: Any, params: Any, *, layers: LayerRule = "kernels"
) -> list[LayerStatistics]:
    """The statistics of :func:`monitor_layers`, layer by layer.

    For the arrays ``[L]`` themselves, such as for a log, read
    ``optax.tree.get(state, "moments")``, of the layers :func:`layer_names`.

    Args:
      state: The state of :func:`monitor_layers` or :func:`noise_adaptive_rates`, or any
        state that contains one, such as that of a chain.
      params: Parameters, or arrays of their shapes.
      layers: The rule that the transformation was given.

    Returns:
      One entry per layer. Before the first step, or the end of the first window,
      and for a layer without any finite gradient, the numbers are NaN.

    Raises:
      ValueError: If ``state`` contains no such state or several, or if the rule does
        not fit.
    """
    state = _checks.only_state(state, MonitorLayersState)
    moments: Moments = state.moments
    _checks.check_unstacked(state.monitored_steps)
    names, _ = assign_layers(params, layers)
    if moments.samples.shape != (len(names),):
        raise ValueError(
            f"the state is of layers of shape {moments.samples.shape}, the rule "
            f"layers={layers!r} finds {len(names)} in params: give both the same"
        )
    values = {
        name: np.full(len(names), np.nan) if x is None else np.asarray(x, float)
        for name, x in moments._asdict().items()
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        values["update_ratio"] = values["update_norm"] / values["parameter_norm"]
        values["snr"] = values.pop("signal") / values["noise"]
    known = np.where(values["samples"] > 0, 1.0, np.nan)
    rows = zip(*(known * values[f] for f in LayerStatistics._fields[1:]), strict=True)
    return [
        LayerStatistics(name, *map(float, row))
        for name, row in zip(names, rows, strict=True)
    ]
