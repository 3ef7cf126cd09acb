"""What a study is: arms that differ in one thing, paired by seed. Declarations only."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      name: Short, and fit for a command line: ``plp-4``.
      label: What reports call it: ``PLP, period 4``.
      fields: Fields of ``training.settings.config.Config``, on top of the study's.
      rate: Multiplies the learning rate of the completed configuration: all of
        ``learning_rate``, ``max_learning_rate`` and the rates of a strategy.
      baseline: Name of the plain arm that it is compared with.
      matched: Name of the arm at the matched learning rate that it is compared with.
      group: The part of the study that it belongs to. Runs and reports keep the parts
        apart; empty for the main part.
      variant_of: Name of the arm that it differs from in a single field.
      varies: That field, such as ``plp_period``. Reports draw results over it.
      derived: Fields that follow from the arm's completed configuration in another
        way than ``rate`` says.
      models: The networks that it trains; None for all of a scale's.
    """

    name: str
    label: str
    fields: Mapping[str, Any]
    rate: float = 1.0
    baseline: str | None = None
    matched: str | None = None
    group: str = ""
    variant_of: str | None = None
    varies: str | None = None
    derived: Callable[[Any], Mapping[str, Any]] | None = None
    models: tuple[str, ...] | None = None

    def trains(self, model: str) -> bool:
        """Whether it trains this network."""
        return self.models is None or model in self.models


class Comparison(NamedTuple):
    """A difference that is reported: arm minus control, seed by seed.

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
      name: ``quick``; the name of its folder, too.
      models: The networks.
      seeds: How many paired seeds.
      fields: Fields of ``training.settings.config.Config`` on top of the study's and
        under the arm's: data set, width, epochs, batch size.
      arms: Names of the arms to run; None for all.
      first_seed: The first of the seeds: above 0 where settings were chosen on lower
        ones.
      only: For networks that take long, the names of the arms that train them.
    """

    name: str
    models: tuple[str, ...]
    seeds: int
    fields: Mapping[str, Any]
    arms: tuple[str, ...] | None = None
    first_seed: int = 0
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def runs(self, arm: Arm, model: str) -> bool:
        """Whether an arm trains a network at this scale."""
        return arm.trains(model) and arm.name in self.only.get(model, (arm.name,))


# What the scales named small have in common.
SMALL: Mapping[str, Any] = {
    "dataset": "cifar100",
    "width": 8,
    "batch_size": 64,
    "validation_fraction": 0.1,
}


class Outcome(NamedTuple):
    """What a run leaves: the parts of a record with the same names."""

    result: dict[str, Any]
    history: list[dict[str, Any]]
    measures: dict[str, Any]


# Called often during a run, with the finished part of it, 0 to 1, and what to show,
# such as "epoch 2/6, loss 1.83". It ends the run, by an exception, when time is up.
Tick = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms, the networks they train, and at which scales.

    Attributes:
      name: ``plp``.
      title: One line for the list of studies.
      question: What the study answers, in a sentence or two.
      arms: In the order in which reports show them.
      scales: ``full`` is the paper's; ``small`` is CIFAR-100 in an hour on two CPU
        cores, with a narrow network and part of the images; ``quick`` is the embedded
        digits in ten minutes. A study may have others.
      preset: A preset of ``train.py`` that runs start from, or None.
      fields: Fields of ``training.settings.config.Config`` on top of the preset.
      model_fields: Fields on top of ``fields`` and under the scale's, for networks that
        are trained in another way than the rest.
      extra_comparisons: Those that do not follow from the arms' baselines and matched
        rates.
      observe: ``observe(prepared, config)`` returns a ``Callback`` of ``training.run``
        with a dict ``measures``, which becomes part of the record, or None for a run
        that is not observed. ``prepared`` is a ``training.recipe.Prepared``, or None
        for a cascade, which prepares each stage in its turn.
      execute: ``execute(config, tick)`` carries out a run, for a study that does not
        use the training recipe. ``config`` is a dict of the study's, scale's and arm's
        fields with ``model`` and ``seed``; a run that diverges raises
        ``training.errors.DivergedError``. None for the training recipe.
    """

    name: str
    title: str
    question: str
    arms: tuple[Arm, ...]
    scales: tuple[Scale, ...]
    preset: str | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_fields: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict
    )
    extra_comparisons: tuple[Comparison, ...] = ()
    observe: Callable[[Any, Any], Any] | None = None
    execute: Callable[[dict[str, Any], Tick], Outcome] | None = None

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def scale(self, name: str) -> Scale:
        """The scale of this name."""
        return next(scale for scale in self.scales if scale.name == name)

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Each arm minus its baseline and minus its matched rate, and the extra ones.

        Where the matched rate is the baseline itself there is one comparison.
        """
        found = [
            Comparison(arm.name, control)
            for arm in self.arms
            for control in (arm.baseline, arm.matched)
            if control is not None
        ]
        return tuple(dict.fromkeys((*found, *self.extra_comparisons)))
