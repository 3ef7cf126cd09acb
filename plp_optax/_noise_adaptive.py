"""Layer-wise learning rates that fall with the noise of a layer's gradient."""

# Short signatures in help(): the names of types and not their members.
from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from plp_optax import _checks
from plp_optax._layers import LayerRule, assign_layers
from plp_optax._measures import scale_layers
from plp_optax._monitor import MonitorLayersState, monitor_layers
from plp_optax._trees import AxisName


class NoiseAdaptiveRatesState(NamedTuple):
    """State of :func:`noise_adaptive_rates`, for L layers.

    Attributes:
      layer_rates: The factor of each layer's last updates, ``[L]``.
      layer_monitor: The state of :func:`monitor_layers`, with the noise.
    """

    layer_rates: jax.Array
    layer_monitor: MonitorLayersState


def noise_adaptive_rates(
    inner: optax.GradientTransformation | None = None,
    *,
    alpha: float | jax.Array = 1.0,
    decay: float | jax.Array = 0.99,
    layers: LayerRule = "kernels",
    axis_name: AxisName | None = None,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Noise-adaptive layerwise learning rates: noisy layers take smaller steps.

    With :math:`H_l` the noise of layer l's gradient, as :func:`monitor_layers`
    estimates it, in units of its mean over the layers, the updates of ``inner`` are
    multiplied by

    .. math::
        r_l = \frac{\sqrt{\alpha_l}}{\operatorname{mean}_k \sqrt{\alpha_k}}, \quad
        \alpha_l = \frac{\alpha}{\sqrt{\alpha^2 + H_l}}

    Their mean over the layers, each counted once, is 1 at every step. So the run is
    matched to one at the same learning rate, and no separate control at another rate is
    needed. Parameters outside of layers keep their rate.

    This is the scheme of LANTON, and differs from it in four ways: LANTON takes the
    rate relative to the layer with the largest :math:`\alpha_l` of a group, which
    lowers the mean rate; takes the noise in the dual norm of its linear minimisation
    oracle (the nuclear norm for Muon's layers), here the Euclidean norm, the one that
    belongs to SGD; averages :math:`\|g_t - g_{t-1}\|^2`, twice the variance; and has
    :math:`\alpha` in units of the gradient, so that it depends on the scale of the
    loss.

    Args:
      inner: The optimizer whose updates are scaled, with its learning rate and decay.
        None scales gradients, which is the same for plain SGD and hardly anything for
        Adam.
      alpha: How even the rates are: large values make them equal, small ones make them
        fall with the fourth root of the noise. Above 0; a scalar jax array may be
        traced.
      decay: The exponential averages' decay, in (0, 1).
      layers: How parameters group into layers; see :func:`layer_names`.
      axis_name: As for :func:`monitor_layers`.
      accumulator_dtype: As for :func:`monitor_layers`.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with state
      :class:`NoiseAdaptiveRatesState`. It needs ``params``, and one buffer like them.
      :func:`layer_table` and :func:`layer_statistics` read its state, in which the norm
      of updates is that before the rates.

    Raises:
      ValueError: If an argument is not as above, or from ``update`` without parameters.

    Examples:
      >>> import jax.numpy as jnp, optax, plp_optax
      >>> tx = plp_optax.noise_adaptive_rates(optax.sgd(0.1), alpha=0.1)
      >>> params = {name: {"kernel": jnp.ones(4)} for name in ("steady", "noisy")}
      >>> state = tx.init(params)
      >>> for step in range(4):
      ...     sign = (-1.0) ** step
      ...     gradients = {
      ...         "steady": {"kernel": (1 + 0.1 * sign) * jnp.ones(4)},
      ...         "noisy": {"kernel": (1 + sign) * jnp.ones(4)},
      ...     }
      ...     updates, state = tx.update(gradients, state, params)
      >>> names = plp_optax.layer_names(params)
      >>> {name: f"{r:.2f}" for name, r in zip(names, state.layer_rates)}
      {'noisy': '0.52', 'steady': '1.48'}

    References:
      Hao et al., `Noise-Adaptive Layerwise Learning Rates
      <https://arxiv.org/abs/2510.14009>`_ (LANTON), 2025

      Rates by the spectra of weights instead: Zhou et al., `Temperature Balancing
      <https://arxiv.org/abs/2312.00359>`_ (TempBalance), 2023; He et al., `One LR
      Doesn't Fit All <https://arxiv.org/abs/2605.22297>`_ (LLR), 2026
    """
    _checks.check_number("alpha", alpha, above=0)
    monitor = monitor_layers(
        inner,
        measure="g1_per_weight",
        decay=decay,
        layers=layers,
        axis_name=axis_name,
        accumulator_dtype=accumulator_dtype,
    )

    def init_fn(params: optax.Params) -> NoiseAdaptiveRatesState:
        state = monitor.init(params)
        return NoiseAdaptiveRatesState(jnp.ones_like(state.squared_weights), state)

    def update_fn(
        updates: optax.Updates,
        state: NoiseAdaptiveRatesState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NoiseAdaptiveRatesState]:
        updates, monitored = monitor.update(
            updates, state.layer_monitor, params, **extra_args
        )
        moments = monitored.moments
        rates = _rates(moments.noise, moments.samples > 0, alpha)
        _, places = assign_layers(params, layers)
        return scale_layers(updates, rates, places), NoiseAdaptiveRatesState(
            rates, monitored
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _rates(noise: jax.Array, known: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """The layers' rates; 1 for those whose noise is not known."""

    def mean(x: jax.Array) -> jax.Array:
        number = jnp.maximum(known.sum(dtype=x.dtype), 1)
        return jnp.where(known, x, 0).sum() / number

    unit = mean(noise)  # 0 before there is noise: all rates are then 1
    relative = noise / jnp.where(unit > 0, unit, 1)
    alpha = jnp.asarray(alpha, noise.dtype)
    root = jnp.sqrt(alpha / jnp.sqrt(alpha * alpha + relative))
    scale = mean(root)
    return jnp.where(known, root / jnp.where(scale > 0, scale, 1), 1)
