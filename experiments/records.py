"""What a study keeps of a finished run: one JSON file each."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
      arm: The name of its arm.
      model: The network.
      seed: The seed, which pairs it with the other arms' runs.
      config: What the run computed: ``training.config.experiment``.
      result: Its ``result.json``: ``best_epoch``, ``validation_loss`` (of that epoch),
        ``test_loss``, ``test_accuracy``, ``test_top1_error``, ``test_top5_error``,
        ``train_seconds``, ``epochs``, ``steps``, ``device``, versions. A run that
        diverged has ``{"diverged": the reason}`` instead.
      history: Its ``metrics.jsonl``, an epoch an entry: ``epoch``, ``step``,
        ``train_loss``, ``train_accuracy``, ``validation_loss``,
        ``validation_accuracy``, ``learning_rate``, norms, and with amplification
        ``amplified`` (names of layers) and ``analysis`` (rows, or None).
      measures: What a study's own watcher measured, by name.
    """

    arm: str
    model: str
    seed: int
    config: dict[str, Any]
    result: dict[str, Any]
    history: list[dict[str, Any]]
    measures: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the run ended early because its loss was no longer finite."""
        return "diverged" in self.result

    def write(self, path: Path) -> None:
        """Writes the record, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        fields = json.dumps(dataclasses.asdict(self), indent=1)
        temporary.write_text(fields + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a record."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
