"""Training strategies: learning rate and amplification by epoch, and by step."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plp_optax import _checks


class Stage(NamedTuple):
    """A stage of training.

    Attributes:
      end_epoch: Its last epoch, counted from 1; it begins after the previous stage.
      learning_rate: Its learning rate.
      amplify: Whether layers are amplified in it. Its first epoch is then the
        analysis epoch, which is trained without amplification.
      factor: The factor of the selected layers' gradients; 0 freezes them.
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
      factor: The factor of the selected layers' gradients.
    """

    start: int
    stop: int
    epoch_steps: int
    factor: float


StageLike = Stage | tuple[int, float, int, float]
Windows = Sequence[AmplificationWindow | tuple[int, int, int, float]]
StageTuples = Sequence[tuple[Any, ...]]


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
        increase, a rate that is not positive, a negative factor, an amplified stage of
        one epoch (which would be all analysis).

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
        _checks.check_int("steps_per_epoch", steps_per_epoch, low=1)
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
        # From the last to the first, so that the first stage that is not over wins.
        for stage in reversed(self.stages[:-1]):
            inside = jnp.asarray(count) < stage.end_epoch * self.steps_per_epoch
            rate = jnp.where(inside, stage.learning_rate, rate)
        return rate


class Phase(NamedTuple):
    """The amplification schedule at one step; scalars.

    Attributes:
      begins: Whether an epoch of analysis begins.
      analyzes: Whether it is in such an epoch.
      decides: Whether that epoch ends with it.
      amplifies: Whether it is in an epoch after a window's first.
      factor: Its window's factor.
    """

    begins: jax.Array
    analyzes: jax.Array
    decides: jax.Array
    amplifies: jax.Array
    factor: jax.Array


def phase_at(
    windows: tuple[AmplificationWindow, ...],
    reselect_every: int | None,
    step: jax.Array,
) -> Phase:
    """The amplification schedule at ``step``, an int32 scalar."""

    # Looked up in arrays, so that many windows are no larger a program than one.
    def column(values: Sequence[Any], dtype: Any) -> jax.Array:
        return jnp.asarray(np.array(values, dtype))

    starts = column([w.start for w in windows], np.int32)
    stops = column([w.stop for w in windows], np.int32)
    matches = (step >= starts) & (step < stops)
    inside, which = matches.any(), matches.argmax()  # which is 0 outside of all
    start, stop = starts[which], stops[which]
    epoch_steps = column([w.epoch_steps for w in windows], np.int32)[which]
    # Outside of windows the difference might overflow.
    epoch, position = jnp.divmod(jnp.where(inside, step - start, 0), epoch_steps)
    analyzes = epoch == 0
    if reselect_every is not None:
        # Not in the window's last epoch, after which nothing would follow.
        follows = step - position < stop - epoch_steps
        analyzes |= (epoch % reselect_every == 0) & follows
    analyzes &= inside
    factor = jnp.asarray([w.factor for w in windows], float)[which]
    return Phase(
        begins=analyzes & (position == 0),
        analyzes=analyzes,
        decides=analyzes & (position == epoch_steps - 1),
        amplifies=inside & (epoch > 0),
        factor=jnp.where(inside, factor, jnp.ones_like(factor)),
    )


def check_windows(
    strategy: TrainingStrategy | Windows | StageTuples, steps_per_epoch: int | None
) -> tuple[AmplificationWindow, ...]:
    """Returns a strategy's windows; raises unless they make sense."""
    if steps_per_epoch is not None:
        if isinstance(strategy, TrainingStrategy):
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch!r} goes with a list of stages; the "
                f"TrainingStrategy has its own"
            )
        strategy = TrainingStrategy(strategy, steps_per_epoch)
    if isinstance(strategy, TrainingStrategy):
        windows = strategy.windows
    else:
        try:
            windows = tuple(AmplificationWindow(*window) for window in strategy)
        except TypeError as error:
            raise ValueError(
                f"strategy must be a TrainingStrategy, amplification windows, or "
                f"stages with steps_per_epoch=, got {strategy!r}"
            ) from error
    if not windows:
        raise ValueError(
            f"no stage of the strategy is amplified, so there is nothing to do: "
            f"{strategy!r}"
        )
    end = 0
    for window in windows:
        try:
            _check_window(window)
        except ValueError as error:
            raise ValueError(
                f"{error} (stages such as (50, 0.1, 0, 1) are counted in epochs and "
                f"need steps_per_epoch=)"
            ) from error
        if window.start < end:
            raise ValueError(f"{window} begins before the window before it ends")
        end = window.stop
    return windows


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
    if not (_checks.is_finite(rate) and rate > 0):
        raise ValueError(f"{where} must have a positive learning rate, got {rate!r}")
    if not (_checks.is_finite(factor) and factor >= 0):
        raise ValueError(f"{where} must have a factor of at least 0, got {factor!r}")
    if amplify not in (0, 1):
        raise ValueError(f"{where} must say 0 or 1 for amplify?, got {amplify!r}")
    if amplify and end - start < 2:
        raise ValueError(
            f"{where} is amplified but lasts only one epoch, which is its analysis "
            f"epoch: end it with epoch {start + 2} or later"
        )
    return Stage(int(end), float(rate), bool(amplify), float(factor))


def _check_window(window: AmplificationWindow) -> None:
    name = "of an amplification window"
    _checks.check_int(f"start {name}", window.start, low=0)
    _checks.check_int(f"stop {name}", window.stop, low=1)
    _checks.check_int(f"epoch_steps {name}", window.epoch_steps, low=1)
    _checks.check_number(f"factor {name}", window.factor, low=0)
    if window.stop - window.start <= window.epoch_steps:
        raise ValueError(f"{window} ends before its analysis epoch does")
