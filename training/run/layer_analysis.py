"""The layers that a run amplifies or watches, read from the optimizer's state."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

import plp_optax
from training.run.records import without_nan


class Amplification(NamedTuple):
    """Amplification at the end of an epoch.

    The layers are in the order of the network.

    Attributes:
      amplified: Names of the layers that are amplified from here.
      selections: How many selections there have been.
      analysis: If the epoch ended in a selection, ``layer``, ``score``,
        ``noise_floor``, ``z_score`` and ``amplified`` of each layer; else None.
    """

    amplified: list[str]
    selections: int
    analysis: list[dict[str, Any]] | None


def observe(
    opt_state: optax.OptState, params: Any, layers: str, selections: int
) -> Amplification:
    """Reads the amplification from the optimizer's state.

    Args:
      opt_state: The state at the end of an epoch.
      params: The parameters, of which only the shapes count.
      layers: The rule for layers.
      selections: How many selections there had been at the end of the epoch before.
    """
    names = plp_optax.layer_names(params, layers)
    factors = jax.device_get(optax.tree.get(opt_state, "factors"))
    order = by_depth(names)
    found = {name for name, f in zip(names, factors, strict=True) if f != 1}
    amplified = [name for name in order if name in found]
    count = int(optax.tree.get(opt_state, "selections"))
    if count == selections:
        return Amplification(amplified, count, None)
    analyses = plp_optax.layer_analyses(opt_state, params, layers=layers)
    rows = {row.layer: row._asdict() for row in analyses}
    return Amplification(amplified, count, [rows[name] for name in order])


def statistics(
    opt_state: optax.OptState, params: Any, layers: str
) -> list[dict[str, Any]]:
    """The statistics of each layer over the last epoch, in the network's order.

    Numbers that are not finite, of layers without a gradient, are None.
    """
    found = plp_optax.layer_statistics(opt_state, params, layers=layers)
    rows = {row.layer: row._asdict() for row in found}
    return [without_nan(rows[layer]) for layer in by_depth(list(rows))]


def layers_text(history: Sequence[Mapping[str, Any]]) -> str:
    """The analyses of a run as plain-text tables, for ``layers.txt``."""
    tables = []
    for metrics in history:
        if rows := metrics.get("analysis"):
            analyses = [plp_optax.LayerAnalysis(**row) for row in rows]
            table = plp_optax.layer_table(analyses)
            tables.append(f"after epoch {metrics['epoch']}\n{table}\n")
    return "\n".join(tables)


def by_depth(names: Sequence[str]) -> list[str]:
    """Layer names in the order of the network: stem, stages, head."""

    def key(name: str) -> tuple[Any, ...]:
        place = {"stem": 0, "head": 2}.get(name.split("/")[0], 1)
        parts = re.split(r"(\d+)", name)
        return place, [int(p) if p.isdigit() else p for p in parts]

    return sorted(names, key=key)
