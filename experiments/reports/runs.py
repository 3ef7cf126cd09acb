"""A study's records, looked up by network and arm."""

from collections.abc import Sequence

import numpy as np

from experiments.records import Record
from experiments.study import Study

NOT_RUN = "not run"


class Runs:
    """What a study asked for and what was run of it.

    Attributes:
      study: The study.
      records: All of its finished and diverged runs.
      models: The networks that were trained, in the study's order.
    """

    def __init__(self, study: Study, records: Sequence[Record]) -> None:
        """Takes a study's records, all of one scale."""
        self.study = study
        self.records = sorted(records, key=lambda r: (r.model, r.arm, r.seed))
        ran = {record.model for record in records}
        known = [model for model in study.full.models if model in ran]
        self.models = tuple(dict.fromkeys((*known, *sorted(ran))))

    def by_arm(self) -> dict[tuple[str, str], list[Record]]:
        """All runs by network and arm."""
        found: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            found.setdefault((record.model, record.arm), []).append(record)
        return found

    def of(self, model: str, arm: str) -> list[Record]:
        """All runs of an arm, by seed."""
        return [r for r in self.records if (r.model, r.arm) == (model, arm)]

    def finished(self, model: str, arm: str) -> list[Record]:
        """The runs that did not diverge, by seed."""
        return [r for r in self.of(model, arm) if not r.diverged]

    def diverged(self, model: str, arm: str) -> list[Record]:
        """The runs that diverged, by seed."""
        return [r for r in self.of(model, arm) if r.diverged]

    def absence(self, model: str, arm: str) -> str:
        """What to say of an arm without a finished run; empty if it has one."""
        if self.finished(model, arm):
            return ""
        diverged = len(self.diverged(model, arm))
        return f"diverged ({diverged} of {diverged})" if diverged else NOT_RUN

    def count(self, model: str, arm: str) -> str:
        """How many runs finished and how many diverged: ``2, 1 diverged``."""
        finished, diverged = self.finished(model, arm), self.diverged(model, arm)
        return f"{len(finished)}" + (f", {len(diverged)} diverged" if diverged else "")

    def label(self, model: str, arm: str) -> str:
        """The arm's label, with the count of diverged runs if there are any."""
        label = self.study.arm(arm).label
        diverged = len(self.diverged(model, arm))
        total = len(self.of(model, arm))
        return f"{label} ({diverged} of {total} diverged)" if diverged else label

    def values(self, model: str, arm: str, name: str) -> np.ndarray:
        """A result of each finished run, by seed: ``[runs]``, NaN where it is None."""
        results = [r.result.get(name) for r in self.finished(model, arm)]
        return np.array(results, np.float64)

    def paths(self, model: str, arm: str, name: str) -> dict[int, np.ndarray]:
        """A metric of each finished run by epoch: ``[epochs]`` a seed."""
        return {r.seed: history(r, name) for r in self.finished(model, arm)}


def history(record: Record, name: str) -> np.ndarray:
    """A metric of a run by epoch: ``[epochs]``, NaN where it is None."""
    return np.array([m.get(name) for m in record.history], np.float64)
