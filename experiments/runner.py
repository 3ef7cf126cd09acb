"""Carries out the runs of a study that are not recorded yet, while there is time."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import plan
from experiments.plan import Task
from experiments.progress import Display
from experiments.records import Record, RecordFile
from experiments.study import Outcome, Scale, Study, Tick
from experiments.trainer import Trainer
from training.errors import ConfigError, DivergedError


class _OutOfTimeError(Exception):
    """The budget ends."""


class _Own:
    """Carries out the runs of a study in the study's own way."""

    resumes = False

    def __init__(
        self,
        execute: Callable[[dict[str, Any], Tick], Outcome],
        settings: Mapping[str, Any],
    ) -> None:
        self._execute = execute
        self._settings = settings

    def prepare(self, task: Task) -> float:
        return 0.0

    def execute(self, task: Task, tick: Tick) -> Outcome:
        try:
            return self._execute(
                {**self._settings, **task.config, "seed": task.seed}, tick
            )
        except DivergedError as error:
            return Outcome({"diverged": str(error)}, [], {})

    def discard(self, task: Task) -> None:
        pass


def make_executor(
    study: Study, folder: Path, settings: Mapping[str, Any]
) -> Trainer | _Own:
    """What carries out the study's runs: the training recipe, or its own function.

    Args:
      study: The study.
      folder: Its folder.
      settings: Fields of a configuration that do not change what runs compute.
    """
    if study.execute is None:
        return Trainer(study, folder, settings)
    return _Own(study.execute, settings or {})


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
    observed is resumed by the next call; others start again. A paired block, all arms
    of a network and a seed, is not begun unless it is expected to end within the
    budget, as far as earlier runs of this call let one expect.

    Args:
      study: What to run.
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
    tasks = plan.tasks(study, scale)
    header = plan.header(study, scale)
    file = RecordFile(folder)
    file.append(header)
    left = plan.missing(tasks, file.read())
    executor = make_executor(study, folder, settings or {})
    durations = _Durations()
    under_way: Task | None = None

    def check_time(seconds: float = 0.0) -> None:
        if time.monotonic() + seconds >= deadline:
            raise _OutOfTimeError

    def tick(part: float, text: str) -> None:
        display.tick(part, text)
        check_time()

    with Display(len(tasks), len(tasks) - len(left)) as display:
        try:
            for _, block in itertools.groupby(list(left), key=lambda task: task.block):
                paired = list(block)
                check_time(durations.expected(paired))
                for task in paired:
                    check_time(durations.expected([task]))
                    display.begin(task, "compiling")
                    executor.prepare(task)
                    check_time()
                    display.begin(task, "starting")
                    under_way, start = task, time.monotonic()
                    outcome = executor.execute(task, tick)
                    under_way, seconds = None, time.monotonic() - start
                    record = Record(
                        task.arm.name,
                        task.model,
                        task.seed,
                        task.config,
                        *outcome,
                        seconds,
                    )
                    file.append(header, record)
                    executor.discard(task)
                    durations.add(task, seconds)
                    left.remove(task)
                    display.end(record, durations.expected(left))
        except _OutOfTimeError:
            if under_way is not None:
                what = "will be resumed" if executor.resumes else "has to start again"
                display.say(f"the budget ended within a run: {under_way} {what}")
            display.say(
                f"{len(tasks) - len(left)} of {len(tasks)} runs are recorded: give the "
                f"same command to continue"
            )
    return len(left)


class _Durations:
    """How long the runs of this call took."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}

    def add(self, task: Task, seconds: float) -> None:
        """Notes how long a run took."""
        self._seconds[task.model, task.arm.name] = seconds

    def expected(self, tasks: Sequence[Task]) -> float:
        """Seconds that runs will take, judged by the ones most like them."""
        return sum(map(self._typical, tasks))

    def _typical(self, task: Task) -> float:
        key = (task.model, task.arm.name)
        if key in self._seconds:
            return self._seconds[key]
        alike = [s for (model, _), s in self._seconds.items() if model == task.model]
        return statistics.fmean(alike or self._seconds.values() or [0.0])
