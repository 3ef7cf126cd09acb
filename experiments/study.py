"""What a study is: arms that differ in one thing, paired by seed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from training.config import Config


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      name: Short, and fit for a file name: ``plp-4``.
      label: As reports call it: ``PLP, period 4``.
      fields: Fields of ``training.config.Config``, on top of the study's.
      derived: Further fields, which follow from the arm's own configuration without
        them, such as a multiple of its learning rate.
      group: The part of the study that it belongs to; runs and reports keep the parts
        apart. Empty for the main part.
    """

    name: str
    label: str
    fields: Mapping[str, Any]
    derived: Callable[[Config], Mapping[str, Any]] | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A difference that a report tells of: arm minus control, seed by seed.

    Attributes:
      arm: The name of an arm.
      control: The name of the arm that it is compared with.
    """

    arm: str
    control: str


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the runs of a study are.

    Attributes:
      models: The networks.
      seeds: How many paired seeds.
      fields: Fields of ``training.config.Config`` on top of the study's and under the
        arm's: data set, width, epochs, batch size.
      arms: Names of the arms to run; None for all.
      first_seed: The first of the seeds: above 0 where settings were chosen on lower
        ones.
    """

    models: tuple[str, ...]
    seeds: int
    fields: Mapping[str, Any]
    arms: tuple[str, ...] | None = None
    first_seed: int = 0


# What small scales have in common.
SMALL: Mapping[str, Any] = {
    "dataset": "cifar100",
    "width": 8,
    "batch_size": 64,
    "validation_fraction": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms, the networks they train, and the comparisons that matter.

    Attributes:
      name: ``plp``.
      title: One line for the list of studies.
      question: What the study answers, in a sentence or two.
      preset: A preset of ``train.py`` that runs start from, or None.
      fields: Fields of ``training.config.Config`` on top of the preset.
      arms: In the order in which reports show them.
      comparisons: What the report concludes on.
      full: The scale of the paper.
      small: CIFAR-100 at the scale of two CPU cores and an hour: a narrow network and
        part of the data.
      quick: The embedded digits, two CPU cores and ten minutes.
      model_fields: For networks that are trained in another way than the rest: fields
        of ``training.config.Config`` on top of ``fields`` and under the scale's.
    """

    name: str
    title: str
    question: str
    preset: str | None
    fields: Mapping[str, Any]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    full: Scale
    small: Scale
    quick: Scale
    model_fields: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict
    )

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)
