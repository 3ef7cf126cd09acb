"""What gradient amplification did in a run: records, a text table, a picture."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import plp_optax
from training.curves import COLORS


class Account(NamedTuple):
    """Amplification as it stands at the end of an epoch.

    Attributes:
      amplified: Names of the layers that are amplified from here.
      selections: How many selections there have been.
      analysis: For an epoch that ended in a selection, what was seen and selected:
        ``layer``, ``score``, ``noise_floor``, ``z_score`` and ``amplified`` of each
        layer; else None.
      table: The same as text.
    """

    amplified: list[str]
    selections: int
    analysis: list[dict[str, Any]] | None
    table: str | None


def observe(opt_state: optax.OptState, params: Any, selections: int) -> Account | None:
    """Tells of the amplification in an optimizer's state.

    Args:
      opt_state: The state at the end of an epoch.
      params: The parameters, of which only the shapes count.
      selections: How many selections there had been at the end of the epoch before.

    Returns:
      What holds from here; None without amplification.
    """
    state = find_state(opt_state)
    if state is None:
        return None
    names = plp_optax.layer_names(params)
    amplified = [name for name, f in zip(names, state.factors, strict=True) if f != 1]
    count = int(state.selections)
    if count == selections:
        return Account(amplified, count, None, None)
    accounts = plp_optax.layer_accounts(state, params)
    return Account(
        amplified,
        count,
        [account._asdict() for account in accounts],
        plp_optax.amplification_table(state, params),
    )


def find_state(opt_state: optax.OptState) -> plp_optax.AmplifyLayersState | None:
    """A chain's amplification state, without the sums, on the host."""

    def is_ours(node: Any) -> bool:
        return isinstance(node, plp_optax.AmplifyLayersState)

    found = [s for s in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(s)]
    if not found:
        return None
    (state,) = found
    # Of the sums only their kind is needed: [layers] or a tree like the parameters.
    sums = state.signed_sums
    small = sums if isinstance(sums, jax.Array) else None
    return jax.device_get(state._replace(signed_sums=small, absolute_sums=None))


def by_depth(names: Sequence[str]) -> list[str]:
    """Layer names in the order in which data pass them: stem, stages, head."""

    def key(name: str) -> tuple[Any, ...]:
        place = {"stem": 0, "head": 2}.get(name.split("/")[0], 1)
        parts = re.split(r"(\d+)", name)
        return place, [int(p) if p.isdigit() else p for p in parts]

    return sorted(names, key=key)


def draw(path: Path, history: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws which layers were amplified when, and what the analyses saw.

    Args:
      path: The PNG file to write.
      history: The run's metrics, an epoch an entry.
      title: What the run was.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    analyses = [m for m in history if m.get("analysis")]
    if not analyses:
        return
    names = by_depth([row["layer"] for row in analyses[0]["analysis"]])
    amplified = np.array([[n in m["amplified"] for m in history] for n in names])
    figure = Figure(
        figsize=(11, 1.8 + 0.22 * len(names)), dpi=120, layout="constrained"
    )
    when, scores = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    first, last = history[0]["epoch"], history[-1]["epoch"]
    when.imshow(
        amplified,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(["white", COLORS["train"]]),
        vmin=0,
        vmax=1,
        extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
    )
    for number, metrics in enumerate(analyses):
        shade = 0.75 * (1 - (number + 1) / len(analyses))
        rows = {row["layer"]: row for row in metrics["analysis"]}
        epoch = metrics["epoch"]
        label = None if number else "analysis epoch"
        when.axvspan(epoch - 0.5, epoch + 0.5, color="0.8", lw=0, label=label)
        scores.plot(
            [rows[name]["score"] for name in names],
            range(len(names)),
            marker="o",
            ms=4,
            lw=0.8,
            color=str(shade),
            label=f"epoch {epoch}",
        )
    floor = {row["layer"]: row["noise_floor"] for row in analyses[-1]["analysis"]}
    scores.plot(
        [floor[name] for name in names],
        range(len(names)),
        color=COLORS["validation"],
        ls="--",
        lw=1.2,
        label="noise floor",
    )
    when.set(xlabel="epoch", title="amplified layers (blue)")
    when.set_yticks(range(len(names)), names, fontsize=7)
    when.xaxis.set_major_locator(MaxNLocator(integer=True))
    when.legend(loc="upper left", fontsize=7)
    scores.set(xlabel="score", title="agreement of gradients", xlim=(0, None))
    scores.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for ax in (when, scores):
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", alpha=0.25)
    figure.suptitle(title)
    figure.savefig(path)
