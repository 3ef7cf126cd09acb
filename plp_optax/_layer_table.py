"""Layers as plain text: of amplification, of a monitor, or both, from one state."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from plp_optax import _checks
from plp_optax._amplification import AmplifyLayersState, LayerAnalysis, layer_analyses
from plp_optax._layers import LayerRule
from plp_optax._monitor import LayerStatistics, MonitorLayersState, layer_statistics

Row = LayerAnalysis | LayerStatistics


def layer_table(
    state: Any, params: Any = None, *, layers: LayerRule = "kernels"
) -> str:
    """A table with one line per layer: an analysis, or the statistics of a monitor.

    Args:
      state: A state that contains that of :func:`amplify_layers`, whose
        :func:`layer_analyses` are shown, or of :func:`monitor_layers`, whose
        :func:`layer_statistics` are. The states of several members, stacked by
        ``jax.vmap`` or ``jax.pmap``, give one table each; parameters are then stacked
        too. Without parameters: a list of these analyses or statistics themselves.
      params: Parameters, or arrays of their shapes.
      layers: The rule that the transformation was given.

    Returns:
      The table; both, one below the other, if the state contains both. Dashes stand for
      numbers that are not known yet.

    Raises:
      ValueError: If ``state`` contains neither, or several of a kind, or if the rule
        does not fit.
    """
    if params is None:
        return _text(state)
    tables = [
        _of_members(state, kind, params, layers)
        for kind in (AmplifyLayersState, MonitorLayersState)
        if _contains(state, kind)
    ]
    if not tables:
        _checks.only_state(state, AmplifyLayersState)  # which raises
    return "\n\n".join(tables)


def _contains(state: Any, kind: type) -> bool:
    def is_one(x: Any) -> bool:
        return isinstance(x, kind)

    return any(map(is_one, jax.tree.leaves(state, is_leaf=is_one)))


def _of_members(state: Any, kind: Any, params: Any, layers: LayerRule) -> str:
    state = _checks.only_state(state, kind)
    # Any array of the state that is [L], or [members, L] in a stack of states.
    read: Any = layer_statistics
    if kind is AmplifyLayersState:
        one_per_layer, steps, read = state.scores, state.gradients_seen, layer_analyses
    else:
        one_per_layer, steps = state.squared_weights, state.monitored_steps
    if one_per_layer.ndim == 1:
        text = _text(found := read(state, params, layers=layers))
        is_unknown = found and all(math.isnan(row[1]) for row in found)
        return f"{text}\n{_note(kind, int(steps))}" if is_unknown else text
    member_params = jax.eval_shape(
        lambda tree: jax.tree.map(lambda x: x[0], tree), params
    )
    tables = []
    for i in range(one_per_layer.shape[0]):
        member = jax.tree.map(lambda x, i=i: x[i], state)
        table = _of_members(member, kind, member_params, layers)
        tables.append(f"member {i}\n{table}")
    return "\n\n".join(tables)


def _note(kind: Any, steps: int) -> str:
    when = "analysis epoch" if kind is AmplifyLayersState else "window"
    return f"(nothing yet after {steps} updates: filled at the end of the first {when})"


def _text(rows: Sequence[Row]) -> str:
    width = max(len(name) for name in ("layer", *(row.layer for row in rows)))
    is_monitor = any(isinstance(row, LayerStatistics) for row in rows)
    head = _STATISTICS if is_monitor else _ANALYSIS
    lines = [f"{'layer':{width}}{head}"]
    for row in rows:
        cells = _statistics(row) if isinstance(row, LayerStatistics) else _analysis(row)
        lines.append(f"{row.layer:{width}}{cells}".rstrip())
    return "\n".join(lines)


_ANALYSIS = "  score  noise floor      z  amplified"
_STATISTICS = "  gradient   update  parameters  upd./par.       SNR  agreement"


def _analysis(row: LayerAnalysis) -> str:
    return (
        f" {_number(row.score, '6.4f')} {_number(row.noise_floor, '12.4f')} "
        f"{_number(row.z_score, '6.2f')}  {'yes' if row.amplified else ''}"
    )


def _statistics(row: LayerStatistics) -> str:
    return (
        f"{_number(row.gradient_norm, '10.1e')}{_number(row.update_norm, '9.1e')}"
        f"{_number(row.parameter_norm, '12.1e')}{_number(row.update_ratio, '11.1e')}"
        f"{_number(row.snr, '10.1e')}{_number(row.agreement, '11.4f')}"
    )


def _number(value: float, shape: str) -> str:
    """The number, or a dash as wide."""
    return (
        f"{'-':>{shape.partition('.')[0]}}" if math.isnan(value) else f"{value:{shape}}"
    )
