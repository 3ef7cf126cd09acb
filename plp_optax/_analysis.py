"""What amplification saw and chose, to be read."""

from typing import Any, NamedTuple

import jax
import numpy as np

from plp_optax._amplification import AmplifyLayersState
from plp_optax._layers import Layers, assign_layers, layer_names


class LayerAnalysis(NamedTuple):
    """One layer after an analysis epoch.

    Attributes:
      layer: Its name.
      score: How consistently its gradients pointed one way, in [0, 1].
      noise_floor: What gradients of pure noise would score.
      z_score: The score in standard deviations from the layers' mean.
      amplified: Whether it was selected.
    """

    layer: str
    score: float
    noise_floor: float
    z_score: float
    amplified: bool


def layer_analyses(
    state: AmplifyLayersState, params: Any, *, layers: Layers = "kernels"
) -> list[LayerAnalysis]:
    r"""The last finished analysis epoch, layer by layer.

    The noise floor is that of independent gradients with mean zero,
    :math:`1/\sqrt n` after n of them, for ``"g1"`` :math:`1/\sqrt{n \cdot
    \text{weights}}`, since it sums over a layer's weights too.

    Args:
      state: The transformation's own state, not that of a whole chain.
      params: Parameters, or arrays of their shapes.
      layers: The rule that the transformation was given.

    Returns:
      One analysis per layer; scores and floors are NaN before the first selection.
    """
    names = layer_names(params, layers)
    if len(names) != state.scores.size:
        raise ValueError(
            f"the state is of {state.scores.size} layers, the rule layers={layers!r} "
            f"finds {len(names)} in params: give both the same"
        )
    decided = int(state.selections) > 0
    samples = np.full(len(names), int(state.gradients_analyzed) or np.nan, float)
    if isinstance(state.signed_sums, jax.Array | np.ndarray) and (
        state.signed_sums.shape == (len(names),)
    ):  # "g1", which sums over the layer's weights as well
        weights = dict.fromkeys(names, 0)
        for leaf, name in zip(
            jax.tree.leaves(params), assign_layers(params, layers), strict=True
        ):
            if name:
                weights[name] += leaf.size
        samples *= np.array(list(weights.values()))
    scores = np.where(decided, state.scores, np.nan)
    z_scores = np.where(decided, state.z_scores, np.nan)
    columns = (scores, 1 / np.sqrt(samples), z_scores, np.asarray(state.amplified))
    return [
        LayerAnalysis(name, float(score), float(floor), float(z), bool(amplified))
        for name, score, floor, z, amplified in zip(names, *columns, strict=True)
    ]


def amplification_table(
    state: AmplifyLayersState, params: Any, *, layers: Layers = "kernels"
) -> str:
    """The same as a table in plain text, a line a layer; see :func:`layer_analyses`."""
    analyses = layer_analyses(state, params, layers=layers)
    width = max(len(name) for name in ("layer", *(a.layer for a in analyses)))
    lines = [f"{'layer':{width}}  score  noise floor      z  amplified"]
    lines += [
        f"{a.layer:{width}} {a.score:6.4f} {a.noise_floor:12.4f} {a.z_score:6.2f}  "
        f"{'yes' if a.amplified else ''}"
        for a in analyses
    ]
    return "\n".join(line.rstrip() for line in lines)
