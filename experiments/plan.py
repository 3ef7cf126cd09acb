"""The runs that a study asks for, what they are called, and which of them are done."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.records import Record
from experiments.study import Arm, Scale, Study
from training import config as config_lib
from training.config import Config
from training.errors import ConfigError, RunError
from training.presets import PRESETS

_DEFAULTS = dataclasses.asdict(Config())
_SCALE = "scale.json"
_PLACE = "data_dir"  # of no interest elsewhere


class Task(NamedTuple):
    """A run that a study asks for."""

    arm: Arm
    config: Config

    @property
    def name(self) -> str:
        """Network, arm, seed, and a fingerprint of all else."""
        model, seed = self.config.model, self.config.seed
        found = fingerprint(self.described)
        return f"{model}-{self.arm.name}-{seed}-{found}"

    @property
    def described(self) -> dict[str, Any]:
        """What its record tells of its configuration: all but the data's place."""
        fields = config_lib.experiment(self.config)
        del fields[_PLACE]
        return fields

    @property
    def part(self) -> tuple[str, str]:
        """The group and the network, which are done one after the other."""
        return self.arm.group, self.config.model

    @property
    def block(self) -> tuple[Any, ...]:
        """What it shares with the runs that it is paired with."""
        return *self.part, self.config.seed

    def __str__(self) -> str:
        return f"{self.config.model} {self.arm.name} seed {self.config.seed}"


def fingerprint(experiment: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of what a run computes.

    Args:
      experiment: As a record has it. Fields with their default value do not count, so
        that records outlive fields that are added later; nor does the place of the
        data.
    """
    chosen = {
        name: value
        for name, value in experiment.items()
        if name != _PLACE and value != _DEFAULTS.get(name)
    }
    text = json.dumps(chosen, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def tasks(study: Study, scale: Scale) -> list[Task]:
    """All runs of a study, in the order in which they are to be done.

    Group by group, so that the main part comes first; in it network by network, in
    the order of the scale, so that a study that is stopped early has some networks in
    full; of a network seed by seed; of a seed all arms, one after the other.

    Raises:
      ConfigError: If the scale, a network or an arm makes no sense.
    """
    if scale.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {scale.seeds}")
    names = [arm.name for arm in study.arms]
    wanted = names if scale.arms is None else scale.arms
    if unknown := sorted(set(wanted) - set(names)):
        raise ConfigError(
            f"--arms {' '.join(unknown)}: {study.name} has no such arm, but "
            f"{', '.join(names)}"
        )
    arms = [arm for arm in study.arms if arm.name in wanted]
    configs = {
        (model, arm.name): configure(study, scale, model, arm)
        for model in scale.models
        for arm in arms
    }
    return [
        Task(arm, dataclasses.replace(configs[model, arm.name], seed=seed))
        for group in dict.fromkeys(arm.group for arm in arms)
        for model in dict.fromkeys(scale.models)
        for seed in range(scale.first_seed, scale.first_seed + scale.seeds)
        for arm in arms
        if arm.group == group
    ]


def configure(study: Study, scale: Scale, model: str, arm: Arm) -> Config:
    """The configuration of an arm's runs, with seed 0.

    Raises:
      ConfigError: If it makes no sense.
    """
    base = {
        **PRESETS.get(study.preset or "", {}),
        **study.fields,
        **study.model_fields.get(model, {}),
        **scale.fields,
    }
    fields = {**arm.fields, "model": model}
    config = config_lib.resolve(fields, base)
    if arm.derived is not None:
        config = config_lib.resolve({**fields, **arm.derived(config)}, base)
    return config


def find(task: Task, folder: Path) -> Record | None:
    """The record of a run that has been done, or None.

    Args:
      task: The run.
      folder: The study's.

    Raises:
      RunError: If the record is damaged.
    """
    path = record_path(task, folder)
    if not path.exists():
        return None
    try:
        record = Record.read(path)
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}): remove it, and its run is done again"
        ) from error
    wanted = fingerprint(task.described)
    return record if fingerprint(record.config) == wanted else None


def finished(tasks: Sequence[Task], folder: Path) -> list[Record]:
    """The records of the runs that have been done."""
    found = (find(task, folder) for task in tasks)
    return [record for record in found if record is not None]


def record_path(task: Task, folder: Path) -> Path:
    """Where the record of a run belongs in a study's folder."""
    return folder / "records" / f"{task.name}.json"


def write_scale(scale: Scale, folder: Path) -> None:
    """Notes at which scale a study runs in a folder."""
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        told = dataclasses.asdict(scale)
        told["fields"] = {n: v for n, v in scale.fields.items() if n != _PLACE}
        text = json.dumps(told, indent=1)
        (folder / _SCALE).write_text(text + "\n", encoding="utf-8")


def read_scale(folder: Path) -> Scale:
    """The scale at which a study was last run in a folder.

    Raises:
      RunError: If none was.
    """
    path = folder / _SCALE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        models, arms = tuple(fields.pop("models")), fields.pop("arms")
        return Scale(models=models, arms=arms and tuple(arms), **fields)
    except OSError as error:
        raise RunError(f"{folder} holds no run of the study: run it first") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged ({error}): run the study again") from error


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Tells in a sentence when a study's folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}): choose another --out, or "
            f"make room; what is recorded stays"
        ) from error
