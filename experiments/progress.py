"""What a study shows while it runs: a bar over all runs, and a line for each run."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from experiments.plan import Task
from experiments.records import Record
from training.run.display import Terminal

_SECONDS_BETWEEN_LINES = 60  # without a terminal


class Display:
    """A progress bar over a study's runs; without a terminal a line a minute.

    Use as a context manager around the runs.
    """

    def __init__(self, total: int, done: int) -> None:
        """Takes how many runs there are, and how many of them are recorded."""
        # The file is kept, as runs redirect sys.stdout.
        self._console = Terminal(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._total, self._done = total, done
        self._bar = self._progress.add_task("", total=total, completed=done)
        self._name = ""
        self._last_line = 0.0
        self._first: tuple[float, float] | None = (
            None  # time and part of the first tick
        )

    def __enter__(self) -> Self:
        self.say(f"{self._done} of {self._total} runs recorded already")
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False)

    def begin(self, task: Task, what: str) -> None:
        """Shows what is under way: ``compiling``, ``starting``."""
        self._name = str(task)
        self._last_line, self._first = time.monotonic(), None
        self._progress.update(self._bar, description=f"{self._name}: {what}")

    def tick(self, part: float, text: str) -> None:
        """Shows how far the run is.

        Args:
          part: The finished part of it, 0 to 1.
          text: Such as ``epoch 2/6, loss 1.83``.
        """
        now = time.monotonic()
        begun, begun_part = self._first = self._first or (now, part)
        if part > begun_part:
            left = (now - begun) * (1 - part) / (part - begun_part)
            text = f"{text}, {describe_seconds(left)} left"
        text = f"{self._name}: {text}"
        self._progress.update(self._bar, completed=self._done + part, description=text)
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            if not self._console.is_terminal:
                self.say(text)

    def end(self, record: Record, left: float) -> None:
        """Reports a finished run.

        Args:
          record: What came of it.
          left: How many seconds the remaining runs are expected to take.
        """
        self._done += 1
        outcome = "finished"
        if record.diverged:
            outcome = "diverged"
        elif "test_accuracy" in record.result:
            outcome = f"test accuracy {record.result['test_accuracy']:.2%}"
        parts = [
            f"{self._done}/{self._total} {self._name}: {outcome}",
            describe_seconds(record.seconds),
        ]
        if left >= 1:
            parts.append(f"all: about {describe_seconds(left)} left")
        self._progress.update(self._bar, completed=self._done)
        self.say(", ".join(parts))


def describe_seconds(seconds: float) -> str:
    """A duration in the unit that suits it: ``3.2 s``, ``4 min``, ``2.5 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
