"""Methods that the training recipe trains at the best of a few learning rates.

Scale ``tune`` trains each at its rates, with one or more seeds that are not reported;
the other scales take the rate with the lowest mean validation loss there.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from experiments.study import TUNING_SEEDS, Arm, Scale
from training.settings.config import Config

TRIED = "rates"  # the group of the arms at all rates


def _learning_rate(config: Config, rate: float) -> Mapping[str, Any]:
    return {"learning_rate": rate}


@dataclasses.dataclass(frozen=True)
class RecipeMethod:
    """A way to train.

    Attributes:
      label: Its name in reports.
      rate: The one of ``rates`` with the lowest last validation loss at scale tune, of
        those that have run with the most seeds.
      rates: The rates to try, ascending. Empty for a method that trains at the rate of
        its base.
      fields: Fields of ``training.settings.config.Config``.
      base: The name of the method that it is compared with; None for a plain one.
      drift: How much further it moves on steady updates than its base. The base at the
        rate times this number is its other control; None for no such control.
      derived: Fields that follow from the configuration and the rate.
    """

    label: str
    rate: float
    rates: tuple[float, ...]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str | None = None
    drift: float | None = None
    derived: Callable[[Config, float], Mapping[str, Any]] = _learning_rate

    def arm(self, name: str, label: str, rate: float, **others: Any) -> Arm:
        """An arm that trains it at a rate."""
        return Arm(
            name,
            label,
            self.fields,
            derived=lambda config: self.derived(config, rate),
            **others,
        )


def at_rate(name: str, rate: float) -> str:
    """The arm that trains a method at a rate."""
    return f"{name}-at-{rate:g}"


def compared(methods: Mapping[str, RecipeMethod]) -> tuple[Arm, ...]:
    """Each method at its rate; with a drift, its base at the rate times the drift.

    Where that is the base's own rate, the base itself is the control.
    """
    arms: dict[str, Arm] = {}
    for name, method in methods.items():
        control = None
        if method.base is not None and method.drift is not None:
            base, matched = methods[method.base], round(method.rate * method.drift, 4)
            control = method.base if matched == base.rate else f"{name}-matched"
        arms[name] = method.arm(
            name, method.label, method.rate, baseline=method.base, matched=control
        )
        if control not in (None, method.base):
            label = f"matched rate of {method.label}"
            arms[control] = base.arm(control, label, matched)
    return tuple(arms.values())


def tried(methods: Mapping[str, RecipeMethod]) -> tuple[Arm, ...]:
    """Each method at all its rates, a part of its own."""
    return tuple(
        method.arm(
            at_rate(name, rate),
            f"{method.label}, rate {rate:g}",
            rate,
            group=TRIED,
        )
        for name, method in methods.items()
        for rate in method.rates
    )


def scale_tune(
    methods: Mapping[str, RecipeMethod], model: str, fields: Mapping[str, Any]
) -> Scale:
    """The scale that chooses the rates, on a network with a scale's fields."""
    arms = tuple(arm.name for arm in tried(methods))
    return Scale("tune", (model,), 1, fields, arms, first_seed=TUNING_SEEDS[0])
