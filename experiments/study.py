"""Studies: arms that differ in one thing, paired by seed; and their runs."""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.rates import multiplied
from experiments.records import Header, Record
from models import NETWORKS
from training.engine.optimizer import make_strategy
from training.errors import ConfigError
from training.settings import config as config_lib
from training.settings.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      name: Short, and fit for a command line: ``plp-4``.
      label: Its name in reports: ``PLP, period 4``.
      fields: Fields of ``training.settings.config.Config``, on top of the study's.
      rate: Multiplies the learning rate of the completed configuration: all of
        ``learning_rate``, ``max_learning_rate`` and the rates of a strategy. Not in a
        study with an ``execute`` of its own.
      baseline: Name of the plain arm that it is compared with.
      matched: Name of the arm at the matched learning rate that it is compared with.
      group: The part of the study that it belongs to. Runs and reports keep the parts
        apart; empty for the main part.
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

    def changed(
        self,
        *,
        name: str | None = None,
        models: Sequence[str] | None = None,
        arms: Sequence[str] | None = None,
        seeds: int | None = None,
        fields: Mapping[str, Any],
    ) -> "Scale":
        """This scale, changed as the command line asks.

        Other networks or fields change what runs compute, and so the scale's name: its
        runs get a folder of their own. Other arms and seeds are more or fewer of the
        same runs.

        Args:
          name: The name, or None for one that follows from the changes:
            ``quick-tiny-epochs-5``.
          models: Networks, or None for the scale's; so for the next two.
          arms: Names of arms.
          seeds: How many seeds.
          fields: Fields of a configuration; those that are None are the scale's.
        """
        changed = {
            field: value
            for field, value in fields.items()
            if value is not None and value != self.fields.get(field)
        }
        parts = [self.name]
        if models is not None and tuple(models) != self.models:
            parts += models
        for field, value in changed.items():
            parts += [field.replace("_", "-"), str(value).replace("/", "-")]
        return dataclasses.replace(
            self,
            name=name or "-".join(parts),
            models=self.models if models is None else tuple(models),
            arms=self.arms if arms is None else tuple(arms),
            seeds=self.seeds if seeds is None else seeds,
            fields={**self.fields, **changed},
        )


TUNING_SEEDS = (1000, 1001, 1002)  # seeds that choose settings; reported ones are below

# Fields that the scales named small share.
SMALL: Mapping[str, Any] = {
    "dataset": "cifar100",
    "width": 8,
    "batch_size": 64,
    "validation_fraction": 0.1,
}


class Outcome(NamedTuple):
    """The results of a run: the parts of a record with the same names."""

    result: dict[str, Any]
    history: list[dict[str, Any]]
    measures: dict[str, Any]


# Called often during a run, with the finished part of it, 0 to 1, and what to show,
# such as "epoch 2/6, loss 1.83". It ends the run, by an exception, when time is up and
# the part is below 1.
Tick = Callable[[float, str], None]


