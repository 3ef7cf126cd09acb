"""Carries out a study: its runs that are not recorded yet, while there is time."""

import contextlib
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from experiments.records import Record, RecordFile
from experiments.study import Outcome, Scale, Study, Task, Tick, missing
from experiments.trainer import Trainer
from training.errors import ConfigError, DivergedError
from training.run.display import Terminal


class _OutOfTimeError(Exception):
    """The budget ends."""


def run(
    study: Study,
    scale: Scale,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    budget_minutes: float | None = None,
) -> int:
    """Carries out the runs of a study that are not recorded yet.

    The budget ends a run that is under way. A run of the training recipe that is not
    observed is resumed by the next call; others start again.

    Args:
      study: The study.
      scale: How large.
      folder: The study's folder, for its records.
      settings: Fields of a configuration that do not change what runs compute.
      budget_minutes: Time for all, with compilation, which is not interrupted. None
        for no limit.

    Returns:
      How many runs of this scale are not recorded: 0 unless the budget ended.

    Raises:
      UserError: If the configuration, the data or the folder do not allow it.
    """
    if budget_minutes is not None and not budget_minutes > 0:
        raise ConfigError(f"--budget-minutes must be positive, got {budget_minutes}")
    deadline = time.monotonic() + 60 * (budget_minutes or math.inf)
    tasks = study.tasks(scale)
    header = study.header(scale)
    file = RecordFile(folder)
    file.append(header)
    left = missing(tasks, file.read())
    ready = (
        Trainer(study, folder, settings or {}).ready
        if study.execute is None
        else functools.partial(_own, study.execute, settings or {})
    )
    durations: dict[tuple[str, str], float] = {}
    under_way: Task | None = None

    def check_time() -> None:
        if time.monotonic() >= deadline:
            raise _OutOfTimeError

    def tick(part: float, text: str) -> None:
        display.tick(part, text)
        if part < 1:  # else all the work is done, and only its record is missing
            check_time()

    with _Display(len(tasks), len(tasks) - len(left)) as display:
        try:
            for task in list(left):
                check_time()
                display.begin(task, "compiling")
                with ready(task) as execute:
                    check_time()
                    display.begin(task, "starting")
                    under_way, start = task, time.monotonic()
                    outcome = execute(tick)
                    under_way, seconds = None, time.monotonic() - start
                    record = Record(task.arm.name, *task[1:], *outcome, seconds)
                    file.append(header, record)
                durations[task.model, task.arm.name] = seconds
                left.remove(task)
                display.end(record, _expected(left, durations))
        except _OutOfTimeError:
            if under_way is not None:
                resumes = study.execute is None and study.observe is None
                what = "will be resumed" if resumes else "has to start again"
                display.say(f"the budget ended within a run: {under_way} {what}")
            display.say(
                f"{len(tasks) - len(left)} of {len(tasks)} runs are recorded: give the "
                f"same command to continue"
            )
    return len(left)


@contextlib.contextmanager
def _own(
    execute: Callable[[dict[str, Any], Tick], Outcome],
    settings: Mapping[str, Any],
    task: Task,
) -> Iterator[Callable[[Tick], Outcome]]:
    """Yields a function that carries out a run in the study's own way."""

    def run(tick: Tick) -> Outcome:
        try:
            return execute({**settings, **task.config, "seed": task.seed}, tick)
        except DivergedError as error:
            return Outcome({"diverged": str(error)}, [], {})

    yield run


def _expected(
    tasks: Sequence[Task], durations: Mapping[tuple[str, str], float]
) -> float:
    """Seconds that runs will take, judged by the ones most like them.

    Args:
      tasks: The runs.
      durations: How long runs of this call took, by network and arm.
    """

    def typical(task: Task) -> float:
        alike = [s for (model, _), s in durations.items() if model == task.model]
        mean = statistics.fmean(alike or durations.values() or [0.0])
        return durations.get((task.model, task.arm.name), mean)

    return sum(map(typical, tasks))


# -- Display ---------------------------------------------------------------------------

_SECONDS_BETWEEN_LINES = 60  # without a terminal


class _Display:
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
        # Time and part of the run's first tick.
        self._first: tuple[float, float] | None = None

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
        """Shows how far the run is, 0 to 1, and a text: ``epoch 2/6, loss 1.83``."""
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
        """Reports a finished run; the others are expected to take ``left`` seconds."""
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


# -- Plans -----------------------------------------------------------------------------


def describe(
    study: Study, scale: Scale, folder: Path, settings: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the lines of a plan: arms, runs, and expected hours.

    The time is measured on a few steps of each network's first arm, on this machine.
    It leaves out what the study observes, and evaluations on the test set.

    Raises:
      UserError: If the configuration, the data or the records do not allow it.
    """
    tasks = study.tasks(scale)
    file = RecordFile(folder)
    left = missing(tasks, file.read() if file.path.exists() else [])
    arms = {task.arm.name: task.arm for task in tasks}
    yield f"{study.title}, scale {scale.name}"
    if scale.fields:
        yield ", ".join(f"{name} {value}" for name, value in scale.fields.items())
    yield from (f"  {name}: {arm.label}" for name, arm in arms.items())
    yield f"{len(tasks) - len(left)} of {len(tasks)} runs recorded already in {folder}"
    total = 0.0
    for model in dict.fromkeys(task.model for task in left):
        ours = [task for task in left if task.model == model]
        count = sum(scale.runs(arm, model) for arm in arms.values())
        line = f"{model}: {count} arms x {scale.seeds} seeds, {len(ours)} runs to do"
        # A cascade's stages cannot be measured before those before them.
        measured = [task for task in ours if "cascade" not in task.config]
        if study.execute is None and measured:
            compiling, running = Trainer(study, folder, settings).measure(measured[0])
            programs = len({task.arm.name for task in ours})
            expected = programs * compiling + len(ours) * running
            total += expected
            line += (
                f", {describe_seconds(running)} each and {describe_seconds(compiling)} "
                f"to compile an arm: {_hours(expected)}"
            )
        yield line
    if total:
        yield (
            f"about {_hours(total)} in all on this machine, by a few measured "
            f"steps of each network's first arm, without what the study observes and "
            f"evaluations on the test set"
        )


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.2g} hours"
