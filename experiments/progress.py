"""What a study shows while it runs: a bar over all runs, and a line a run."""

import sys
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from experiments.plan import Task
from experiments.records import Record
from training.display import Terminal


class Display:
    """A progress bar over a study's runs; without a terminal only the lines.

    Use as a context manager around the runs.
    """

    def __init__(self, total: int, done: int) -> None:
        # The file is kept, as runs redirect sys.stdout.
        self._console = Terminal(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._total, self._done = total, done
        self._bar = self._progress.add_task("", total=total, completed=done, left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, task: Task) -> None:
        """Shows which run is under way."""
        self._progress.update(self._bar, description=str(task))

    def end(self, task: Task, record: Record, seconds: float, left: float) -> None:
        """Tells of a finished run.

        Args:
          task: The run.
          record: What came of it.
          seconds: How long it took.
          left: How long those that are left are expected to take.
        """
        self._done += 1
        outcome = "diverged"
        if not record.diverged:
            outcome = f"test accuracy {record.result['test_accuracy']:.2%}"
        parts = [f"{self._done}/{self._total} {task}: {outcome}", _time(seconds)]
        if left >= 1:
            parts.append(f"about {_time(left)} left")
        self._progress.update(self._bar, completed=self._done, left=" ".join(parts[2:]))
        self._console.print(", ".join(parts), markup=False)


def _time(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
