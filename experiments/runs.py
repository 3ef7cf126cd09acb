"""A study's records, looked up by network and arm."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import style
from experiments.records import Header, Record
from experiments.study import Study
from training.errors import RunError
from training.settings.config import fields, resolve


class Runs:
    """What a study declares and what was run of it, at one scale.

    Attributes:
      study: The study.
      records: All of its finished and diverged runs.
      models: The networks that were trained, in the order of the scale.
      kind: What ``models`` are: networks, or setups of a study that does not use the
        training recipe.
      datasets: The data sets that they were trained on.
      looks: How to draw the arms, by name.
    """

    def __init__(self, study: Study, header: Header, records: Sequence[Record]) -> None:
        """Takes a study's records and the header of their file.

        Raises:
          RunError: If an arm has two runs with the same seed.
        """
        self.study = study
        self.looks = style.looks(study)
        self.records = sorted(records, key=lambda r: (r.model, r.arm, r.seed))
        self._by_arm: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            runs = self._by_arm.setdefault((record.model, record.arm), [])
            if runs and runs[-1].seed == record.seed:
                raise RunError(
                    f"there are two {record.model} runs of {record.arm} with seed "
                    f"{record.seed}: report on one scale at a time"
                )
            runs.append(record)
        ran = {record.model for record in records}
        self.models = tuple(model for model in header.models if model in ran)
        self.kind = "network" if study.execute is None else "setup"
        datasets = (self.config(r).get("dataset") for r in self.records)
        self.datasets = tuple(dict.fromkeys(filter(None, datasets)))

    def config(self, record: Record) -> dict[str, Any]:
        """The complete configuration of a run."""
        return self.complete(record.config)

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A recorded configuration with the defaults that it leaves out."""
        if self.study.execute is not None:  # of its own kind, and complete
            return dict(config)
        return fields(resolve(config))

    def place(self, model: str) -> str:
        """The network and the data set, for titles: ``resnet18 on digits``."""
        return " on ".join(filter(None, (model, ", ".join(self.datasets))))

    def label(self, arm: str) -> str:
        """What reports call an arm."""
        return self.study.arm(arm).label

    def of(self, model: str, arm: str) -> list[Record]:
        """All runs of an arm, by seed."""
        return self._by_arm.get((model, arm), [])

    def finished(self, model: str, arm: str) -> list[Record]:
        """The runs that did not diverge, by seed."""
        return [r for r in self.of(model, arm) if not r.diverged]

    def diverged(self, model: str, arm: str) -> list[Record]:
        """The runs that diverged, by seed."""
        return [r for r in self.of(model, arm) if r.diverged]

    def pairs(self, model: str, arm: str, control: str) -> list[tuple[Record, Record]]:
        """The runs of two arms on the seeds that both have, diverged ones included."""
        controls = {r.seed: r for r in self.of(model, control)}
        return [
            (r, controls[r.seed]) for r in self.of(model, arm) if r.seed in controls
        ]

    def count(self, model: str, arm: str) -> str:
        """How many runs finished and how many diverged: ``2, 1 diverged``."""
        diverged = len(self.diverged(model, arm))
        finished = len(self.finished(model, arm))
        return f"{finished}, {diverged} diverged" if diverged else f"{finished}"

    def values(self, model: str, arm: str, name: str) -> np.ndarray:
        """A result of the finished runs that have it, by seed: ``[runs]``."""
        results = [r.result.get(name) for r in self.finished(model, arm)]
        return np.array([x for x in results if x is not None], np.float64)


def history(record: Record, name: str) -> np.ndarray:
    """A metric of a run by epoch: ``[epochs]``, NaN where there is none."""
    return np.array([m.get(name) for m in record.history], np.float64)
