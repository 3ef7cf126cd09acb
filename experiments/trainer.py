"""Carries out the runs of studies that use the training recipe."""

import contextlib
import dataclasses
import functools
import io
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.records import explained
from experiments.study import Outcome, Study, Task, Tick
from training import cascade, data, recipe
from training.engine import networks, parallel
from training.engine.engine import Engine
from training.engine.state import TrainState
from training.errors import DivergedError
from training.layout import File
from training.recipe import Prepared
from training.run import workdir
from training.run.callbacks import Callback
from training.settings import config as config_lib
from training.settings.config import Config


class Trainer:
    """Trains, one run at a time.

    Compiled programs are kept while the arms of one network take turns; not longer,
    as each holds the training set and a training state on the devices.
    """

    def __init__(self, study: Study, folder: Path, settings: Mapping[str, Any]) -> None:
        """Takes what to train, and the study's folder, for unfinished runs in ``runs``.

        ``settings`` are fields of a configuration that do not change what runs compute:
        ``data_dir``.
        """
        self._observe = study.observe
        self._unfinished = folder / "runs"
        self._settings = settings
        # By part, the arm's name and the seed, which is None where it does not matter.
        self._programs: dict[tuple[Any, str, int | None], recipe.Kept] = {}

    @contextlib.contextmanager
    def ready(self, task: Task) -> Iterator[Callable[[Tick], Outcome]]:
        """Compiles what a run needs, and yields a function that carries it out.

        The output of training goes to ``log.txt`` in the folder of the unfinished run.
        The folder is removed at the end, unless there is an error.

        Raises:
          UserError: If the data or the folder do not allow it.
        """
        programs = self._prepare(task)
        yield functools.partial(self._train, task, programs)
        with explained(self._unfinished):
            shutil.rmtree(self._unfinished / task.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # other runs are unfinished
                self._unfinished.rmdir()

    def _prepare(self, task: Task) -> recipe.Kept:
        """Compiles what a run needs, unless an earlier run left it."""
        config = self._config(task)
        parallel.split_cpu(config)
        seed = task.seed if recipe.depends_on_seed(config) else None
        key = (task.part, task.arm.name, seed)
        if key not in self._programs:
            if is_crowded():
                self._programs = {}
                jax.clear_caches()
            # Frees the rest before the next is compiled.
            self._programs = {
                (part, arm, of): programs
                for (part, arm, of), programs in self._programs.items()
                if part == task.part and arm != task.arm.name
            }
            programs: recipe.Kept = {}
            if config.cascade is None:  # else each stage is compiled in its turn
                with contextlib.redirect_stdout(io.StringIO()):
                    programs[None] = recipe.prepare(config)
            self._programs[key] = programs
        return self._programs[key]

    def _train(self, task: Task, programs: recipe.Kept, tick: Tick) -> Outcome:
        place = self._unfinished / task.folder
        config = dataclasses.replace(
            self._config(task),
            workdir=str(place / "run"),
            # Most runs take seconds, and saving every epoch would take as long.
            checkpoint_epochs=0,
            checkpoint_minutes=1.0,
            draw=False,
            # An observer has to see a run from its beginning.
            overwrite=self._observe is not None,
        )
        observer = self._observe and self._observe(programs.get(None), config)
        callback = _Ticking(observer or Callback(), config, tick)
        with explained(place):
            place.mkdir(parents=True, exist_ok=True)
            log = (place / "log.txt").open("a", encoding="utf-8")
        with log, contextlib.redirect_stdout(log):
            try:
                (result,) = recipe.train([config], callback, programs)
            except DivergedError as error:
                result = {"diverged": str(error)}
        has_metrics = (place / "run" / File.METRICS).exists()
        history = workdir.read_metrics(place / "run") if has_metrics else []
        return Outcome(result, history, observer.measures if observer else {})

    def measure(self, task: Task, seconds: float = 5.0) -> tuple[float, float]:
        """Estimates how long a run takes, from a few of its steps.

        Returns:
          Seconds of loading and compilation, and of training with an evaluation after
          each epoch.
        """
        start = time.monotonic()
        prepared = self._prepare(task)[None]
        compilation = time.monotonic() - start
        engine = prepared.engine
        with networks.precision(self._config(task)):
            calls = _calls(prepared, task.seed)
            next(calls)  # the first call is slower
            start, steps = time.monotonic(), 0
            while not steps or time.monotonic() - start < seconds:
                state, taken = next(calls)
                steps += taken
            training = (time.monotonic() - start) / steps * prepared.plan.last_step
            start = time.monotonic()
            engine.evaluate(state.variables, prepared.dataset.validation)
            evaluation = (time.monotonic() - start) * prepared.plan.epochs
        return compilation, training + evaluation

    def _config(self, task: Task) -> Config:
        return config_lib.resolve({**task.config, **self._settings})


def is_crowded() -> bool:
    """Whether compiled programs take most of the memory maps that Linux allows."""
    maps = Path("/proc/self/maps")
    return maps.exists() and maps.read_bytes().count(b"\n") > 40_000  # of 65,530


class _Ticking(Callback):
    """Reports progress after the study's observer has had its turn."""

    def __init__(self, observer: Callback, config: Config, tick: Tick) -> None:
        self._observer = observer
        self._tick = tick
        self._stages = (
            1 if config.cascade is None else len(cascade.stage_configs(config))
        )
        self._stage = 0
        self._loss = ""

    def on_start(self, config: Config, engine: Engine, dataset: data.Dataset) -> None:
        """See :class:`Callback`."""
        self._observer.on_start(config, engine, dataset)
        self._stage = config.cascade_stage or 1
        self._epochs = recipe.count_steps(config, dataset).epochs
        self._epoch: int | None = None  # unknown until the first call, if resumed
        self._calls = 0
        self._steps_per_epoch = engine.steps_per_epoch
        self._calls_per_epoch = self._steps_per_epoch

    def on_call(self, state: TrainState) -> None:
        """See :class:`Callback`."""
        self._observer.on_call(state)
        if self._epoch is None:
            self._epoch = int(state.step - 1) // self._steps_per_epoch
        self._calls += 1
        self._report()

    def on_epoch(self, state: TrainState, metrics: dict[str, Any]) -> None:
        """See :class:`Callback`."""
        self._observer.on_epoch(state, metrics)
        self._epoch = metrics["epoch"]
        self._calls_per_epoch, self._calls = max(self._calls, 1), 0
        self._loss = f", loss {metrics['train_loss']:.3g}"
        self._report()

    def _report(self) -> None:
        done = self._epoch or 0
        within = min(self._calls / self._calls_per_epoch, 1)
        epoch = min(done + 1, self._epochs)
        part = min((done + within) / self._epochs, 1)
        where = f"stage {self._stage}/{self._stages}, " if self._stages > 1 else ""
        self._tick(
            (self._stage - 1 + part) / self._stages,
            f"{where}epoch {epoch}/{self._epochs}{self._loss}",
        )


def _calls(prepared: Prepared, seed: int) -> Iterator[tuple[TrainState, int]]:
    """Trains without end; yields finished states and how many steps each took."""
    state = prepared.engine.initial_state(seed)
    for epoch in itertools.count():
        for call in prepared.engine.train_steps(state, seed, epoch):
            state = call.state
            jax.block_until_ready(state.params)
            yield state, call.steps
