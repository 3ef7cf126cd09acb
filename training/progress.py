"""How far a run has come: with the training state, all that it needs to go on."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """A position in a run, and what has been seen on the way.

    Attributes:
      epoch: Epochs that are complete: trained, evaluated and recorded.
      step: Steps of the epoch under way, those left out included.
      sums: Sums of the training metrics over these steps.
      seconds: Time these steps took.
      train_seconds: Time that the steps of complete epochs took.
      history: The complete epochs' lines of ``metrics.jsonl``.
      tables: Title and text of each table of ``layers.txt``.
      best: ``epoch`` and ``loss`` of the best epoch so far; empty before the first.
      amplified: Names of the layers that the epoch under way began to amplify.
      selections: How many selections of layers there had been when it began.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    train_seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tables: list[list[str]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    amplified: list[str] = dataclasses.field(default_factory=list)
    selections: int = 0

    @property
    def name(self) -> str:
        """Names sort as positions follow each other."""
        return f"epoch-{self.epoch:05d}-step-{self.step:08d}"

    def add(self, metrics: dict[str, float], steps: int) -> None:
        """Counts steps of the epoch under way, with the sums of their metrics."""
        self.step += steps
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, metrics: dict[str, Any]) -> None:
        """Turns to the next epoch; ``metrics`` is this one's line."""
        self.history.append(metrics)
        self.train_seconds += self.seconds
        self.epoch += 1
        self.step, self.sums, self.seconds = 0, {}, 0.0
