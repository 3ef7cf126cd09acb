"""Learning-rate schedules, each with its settings.

A schedule is an entry in ``SCHEDULES``: a class whose fields are its flags and whose
call gives the learning rate as a function of the optimizer step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from training.settings.flags import Part, flag
from training.settings.lazy import jnp, optax
from training.settings.plan import Plan


class Schedule(Part):
    """A learning-rate schedule."""

    def __call__(self, rate: float, plan: Plan) -> optax.Schedule:
        """The learning rate by optimizer step; ``rate`` is in most the highest."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _WarmedUp(Schedule):
    """A schedule that begins after a linear warm-up."""

    warmup_epochs: float = flag(
        1.0,
        "Warm-up: epochs over which the learning rate rises linearly from 0.",
        low=0,
        below=2**31,
    )

    def __call__(self, rate: float, plan: Plan) -> optax.Schedule:
        steps = self.warmup_steps(plan)
        main = self.after_warmup(rate, max(1, plan.total_steps - steps))
        if steps:
            # Starts above 0: a step at rate 0 would change nothing.
            warmup = optax.linear_schedule(rate / (steps + 1), rate, steps)
            main = optax.join_schedules([warmup, main], [steps])
        return with_wide_count(main)

    def warmup_steps(self, plan: Plan) -> int:
        """The number of steps of the warm-up."""
        steps = round(self.warmup_epochs * plan.steps_per_epoch)
        return min(steps, plan.total_steps)

    def after_warmup(self, rate: float, steps: int) -> optax.Schedule:
        """The schedule of the remaining steps."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(_WarmedUp):
    """A constant learning rate."""

    def after_warmup(self, rate: float, steps: int) -> optax.Schedule:
        return optax.constant_schedule(rate)


@dataclasses.dataclass(frozen=True)
class Cyclic(_WarmedUp):
    """Up and down between two rates; arXiv 1506.01186."""

    max_learning_rate: float = flag(
        lambda c: 2 * c.learning_rate,
        "Peak of the cyclic schedule. Unset: twice --learning-rate.",
        above=0,
    )
    cycle_steps: int = flag(
        2000,
        "Steps of half a cycle, from the lower bound to the peak.",
        low=1,
        below=2**30,  # a cycle is counted in int32
    )
    cycle_momentum: bool = flag(
        False,
        "Cyclic momentum: it falls by 0.1 while the cyclic rate rises to its peak, as "
        "PyTorch's CyclicLR does by default (0.9 to 0.8).",
    )

    def after_warmup(self, rate: float, steps: int) -> optax.Schedule:
        return triangular_schedule(rate, self.max_learning_rate, self.cycle_steps)

    def momentum(self, momentum: float, plan: Plan) -> optax.Schedule:
        """The momentum that falls by 0.1 while the rate rises to its peak."""
        cycle = triangular_schedule(momentum, momentum - 0.1, self.cycle_steps)
        constant = optax.constant_schedule(momentum)
        steps = self.warmup_steps(plan)
        return with_wide_count(optax.join_schedules([constant, cycle], [steps]))


@dataclasses.dataclass(frozen=True)
class Step(_WarmedUp):
    """Times 0.2 at 30, 60 and 80 % of the run.

    These are the milestones of common CIFAR-100 practice: 60, 120, 160 of 200 epochs.
    """

    def after_warmup(self, rate: float, steps: int) -> optax.Schedule:
        milestones = [round(part * steps) for part in (0.3, 0.6, 0.8)]
        rates = [optax.constant_schedule(rate * 0.2**i) for i in range(4)]
        return optax.join_schedules(rates, milestones)


@dataclasses.dataclass(frozen=True)
class Cosine(_WarmedUp):
    """Half a cosine, down to 0."""

    def after_warmup(self, rate: float, steps: int) -> optax.Schedule:
        return optax.cosine_decay_schedule(rate, steps)


@dataclasses.dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from a 25th of the rate in 30 % of the run, and down to almost 0."""

    def __call__(self, rate: float, plan: Plan) -> optax.Schedule:
        return with_wide_count(optax.cosine_onecycle_schedule(plan.total_steps, rate))


@dataclasses.dataclass(frozen=True)
class Plateau(Constant):
    """Divided by ten when the validation loss stalls: ``training.engine.plateau``."""

    plateau_patience: int = flag(
        10,
        "Epochs without a lower validation loss before the rate is divided by ten.",
        low=1,
    )
    plateau_window: int = flag(
        1,
        "Compare the mean validation losses of this many epochs instead of the losses "
        "of single ones.",
        low=1,
    )
    plateau_drops: int | None = flag(
        None,
        "End the run, or the stage of a cascade, when the rate is divided for this "
        "many-th time.",
        low=1,
    )

    @property
    def rule(self) -> tuple[int, int]:
        """The patience, and the epochs over which losses are averaged."""
        return self.plateau_patience, self.plateau_window


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cyclic": Cyclic,
    "step": Step,
    "cosine": Cosine,
    "onecycle": OneCycle,
    "plateau": Plateau,
}


def triangular_schedule(base: float, peak: float, half_period: int) -> optax.Schedule:
    """Rises from ``base`` to ``peak`` in ``half_period`` steps, and falls again."""

    def schedule(count: Any) -> Any:
        position = (jnp.asarray(count) % (2 * half_period)) / half_period
        return base + (peak - base) * (1 - abs(1 - position))

    return schedule


def with_wide_count(schedule: optax.Schedule) -> optax.Schedule:
    """The same schedule in float64 where that is enabled.

    Optimizers count in int32, from which JAX computes in float32 even there.
    """
    return lambda count: schedule(jnp.asarray(count, int))
