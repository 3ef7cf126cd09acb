"""Does the runs that are missing of a study, while there is time."""

import contextlib
import dataclasses
import itertools
import math
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import train
from experiments import plan
from experiments.plan import Task
from experiments.progress import Display
from experiments.records import Record
from experiments.study import Scale, Study
from training import records
from training.config import Config
from training.errors import ConfigError, DivergedError
from training.loop import Loop

# Looks on during a run, and has a dict `measures`; None for a run without.
MakeWatcher = Callable[[train.Program, Config], Any]


def run(
    study: Study,
    scale: Scale,
    folder: Path,
    *,
    make_watcher: MakeWatcher = lambda program, config: None,
    budget_minutes: float | None = None,
) -> list[Record]:
    """Does the runs of a study that have no record yet.

    A paired block, all arms of a network and a seed, is not begun unless it is
    expected to end within the budget; only the first of a call is, of which nothing is
    known yet, so that every call gets on. A run that is still under way when the
    budget ends is left, and taken up by the next call; a watched run begins anew then,
    so the first of a call is let end.

    Args:
      study: What to run.
      scale: How large.
      folder: The study's folder, for its records.
      make_watcher: The study's own.
      budget_minutes: Time for all, compilation included; None for no limit.

    Returns:
      The records of all runs of this scale, as many as there are.

    Raises:
      UserError: If the configuration, the data or the folder do not allow it.
    """
    if budget_minutes is not None and not budget_minutes > 0:
        raise ConfigError(f"--budget-minutes must be positive, got {budget_minutes}")
    deadline = time.monotonic() + 60 * (budget_minutes or math.inf)
    tasks = plan.tasks(study, scale)
    plan.write_scale(scale, folder)
    missing = [task for task in tasks if plan.find(task, folder) is None]
    runner = _Runner(folder, make_watcher, deadline)
    with (
        contextlib.suppress(_OutOfTimeError),
        Display(len(tasks), len(tasks) - len(missing)) as display,
    ):
        left = missing
        for _, block in itertools.groupby(missing, key=lambda task: task.block):
            paired = list(block)
            runner.check_time(paired)
            for task in paired:
                runner.check_time([task])
                display.begin(task)
                start = time.monotonic()
                record = runner.do(task)
                left = left[1:]
                seconds = time.monotonic() - start
                display.end(task, record, seconds, runner.expected(left))
    with contextlib.suppress(OSError):  # unless a run was left
        (folder / "runs").rmdir()
    return plan.finished(tasks, folder)


class _OutOfTimeError(Exception):
    """The budget ends."""


class _Runner:
    """Does runs, one at a time, and knows how long they take.

    Compiled programs are kept while the arms of one network take turns: not longer, as
    each holds the training set and a training state on the devices.
    """

    def __init__(
        self, folder: Path, make_watcher: MakeWatcher, deadline: float
    ) -> None:
        self._folder = folder
        self._make_watcher = make_watcher
        self._deadline = deadline
        self._programs: dict[_Key, train.Program] = {}
        self._compilations = _Durations()
        self._runs = _Durations()

    def expected(self, tasks: Sequence[Task]) -> float:
        """Seconds that runs will take, by those that are done; 0 if there are none."""
        to_compile = {_Key.of(task): task for task in tasks}
        return sum(self._runs.typical(task) for task in tasks) + sum(
            self._compilations.typical(task)
            for key, task in to_compile.items()
            if key not in self._programs
        )

    def check_time(self, tasks: Sequence[Task]) -> None:
        """Raises _OutOfTimeError unless runs are expected to end within the budget."""
        if time.monotonic() + self.expected(tasks) >= self._deadline:
            raise _OutOfTimeError

    def do(self, task: Task) -> Record:
        """Does a run, writes its record, and removes what else it left."""
        place = self._folder / "runs" / task.name
        with plan.explained(self._folder):
            place.mkdir(parents=True, exist_ok=True)
            log = (place / "log.txt").open("a", encoding="utf-8")
        with log, contextlib.redirect_stdout(log):
            record = self._record(task, place / "run")
        with plan.explained(self._folder):
            record.write(plan.record_path(task, self._folder))
            shutil.rmtree(place)
        return record

    def _record(self, task: Task, workdir: Path) -> Record:
        program = self._program(task)
        own = self._make_watcher(program, task.config)
        config = dataclasses.replace(
            task.config,
            workdir=str(workdir),
            # Most runs take seconds, and saving every epoch would take as long.
            checkpoint_epochs=0,
            checkpoint_minutes=1.0,
            # A watcher has to see a run from its beginning.
            overwrite=own is not None,
        )
        # A watched run begins anew in the next call: so the first of a call may end
        # late, or no call would get on.
        spared = own is not None and self._runs.is_empty
        deadline = math.inf if spared else self._deadline
        watcher = _Deadline(own or train.Watcher(), deadline)
        with self._runs.measured(task):
            try:
                result = train.run(program, config, watcher)
            except DivergedError as error:
                result = {"diverged": str(error)}
        metrics, seed = workdir / records.METRICS, config.seed
        assert isinstance(seed, int)
        return Record(
            arm=task.arm.name,
            model=config.model,
            seed=seed,
            config=task.described,
            result=result,
            history=records.read_metrics(workdir) if metrics.exists() else [],
            measures=own.measures if own is not None else {},
        )

    def _program(self, task: Task) -> train.Program:
        key = _Key.of(task)
        if key not in self._programs:
            self._programs = {
                other: program
                for other, program in self._programs.items()
                if other.part == key.part and other.arm != key.arm
            }
            with self._compilations.measured(task):
                self._programs[key] = train.prepare(task.config)
        return self._programs[key]


class _Key(NamedTuple):
    """What runs share that one compiled program serves."""

    part: tuple[str, str]
    arm: str
    seed: int | tuple[int, ...] | None

    @classmethod
    def of(cls, task: Task) -> Self:
        # Random layers are drawn inside the compiled step, by the seed.
        is_random = task.config.amplify_select == "random"
        return cls(task.part, task.arm.name, task.config.seed if is_random else None)


class _Deadline(train.Watcher):
    """Ends a run when the time is up; passes on what happens to a study's watcher."""

    def __init__(self, own: train.Watcher, deadline: float) -> None:
        self._own = own
        self._deadline = deadline

    def after_call(self, loop: Loop) -> None:
        self._own.after_call(loop)
        if time.monotonic() > self._deadline:
            raise _OutOfTimeError

    def after_epoch(self, loop: Loop, metrics: dict[str, Any]) -> None:
        self._own.after_epoch(loop, metrics)


class _Durations:
    """How long something took, in seconds."""

    def __init__(self) -> None:
        self._seen: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured yet."""
        return not self._seen

    @contextlib.contextmanager
    def measured(self, task: Task) -> Iterator[None]:
        """Measures what happens inside, if it ends well."""
        start = time.monotonic()
        yield
        for kind in _kinds(task):
            self._seen[kind].append(time.monotonic() - start)

    def typical(self, task: Task) -> float:
        """The median over the runs that are most like this one; 0 without any."""
        for kind in _kinds(task):
            if kind in self._seen:
                return statistics.median(self._seen[kind])
        return 0.0


def _kinds(task: Task) -> list[tuple[str, ...]]:
    return [(task.config.model, task.arm.name), (task.config.model,), ()]
