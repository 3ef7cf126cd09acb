"""When layers are analysed and amplified, by the step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plp_optax import _checks
from plp_optax._strategy import AmplificationWindow, TrainingStrategy

Windows = Sequence[AmplificationWindow | tuple[int, int, int, float]]
Stages = Sequence[tuple[Any, ...]]


class Moment(NamedTuple):
    """What happens at a step; scalars.

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


def moment(
    windows: tuple[AmplificationWindow, ...],
    reselect_every: int | None,
    step: jax.Array,
) -> Moment:
    """What happens at ``step``, an int32 scalar."""

    def column(values: Sequence[Any], dtype: Any) -> jax.Array:
        return jnp.asarray(np.array(values, dtype))

    starts = column([w.start for w in windows], np.int32)
    stops = column([w.stop for w in windows], np.int32)
    matches = (step >= starts) & (step < stops)
    inside, which = matches.any(), matches.argmax()
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
    return Moment(
        begins=analyzes & (position == 0),
        analyzes=analyzes,
        decides=analyzes & (position == epoch_steps - 1),
        amplifies=inside & (epoch > 0),
        factor=jnp.where(inside, factor, jnp.ones_like(factor)),
    )


def check_windows(
    strategy: TrainingStrategy | Windows | Stages, steps_per_epoch: int | None
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
                f"{error}. (Stages such as (50, 0.1, 0, 1) are counted in epochs and "
                f"need steps_per_epoch=.)"
            ) from error
        if window.start < end:
            raise ValueError(f"{window} begins before the window before it ends")
        end = window.stop
    return windows


def _check_window(window: AmplificationWindow) -> None:
    name = "of an amplification window"
    _checks.check_int(f"start {name}", window.start, at_least=0)
    _checks.check_int(f"stop {name}", window.stop, at_least=1)
    _checks.check_int(f"epoch_steps {name}", window.epoch_steps, at_least=1)
    _checks.check_finite(f"factor {name}", window.factor)
    if window.factor <= 0:
        raise ValueError(f"the factor of {window} must be positive")
    if window.stop - window.start <= window.epoch_steps:
        raise ValueError(f"{window} ends before its analysis epoch does")
