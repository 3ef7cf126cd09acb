"""The runs that a study asks for at a scale."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.rates import multiplied
from experiments.records import Header, Record
from experiments.study import Arm, Scale, Study
from models import NETWORKS
from training.errors import ConfigError
from training.settings import config as config_lib
from training.settings.presets import PRESETS


class Task(NamedTuple):
    """A run that a study asks for.

    Attributes:
      arm: Its arm.
      model: The network.
      seed: The seed.
      config: What its record says of its configuration.
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
    def block(self) -> tuple[str, str, int]:
        """What it shares with the runs that it is paired with."""
        return *self.part, self.seed

    @property
    def folder(self) -> str:
        """A name for files of an unfinished run."""
        fingerprint = config_lib.fingerprint(self.config)
        return f"{self.model}-{self.arm.name}-{self.seed}-{fingerprint}"

    def __str__(self) -> str:
        return f"{self.model} {self.arm.name} seed {self.seed}"


def rescale(
    scale: Scale,
    *,
    models: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    seeds: int | None = None,
    fields: Mapping[str, Any],
) -> Scale:
    """Changes a scale as the command line asks.

    Other networks or fields change what runs compute, and so the scale's name: its
    runs get a folder of their own. Other arms and seeds are more or fewer of the same
    runs.

    Args:
      scale: The declared scale.
      models: Networks, or None for the scale's; so for the next two.
      arms: Names of arms.
      seeds: How many seeds.
      fields: Fields of a configuration; those that are None are the scale's.
    """
    changed = {
        name: value
        for name, value in fields.items()
        if value is not None and value != scale.fields.get(name)
    }
    parts = [scale.name]
    if models is not None and tuple(models) != scale.models:
        parts += ["models", *models]
    for name, value in changed.items():
        parts += [name.replace("_", "-"), str(value).replace("/", "-")]
    return dataclasses.replace(
        scale,
        name="-".join(parts),
        models=scale.models if models is None else tuple(models),
        arms=scale.arms if arms is None else tuple(arms),
        seeds=scale.seeds if seeds is None else seeds,
        fields={**scale.fields, **changed},
    )


def header(study: Study, scale: Scale) -> Header:
    """What the records of a study at a scale have in common."""
    return Header(study.name, scale.name, list(scale.models), dict(scale.fields))


def tasks(study: Study, scale: Scale) -> list[Task]:
    """All runs of a study, in the order in which they are carried out.

    Group by group, so that the main part comes first; in it network by network, in
    the order of the scale, so that a study that is stopped early has some networks in
    full; of a network seed by seed; of a seed all arms.

    Raises:
      ConfigError: If the scale, a network or an arm makes no sense.
    """
    if scale.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {scale.seeds}")
    if study.execute is None:
        _check_names("models", scale.models, NETWORKS)
    names = [arm.name for arm in study.arms]
    chosen = names if scale.arms is None else scale.arms
    _check_names("arms", chosen, names)
    arms = [arm for arm in study.arms if arm.name in chosen]
    models = dict.fromkeys(scale.models)
    configs = {
        (model, arm.name): configure(study, scale.fields, model, arm)
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


def missing(tasks: Sequence[Task], records: Sequence[Record]) -> list[Task]:
    """The runs that have no record."""
    found = {(r.arm, r.model, r.seed): r.config for r in records}
    return [
        task
        for task in tasks
        if found.get((task.arm.name, task.model, task.seed)) != task.config
    ]


def configure(
    study: Study, scale_fields: Mapping[str, Any], model: str, arm: Arm
) -> dict[str, Any]:
    """The configuration of an arm's runs, as recorded, with seed 0.

    Raises:
      ConfigError: If it makes no sense.
    """
    base = {
        **PRESETS.get(study.preset or "", {}),
        **study.fields,
        **study.model_fields.get(model, {}),
        **scale_fields,
    }
    fields = {**arm.fields, "model": model}
    if study.execute is not None:
        return _plain({**base, **fields}, arm.rate)
    config = config_lib.resolve(fields, base)
    if arm.derived is not None:
        fields.update(arm.derived(config))
        config = config_lib.resolve(fields, base)
    if arm.rate != 1:
        fields.update(multiplied(config, arm.rate))
        config = config_lib.resolve(fields, base)
    return config_lib.chosen(config)


def current(study: Study, header: Header, records: Sequence[Record]) -> list[Record]:
    """The records whose configuration is the one that the study declares today."""
    arms = {arm.name: arm for arm in study.arms}
    configs = {
        (record.arm, record.model): configure(
            study, header.fields, record.model, arms[record.arm]
        )
        for record in records
        if record.arm in arms
    }
    return [
        record
        for record in records
        if (record.arm, record.model) in configs
        and record.config == _with_seed(configs[record.arm, record.model], record.seed)
    ]


def _with_seed(config: dict[str, Any], seed: int) -> dict[str, Any]:
    return {**config, "seed": seed} if seed else config


def _plain(fields: dict[str, Any], rate: float) -> dict[str, Any]:
    """Fields of a study that does not use the training recipe, as JSON has them."""
    for name in ("learning_rate", "max_learning_rate"):
        if rate != 1 and fields.get(name) is not None:
            fields[name] *= rate
    return json.loads(json.dumps(fields))


def _check_names(flag: str, chosen: Sequence[str], known: Collection[str]) -> None:
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(
            f"--{flag} {' '.join(unknown)}: choose from {', '.join(known)}"
        )
