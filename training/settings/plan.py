"""The plan of a run, with ``--strategy``: the paper's, in any length, or a list."""

from __future__ import annotations

import ast
import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from training.errors import ConfigError

if TYPE_CHECKING:
    import plp_optax

Stages = list[tuple[Any, ...]]


class Plan(NamedTuple):
    """How long a run is, and by which strategy and seed: for schedules and methods."""

    steps_per_epoch: int  # optimizer steps
    total_steps: int  # optimizer steps in all epochs, which schedules span
    last_step: int  # where the run stops: --max-steps, if that is less
    seed: int
    # Learning rate and amplification by epoch, if there is a strategy.
    strategy: plp_optax.TrainingStrategy | None
    # Whether the updates of the base optimizer hardly depend on the scale of gradients.
    scale_invariant: bool = False

    @property
    def epochs(self) -> int:
        """Epochs that the run begins."""
        return math.ceil(self.last_step / self.steps_per_epoch)


# (End epoch, learning rate, amplify?, factor) as in the paper, which does not publish
# its factor: 2 is an assumption. "paper" is that of VGG-19 and ResNet-18 and 34,
# "paper-deep" that of ResNet-50 and 101.
NAMED_STRATEGIES: dict[str, Stages] = {
    "paper": [(50, 0.1, 0, 1), (100, 0.1, 1, 2), (130, 0.01, 1, 2), (150, 0.01, 0, 1)],
    "paper-deep": [
        (10, 0.1, 0, 1),
        (100, 0.1, 1, 2),
        (145, 0.01, 1, 2),
        (150, 0.01, 0, 1),
    ],
}


def listed_strategy(text: str) -> Stages:
    """Reads ``--strategy`` in the paper's notation.

    Raises:
      ConfigError: If it is not a list of tuples of numbers.
    """
    wrong = ConfigError(
        f"--strategy {text!r} is neither {' nor '.join(NAMED_STRATEGIES)} nor a "
        f"list of (end epoch, learning rate, amplify?, factor)"
    )
    try:
        stages = [tuple(stage) for stage in ast.literal_eval(text)]
        is_number = all(isinstance(n, int | float) for stage in stages for n in stage)
        is_small = is_number and all(abs(n) < 1e38 for stage in stages for n in stage)
    # Text that is nested too deeply exhausts the parser.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise wrong from error
    if not (stages and all(stages) and is_small and type(stages[-1][0]) is int):
        raise wrong
    return stages


def listed_epochs(strategy: str | None) -> Any:
    """The last epoch of a listed strategy; None for others."""
    if strategy is None or strategy in NAMED_STRATEGIES:
        return None
    return listed_strategy(strategy)[-1][0]


def paper_stages(name: str, epochs: int) -> Stages:
    """The stages of a strategy of the paper, scaled to another number of epochs.

    Args:
      name: One of ``NAMED_STRATEGIES``.
      epochs: Length of the training. Stages keep their share of it, rounded.

    Raises:
      ValueError: If there are too few epochs for the four stages.

    Examples:
      >>> paper_stages("paper", epochs=30)
      [(10, 0.1, 0, 1), (20, 0.1, 1, 2), (26, 0.01, 1, 2), (30, 0.01, 0, 1)]
    """
    stages = NAMED_STRATEGIES[name]

    def scaled(epochs: int) -> Stages:
        return [(round(end * epochs / stages[-1][0]), *rest) for end, *rest in stages]

    def is_enough(epochs: int) -> bool:
        starts = (0, *(end for end, *_ in scaled(epochs)))
        return all(
            b - a >= 1 + s[2]
            for (a, b), s in zip(itertools.pairwise(starts), stages, strict=True)
        )

    # From this number of epochs on all stages have their epochs.
    least = 1 + max(n for n in range(stages[-1][0]) if not is_enough(n))
    if epochs < least:
        raise ValueError(
            f"epochs must be at least {least}, so that no stage is empty and each "
            f"amplified stage has an epoch after its analysis, got {epochs}"
        )
    return scaled(epochs)
