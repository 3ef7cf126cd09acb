"""What amplification measured and selected, for people to read."""

from typing import Any, NamedTuple

import jax
import numpy as np

from plp_optax._amplification import AmplifyLayersState
from plp_optax._layers import Layers, assign_layers
from plp_optax._measures import weights_by_layer


class LayerAnalysis(NamedTuple):
    """One layer after an analysis epoch.

    Attributes:
      layer: Its name.
      score: How consistently its gradients pointed one way, in [0, 1].
      noise_floor: What gradients of pure noise would score.
      z_score: The score in standard deviations from the mean of the layers.
      amplified: Whether it was selected.
    """

    layer: str
    score: float
    noise_floor: float
    z_score: float
    amplified: bool


def layer_analyses(
    state: Any, params: Any, *, layers: Layers = "kernels"
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
        that of several members (see :func:`amplification_table`), or if the rule does
        not fit.
    """
    state = _find(state)
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


def amplification_table(state: Any, params: Any, *, layers: Layers = "kernels") -> str:
    """The analyses of :func:`layer_analyses` as plain text, one line per layer.

    Args:
      state: As for :func:`layer_analyses`. The states of several members, stacked by
        ``jax.vmap`` or ``jax.pmap``, give one table each; parameters are then stacked
        too.
      params: Parameters, or arrays of their shapes.
      layers: The rule that the transformation was given.

    Returns:
      The table.

    Raises:
      ValueError: As :func:`layer_analyses`.
    """
    state = _find(state)
    if state.scores.ndim == 1:
        return _table(layer_analyses(state, params, layers=layers))
    member_params = jax.eval_shape(
        lambda tree: jax.tree.map(lambda x: x[0], tree), params
    )
    tables = []
    for i in range(state.scores.shape[0]):
        member = jax.tree.map(lambda x, i=i: x[i], state)
        table = amplification_table(member, member_params, layers=layers)
        tables.append(f"member {i}\n{table}")
    return "\n\n".join(tables)


def _table(analyses: list[LayerAnalysis]) -> str:
    width = max(len(name) for name in ("layer", *(a.layer for a in analyses)))
    lines = [f"{'layer':{width}}  score  noise floor      z  amplified"]
    lines += [
        f"{a.layer:{width}} {a.score:6.4f} {a.noise_floor:12.4f} {a.z_score:6.2f}  "
        f"{'yes' if a.amplified else ''}"
        for a in analyses
    ]
    return "\n".join(line.rstrip() for line in lines)


def _find(state: Any) -> AmplifyLayersState:
    """The amplification state inside a state."""

    def is_ours(node: Any) -> bool:
        return isinstance(node, AmplifyLayersState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(s)]
    if len(found) != 1:
        raise ValueError(
            f"there must be one state of amplify_layers in the given state, found "
            f"{len(found)}"
        )
    return found[0]