class Task(NamedTuple):
    """A run that a study asks for.

    Attributes:
      arm: Its arm.
      model: The network.
      seed: The seed.
      config: Its configuration, as recorded.
    """

    arm: Arm
    model: str
    seed: int
    config: dict[str, Any]

    @property
    def part(self) -> tuple[str, str]:
        """The group and the network. All runs of a part follow each other."""
        return self.arm.group, self.model

    @property
    def folder(self) -> str:
        """A name for files of an unfinished run."""
        fingerprint = config_lib.fingerprint(self.config)
        return f"{self.model}-{self.arm.name}-{self.seed}-{fingerprint}"

    def __str__(self) -> str:
        return f"{self.model} {self.arm.name} seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms, the networks they train, and at which scales.

    Attributes:
      name: ``plp``.
      title: One line for the list of studies.
      question: The question that the study answers, in a sentence or two.
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
        for a cascade, which prepares each stage in its turn. A run of a study that
        observes is not resumed.
      variant: ``variant(name)`` makes an arm of a sweep from its name, such as
        ``g2-case1-t0.7``; None for a name that is not of a sweep. Swept arms are not
        listed: a scale or ``--arms`` names those that it wants.
      execute: ``execute(config, tick)`` carries out a run, for a study that does not
        use the training recipe. ``config`` is a dict of the study's, scale's and arm's
        fields with ``model`` and ``seed``; a run that diverges raises
        ``training.errors.DivergedError``. None for the training recipe.
      setups: The names that take the place of networks in such a study; empty for any.
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
    variant: Callable[[str], Arm | None] | None = None
    execute: Callable[[dict[str, Any], Tick], Outcome] | None = None
    setups: Collection[str] = ()

    def find(self, name: str) -> Arm | None:
        """The arm of this name, declared or of a sweep."""
        declared = next((arm for arm in self.arms if arm.name == name), None)
        return declared or (self.variant(name) if self.variant else None)

    def arm(self, name: str) -> Arm:
        """The arm of this name, which must exist."""
        arm = self.find(name)
        assert arm is not None, name
        return arm

    def including(self, names: Iterable[str]) -> "Study":
        """This study, with the arms of sweeps that are named among its arms."""
        found = [arm for name in dict.fromkeys(names) if (arm := self.find(name))]
        swept = [arm for arm in found if arm not in self.arms]
        return dataclasses.replace(self, arms=(*self.arms, *swept))

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

    def header(self, scale: Scale) -> Header:
        """The header of records at a scale."""
        return Header(self.name, scale.name, list(scale.models), dict(scale.fields))

    def configure(
        self, scale_fields: Mapping[str, Any], model: str, arm: Arm
    ) -> dict[str, Any]:
        """The configuration of an arm's runs, as recorded, with seed 0.

        Raises:
          ConfigError: If it makes no sense.
        """
        base = {
            # Averages do not change the training; a study of them declares its own.
            **({"average": "none"} if self.execute is None else {}),
            **PRESETS.get(self.preset or "", {}),
            **self.fields,
            **self.model_fields.get(model, {}),
            **scale_fields,
        }
        fields = {**arm.fields, "model": model}
        if self.execute is not None:
            found: dict[str, Any] = json.loads(json.dumps({**base, **fields}))
            return found  # as JSON has it
        config = config_lib.resolve(fields, base)
        if arm.derived is not None:
            fields.update(arm.derived(config))
            config = config_lib.resolve(fields, base)
        if arm.rate != 1:
            fields.update(multiplied(config, arm.rate))
            config = config_lib.resolve(fields, base)
        make_strategy(config, steps_per_epoch=1)  # refuses too few epochs
        return config_lib.chosen(config)

    def tasks(self, scale: Scale) -> list[Task]:
        """All runs at a scale, in the order in which they are carried out.

        Group by group, so that the main part comes first; in it network by network, in
        the order of the scale, so that a study that is stopped early has some networks
        in full; of a network seed by seed; of a seed all arms.

        Raises:
          ConfigError: If the scale, a network or an arm makes no sense.
        """
        if scale.seeds < 1:
            raise ConfigError(f"--seeds must be at least 1, got {scale.seeds}")
        if known := NETWORKS if self.execute is None else self.setups:
            _check_names("models", scale.models, known)
        declared = [arm.name for arm in self.arms]
        chosen = declared if scale.arms is None else scale.arms
        study = self.including(chosen)
        _check_names("arms", chosen, [arm.name for arm in study.arms])
        arms = [arm for arm in study.arms if arm.name in chosen]
        models = dict.fromkeys(scale.models)
        configs = {
            (model, arm.name): self.configure(scale.fields, model, arm)
            for model in models
            for arm in arms
            if scale.runs(arm, model)
        }
        return [
            Task(arm, model, seed, _with_seed(configs[model, arm.name], seed))
            for group in dict.fromkeys(arm.group for arm in arms)
            for model in models
            for seed in range(scale.first_seed, scale.first_seed + scale.seeds)
            for arm in arms
            if arm.group == group and scale.runs(arm, model)
        ]

    def current(self, header: Header, records: Sequence[Record]) -> list[Record]:
        """The records whose configuration is the one that is declared today."""
        declared = {
            (name, model): self.configure(header.fields, model, arm)
            for name, model in {(record.arm, record.model) for record in records}
            if (arm := self.find(name))
        }
        return [
            record
            for record in records
            if (config := declared.get((record.arm, record.model))) is not None
            and record.config == _with_seed(config, record.seed)
        ]


def missing(tasks: Sequence[Task], records: Sequence[Record]) -> list[Task]:
    """The runs that have no record."""
    found = {(r.arm, r.model, r.seed): r.config for r in records}
    return [
        task
        for task in tasks
        if found.get((task.arm.name, task.model, task.seed)) != task.config
    ]


def _with_seed(config: dict[str, Any], seed: int) -> dict[str, Any]:
    return {**config, "seed": seed} if seed else config


def _check_names(flag: str, chosen: Sequence[str], known: Collection[str]) -> None:
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(
            f"--{flag} {' '.join(unknown)}: choose from {', '.join(known)}"
        )
