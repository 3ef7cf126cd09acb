"""Training strategies: learning rate and amplification by epoch, in one list."""

import dataclasses
import itertools
import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plp_optax import _checks


class Stage(NamedTuple):
    """A stage of training.

    Attributes:
      end_epoch: Its last epoch, counted from 1; it begins after the previous stage.
      learning_rate: Its learning rate.
      amplify: Whether layers are amplified in it. Its first epoch is then the
        analysis epoch, which is trained without amplification.
      factor: What the selected layers' gradients are multiplied by.
    """

    end_epoch: int
    learning_rate: float
    amplify: bool = False
    factor: float = 1.0


class AmplificationWindow(NamedTuple):
    """An amplified stage in optimizer steps, counted from 0.

    Attributes:
      start: Its first step, where the analysis epoch begins.
      stop: The step after its last one.
      epoch_steps: Steps in an epoch. Steps ``start`` to ``start + epoch_steps - 1``
        are analysed, the others amplified.
      factor: What the selected layers' gradients are multiplied by.
    """

    start: int
    stop: int
    epoch_steps: int
    factor: float


StageLike = Stage | tuple[int, float, int, float]


@dataclasses.dataclass(frozen=True, init=False)
class TrainingStrategy:
    """Learning rate and amplification by epoch, in the paper's notation.

    It gives both the learning-rate schedule and the amplification windows, so that they
    cannot disagree.

    The first epoch of an amplified stage is its analysis epoch. After a stage that ends
    with epoch 50, that is epoch 51 (the paper's text allows 50 as well), and epochs 52
    on are amplified.

    Attributes:
      stages: Each a :class:`Stage` or a tuple ``(end epoch, learning rate, amplify?,
        factor)``; stored as :class:`Stage`.
      steps_per_epoch: Optimizer steps in an epoch.

    Raises:
      ValueError: If the list makes no sense, naming the entry: epochs that do not
        increase, a rate or factor that is not positive, an amplified stage of one epoch
        (which would be all analysis).

    Examples:
      >>> strategy = TrainingStrategy(
      ...     [(50, 0.1, 0, 1), (100, 0.1, 1, 2), (130, 0.01, 1, 2), (150, 0.01, 0, 1)],
      ...     steps_per_epoch=10,
      ... )
      >>> strategy.windows[0]
      AmplificationWindow(start=500, stop=1000, epoch_steps=10, factor=2.0)
      >>> [round(float(strategy.learning_rate(step)), 3) for step in (999, 1000)]
      [0.1, 0.01]

    References:
      Basodi et al., `Intelligent Gradient Amplification for Deep Neural Networks
      <https://arxiv.org/abs/2305.18445>`_, 2023
    """

    stages: tuple[Stage, ...]
    steps_per_epoch: int

    def __init__(self, stages: Sequence[StageLike], steps_per_epoch: int) -> None:
        """Checks the list and keeps it as stages."""
        _checks.check_int("steps_per_epoch", steps_per_epoch, at_least=1)
        if not isinstance(stages, Sequence):
            raise ValueError(f"a strategy needs a list of stages, got {stages!r}")
        checked: list[Stage] = []
        for number, entry in enumerate(stages, start=1):
            checked.append(_check_stage(number, entry, checked))
        if not checked:
            raise ValueError("a strategy needs at least one stage, got none")
        object.__setattr__(self, "stages", tuple(checked))
        object.__setattr__(self, "steps_per_epoch", steps_per_epoch)

    @property
    def epochs(self) -> int:
        """The epoch that the last stage ends with."""
        return self.stages[-1].end_epoch

    @property
    def windows(self) -> tuple[AmplificationWindow, ...]:
        """The amplified stages, in steps."""
        n = self.steps_per_epoch
        starts = (0, *(stage.end_epoch for stage in self.stages))
        return tuple(
            AmplificationWindow(start * n, stage.end_epoch * n, n, stage.factor)
            for start, stage in zip(starts, self.stages, strict=False)
            if stage.amplify
        )

    def learning_rate(self, count: jax.typing.ArrayLike) -> jax.Array:
        """The learning rate of step ``count``: an optax schedule.

        After the last stage its rate continues.
        """
        rate = jnp.asarray(self.stages[-1].learning_rate, float)
        for stage in reversed(self.stages[:-1]):
            inside = jnp.asarray(count) < stage.end_epoch * self.steps_per_epoch
            rate = jnp.where(inside, stage.learning_rate, rate)
        return rate


