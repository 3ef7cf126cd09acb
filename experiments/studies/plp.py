"""Parameter linear prediction, compared with SGD and with its matched rate."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from experiments.rates import matched
from experiments.study import SMALL, Arm, Scale, Study
from training.engine.state import TrainState
from training.recipe import Prepared
from training.run.callbacks import Callback
from training.settings.config import Config

# -- What is measured ------------------------------------------------------------------


class Path(Callback):
    """Follows a weight and a bias: the middle of a convolution, the head's first bias.

    Reading them is queued behind the training steps and waits for none.
    """

    def __init__(self, points: int = 2000) -> None:
        """Takes how many points of the path to keep at most."""
        self._points = points
        self._names: list[str] = []
        self._read: Any = None
        self._seen: list[dict[str, jax.Array]] = []
        self._calls, self._every = 0, 1

    def on_call(self, state: TrainState) -> None:
        """See :class:`Callback`."""
        if self._read is None:
            self._names, self._read = _reader(state.params)
        if self._calls % self._every == 0:
            self._seen.append(self._read(state.params, state.step))
        self._calls += 1
        if len(self._seen) > self._points:  # thin out, so that the path covers the run
            self._seen, self._every = self._seen[::2], 2 * self._every

    @property
    def measures(self) -> dict[str, Any]:
        """``path``: ``step``, ``weight`` and ``bias``, a list each, and ``which``.

        A list has an entry for every call of the training function (a step on a CPU),
        or in longer runs for every second, fourth, ... call. ``which`` names the two
        parameters. Their values have the digits that restore a float32. Empty before
        the first call.
        """
        if not self._seen:
            return {}
        seen = jax.device_get(self._seen)
        return {
            "path": {
                "step": [int(s["step"]) for s in seen],
                "weight": shortened([s["weight"] for s in seen]),
                "bias": shortened([s["bias"] for s in seen]),
                "which": dict(zip(("weight", "bias"), self._names, strict=True)),
            }
        }


def shortened(values: Sequence[Any]) -> list[float]:
    """Floats with the fewest digits that restore each as a float32."""
    return [float(str(np.float32(value))) for value in values]


def _reader(params: Any) -> tuple[list[str], Any]:
    """Chooses a weight and a bias.

    Returns:
      Their names with indices, and a compiled function of the parameters and the step.
    """
    leaves = {
        keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in tree_leaves_with_path(params)
    }
    order = list(leaves)
    # Convolutions before other matrices, and the head's bias before others.
    weight = max(order, key=lambda n: (len(leaves[n]) == 4, len(leaves[n]) > 1))
    biases = [n for n in order if n.endswith("bias")] or order
    bias = max(reversed(biases), key=lambda n: n.startswith("head/"))
    middle = tuple(size // 2 for size in leaves[weight])
    first = (0,) * len(leaves[bias])

    def read(params: Any, step: jax.Array) -> dict[str, jax.Array]:
        named = dict(zip(order, jax.tree.leaves(params), strict=True))
        return {
            "weight": named[weight][middle],
            "bias": named[bias][first],
            "step": step,
        }

    names = [f"{n}{list(i)}" for n, i in ((weight, middle), (bias, first))]
    return names, jax.jit(read)


def observe(prepared: Prepared, config: Config) -> Path | None:
    """Follows two parameters along the first seed of SGD and of prediction."""
    del prepared
    return Path() if config.seed == 0 and config.method in ("sgd", "plp") else None


# -- The study -------------------------------------------------------------------------


def _plp(period: int) -> Arm:
    return Arm(
        f"plp-{period}",
        f"PLP, period {period}",
        {"method": "plp", "plp_period": period},
        baseline="sgd",
        matched=f"matched-{period}",
    )


def _matched(period: int) -> Arm:
    factor = matched(period=period)
    return Arm(f"matched-{period}", f"SGD, rate x {factor}", {}, rate=float(factor))


def _cycled(arm: Arm) -> Arm:
    """The same arm with a momentum that falls while the rate rises.

    PyTorch's schedule does so by default; the paper does not say whether its own did.
    """

    def name(arm: str | None) -> str | None:
        return None if arm is None else f"{arm}-cycled"

    return dataclasses.replace(
        arm,
        name=f"{arm.name}-cycled",
        label=f"{arm.label}, cycled momentum",
        fields={**arm.fields, "cycle_momentum": True},
        baseline=name(arm.baseline),
        matched=name(arm.matched),
        group="cycled momentum",
    )


_ARMS = (
    Arm("sgd", "SGD", {}),
    _plp(4),
    _plp(3),
    _matched(4),
    _matched(3),
    Arm("lookahead", "Lookahead", {"method": "lookahead"}, baseline="sgd"),
    Arm("average", "window average", {"method": "average"}, baseline="sgd"),
)
_CYCLED = tuple(
    _cycled(arm) for arm in _ARMS if arm.name in ("sgd", "plp-4", "matched-4")
)

STUDY = Study(
    name="plp",
    title="Parameter linear prediction (arXiv 2310.10958)",
    question="Does parameter linear prediction reach a lower loss or a higher accuracy "
    "than SGD, and than SGD at its matched rate, the learning rate that prediction "
    "amounts to on steady updates? Lookahead and the average of the window are other "
    "ways to use the last few parameters.",
    preset="plp-paper",
    fields={"method": "sgd"},
    arms=(*_ARMS, *_CYCLED),
    scales=(
        Scale(
            "full",
            models=("resnet18", "vgg16", "googlenet"),
            seeds=10,
            # One split a seed, as ten repetitions of a random split would have.
            fields={"split_per_seed": True},
        ),
        Scale(
            "small",
            models=("resnet18",),
            seeds=3,
            # 700 steps, not 31,200: ten times the paper's rates, and two cycles.
            fields={
                **SMALL,
                "train_fraction": 0.2,
                "epochs": 5,
                "learning_rate": 0.01,
                "max_learning_rate": 0.02,
                "cycle_steps": 140,
            },
            arms=tuple(arm.name for arm in _ARMS),
        ),
        Scale(
            "quick",
            models=("resnet18", "vgg16", "googlenet"),
            seeds=6,
            # Digits have 17 steps in an epoch: half a cycle of the rate in two epochs,
            # and rates at which so few steps suffice.
            fields={
                "dataset": "digits",
                "width": 4,
                "epochs": 6,
                "batch_size": 64,
                "learning_rate": 0.02,
                "max_learning_rate": 0.04,
                "cycle_steps": 34,
            },
        ),
    ),
    observe=observe,
)
