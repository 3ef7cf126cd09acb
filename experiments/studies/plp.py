"""Parameter linear prediction beside SGD and the rate that it amounts to."""

from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

import train
from experiments.studies.rates import at_rate, matched
from experiments.study import SMALL, Arm, Comparison, Scale, Study
from training.config import Config
from training.loop import Loop


def _plp(period: int) -> Arm:
    fields = {"method": "plp", "plp_period": period}
    return Arm(f"plp-{period}", f"PLP, period {period}", fields)


def _matched(period: int) -> Arm:
    factor = matched(period=period)
    label = f"SGD, rate x {factor}"
    return Arm(f"matched-{period}", label, {}, at_rate(float(factor)))


STUDY = Study(
    name="plp",
    title="Parameter linear prediction (arXiv 2310.10958)",
    question="Does parameter linear prediction reach a lower loss or a higher accuracy "
    "than SGD, and than SGD at the learning rate that prediction amounts to on steady "
    "updates? Lookahead and the average of the window are other ways to use the last "
    "few parameters.",
    preset="plp-paper",
    fields={"method": "sgd"},
    arms=(
        Arm("sgd", "SGD", {}),
        _plp(4),
        _plp(3),
        _matched(4),
        _matched(3),
        Arm("lookahead", "Lookahead", {"method": "lookahead"}),
        Arm("average", "window average", {"method": "average"}),
    ),
    comparisons=(
        Comparison("plp-4", "sgd"),
        Comparison("plp-4", "matched-4"),
        Comparison("plp-3", "sgd"),
        Comparison("plp-3", "matched-3"),
        Comparison("lookahead", "sgd"),
        Comparison("average", "sgd"),
    ),
    full=Scale(models=("resnet18", "vgg16", "googlenet"), seeds=10, fields={}),
    small=Scale(
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
    ),
    quick=Scale(
        models=("resnet18", "vgg16", "googlenet"),
        seeds=6,
        # Digits have 17 steps in an epoch: half a cycle of the rate in two epochs, and
        # rates at which so few steps suffice.
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
)


def watcher(program: train.Program, config: Config) -> train.Watcher | None:
    """Follows two parameters along the first seed of SGD and of prediction."""
    if config.seed == 0 and config.method in ("sgd", "plp"):
        return Path(program.loop.state.params)
    return None


class Path(train.Watcher):
    """Follows a weight and a bias: the middle of a convolution, the head's first bias.

    Reading them is queued behind the training steps and waits for none. After 2,000
    calls of the training function, steps on a CPU, it has seen enough.

    Attributes:
      measures: ``path``: after each call ``weight`` and ``bias``, the optimizer
        ``step``, and ``which``, the names of the two parameters.
    """

    _ENOUGH = 2000

    def __init__(self, params: Any) -> None:
        """Chooses them."""
        leaves = [
            (keystr(path, simple=True, separator="/"), leaf.shape)
            for path, leaf in tree_leaves_with_path(params)
        ]
        weight, shape = next((n, s) for n, s in leaves if len(s) == 4)
        middle = tuple(size // 2 for size in shape)
        bias = [n for n, _ in leaves if n.startswith("head/") and n.endswith("bias")][
            -1
        ]
        self._which = {"weight": f"{weight}{list(middle)}", "bias": f"{bias}[0]"}
        self._seen: list[dict[str, jax.Array]] = []

        def read(params: Any, step: jax.Array) -> dict[str, jax.Array]:
            named = dict(
                zip([n for n, _ in leaves], jax.tree.leaves(params), strict=True)
            )
            return {
                "weight": named[weight][middle],
                "bias": named[bias][0],
                "step": step,
            }

        self._read = jax.jit(read)

    def after_call(self, loop: Loop) -> None:
        """See :class:`train.Watcher`."""
        if len(self._seen) < self._ENOUGH:
            self._seen.append(self._read(loop.state.params, loop.state.step))

    @property
    def measures(self) -> dict[str, Any]:
        """What it has seen."""
        seen = jax.device_get(self._seen)
        path = {n: [s[n].item() for s in seen] for n in ("step", "weight", "bias")}
        return {"path": {**path, "which": self._which}}