def paper_strategy(
    factor: float = 2.0,
    *,
    steps_per_epoch: int,
    epochs: int = 150,
    deep: bool = False,
) -> TrainingStrategy:
    """The strategies of Basodi et al. 2023, also scaled to other numbers of epochs.

    Args:
      factor: The amplification factor. The paper does not publish the one it used: 2
        is an assumption.
      steps_per_epoch: Optimizer steps in an epoch.
      epochs: Length of the training. Stages keep their share of it, rounded.
      deep: Whether to take the strategy of ResNet-50 and 101, which amplifies epochs
        12 to 100 and 102 to 145, instead of that of VGG-19 and ResNet-18 and 34, which
        amplifies epochs 52 to 100 and 102 to 130.

    Returns:
      A strategy of four stages with learning rate 0.1 for two thirds of the training
      and 0.01 after.

    Raises:
      ValueError: If there are too few epochs for the four stages, or an argument is
        not as above.

    Examples:
      >>> strategy = paper_strategy(factor=3.0, steps_per_epoch=1, epochs=30)
      >>> for stage in strategy.stages:
      ...     print(tuple(stage))
      (10, 0.1, False, 1.0)
      (20, 0.1, True, 3.0)
      (26, 0.01, True, 3.0)
      (30, 0.01, False, 1.0)
    """
    _checks.check_int("epochs", epochs, at_least=1)
    ends = (10, 100, 145, 150) if deep else (50, 100, 130, 150)
    if epochs < (least := _least_epochs(ends)):
        raise ValueError(
            f"epochs must be at least {least}, so that no stage is empty and each "
            f"amplified stage has an epoch after its analysis, got {epochs}"
        )
    scaled = _scale(ends, epochs)
    rates, amplified = (0.1, 0.1, 0.01, 0.01), (False, True, True, False)
    return TrainingStrategy(
        [
            Stage(end, rate, amplify, factor if amplify else 1.0)
            for end, rate, amplify in zip(scaled, rates, amplified, strict=True)
        ],
        steps_per_epoch=steps_per_epoch,
    )


def _scale(ends: Sequence[int], epochs: int) -> list[int]:
    return [round(end * epochs / ends[-1]) for end in ends]


def _least_epochs(ends: Sequence[int]) -> int:
    """The fewest epochs from which on all four stages have their epochs."""

    def is_enough(epochs: int) -> bool:
        scaled = _scale(ends, epochs)
        lengths = [b - a for a, b in itertools.pairwise((0, *scaled))]
        return all(n >= m for n, m in zip(lengths, (1, 2, 2, 1), strict=True))

    return 1 + max(n for n in range(ends[-1]) if not is_enough(n))


def _check_stage(number: int, entry: Any, before: Sequence[Stage]) -> Stage:
    where = f"stage {number} of the strategy, {entry!r},"
    try:
        end, rate, amplify, factor = Stage(*entry)
    except TypeError as error:
        raise ValueError(
            f"{where} must be (end epoch, learning rate, amplify?, factor)"
        ) from error
    start = before[-1].end_epoch if before else 0
    is_int = isinstance(end, numbers.Integral) and not isinstance(end, bool)
    if not is_int or end <= start:
        raise ValueError(f"{where} must end with an epoch after {start}")
    for name, value in (("learning rate", rate), ("factor", factor)):
        number_like = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not (number_like and 0 < value < math.inf):
            raise ValueError(f"{where} must have a positive {name}, got {value!r}")
    if amplify not in (0, 1):
        raise ValueError(f"{where} must say 0 or 1 for amplify?, got {amplify!r}")
    if amplify and end - start < 2:
        raise ValueError(
            f"{where} is amplified but lasts only one epoch, which is its analysis "
            f"epoch: end it with epoch {start + 2} or later"
        )
    return Stage(int(end), float(rate), bool(amplify), float(factor))
