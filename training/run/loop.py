"""A run under way: training, validation, records and checkpoints, epoch by epoch."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from training import data
from training.engine import parallel, plateau
from training.engine.engine import Engine, means
from training.engine.evaluation import Evaluation
from training.engine.state import BLOCK_MEAN, Given
from training.errors import DivergedError, RunError
from training.layout import File, mean_path
from training.run import layer_analysis, workdir
from training.run.callbacks import Callback
from training.run.checkpoints import Checkpoint, Checkpoints, copy_to_host, write
from training.run.display import (
    LAG_LINE,
    ProgressBar,
    epoch_header,
    epoch_line,
    say,
    selection_line,
)
from training.run.interrupts import Interrupts, Stopped
from training.run.provenance import provenance
from training.run.records import without_nan
from training.run.workdir import WorkDirectory
from training.settings.averages import TailAverage
from training.settings.config import Config, signature
from training.settings.methods import Amplify
from training.settings.plan import Plan
from training.settings.schedules import Plateau

# Compiled as one function: the first call otherwise compiles two for each shape.
_norm = jax.jit(optax.tree.norm)

# The metrics of an evaluation that are recorded after an epoch.
_RECORDED = ("loss", "accuracy", "macro_f1")


@dataclasses.dataclass
class Progress:
    """With the training state, everything that a run needs to be resumed.

    Attributes:
      epoch: Epochs that are complete: trained, evaluated and recorded.
      step: Steps of the current epoch, including skipped ones.
      seconds: Training time of the current epoch.
      train_seconds: Training time of the complete epochs.
      history: The complete epochs' lines of ``metrics.jsonl``.
      best: ``epoch`` and ``loss`` of the best epoch; empty before the first.
      amplified: Names of the layers amplified from the current epoch's start.
      selections: Number of selections of layers before it.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    amplified: list[str] = dataclasses.field(default_factory=list)
    selections: int = 0


class Prepared(NamedTuple):
    """The parts that runs of one configuration share, whatever their seeds.

    Attributes:
      dataset: The data.
      engine: Network and optimizer, compiled.
      schedule: The learning rate as a function of the optimizer step.
      plan: How long a run is.
      given: Variables that replace the ones drawn; see :meth:`Engine.initial_state`.
    """

    dataset: data.Dataset
    engine: Engine
    schedule: optax.Schedule
    plan: Plan
    given: Given | None


class TrainingLoop:
    """A run under way. It starts the run, or resumes it from its last checkpoint.

    Attributes:
      epochs: Epochs in the run.
      state: The training state, replicated over the devices.
      best: The variables of the best epoch, on the host.
      progress: The position in the run.
    """

    def __init__(
        self,
        config: Config,
        directory: WorkDirectory,
        prepared: Prepared,
        callback: Callback,
    ) -> None:
        """Starts or resumes a run.

        Raises:
          RunError: If there is no undamaged checkpoint to resume from.
        """
        self._config, self._directory, self._callback = config, directory, callback
        self._dataset, self._engine = prepared.dataset, prepared.engine
        self._schedule, self._plan = prepared.schedule, prepared.plan
        self._interrupts = Interrupts(config.checkpoint_minutes)
        self._checkpoints = Checkpoints(
            directory.path / File.CHECKPOINTS, config.keep_checkpoints
        )
        self.epochs = self._plan.epochs
        self.state = self._engine.initial_state(config.seed, prepared.given)
        self.best = copy_to_host(self.state.variables)
        # The run's files of variables name it.
        facts = self._dataset.facts
        self._origin: dict[str, Any] = {"data": facts, "run": signature(config)}
        self.progress = Progress()
        self._fresh: dict[str, Any] = {}
        self._start()
        done = self.progress.epoch * self._plan.steps_per_epoch + self.progress.step
        self._bar = ProgressBar(self._plan.last_step, done)

    def _start(self) -> None:
        directory = self._directory
        found = None
        if directory.is_unfinished:
            like = {"state": copy_to_host(self.state), "best": self.best}
            found = self._checkpoints.newest(like)
        if found is not None:
            path, (tree, notes) = found
            workdir.refuse_other_run(path, notes, self._origin["run"])
            directory.refuse_other_data(self._dataset, notes.get("data", {}))
            self.state, self.best = parallel.replicate(tree["state"]), tree["best"]
            own = {n: value for n, value in notes.items() if n not in self._origin}
            self.progress = Progress(**own)
            directory.rewrite(self._dataset, self.progress.history)
            self._write_best()  # a kill may have come between it and the checkpoint
            directory.write_layers(self.progress.history)
            say(f"resuming from {path}")
            return
        if self._config.resume == "required":
            raise RunError(
                f"{directory.path} holds no checkpoint to resume from: leave --resume "
                f"out to start the run again"
            )
        directory.start(self._dataset)
        say(f"recording in {directory.path}")

    @property
    def is_over(self) -> bool:
        """Whether all epochs are trained, or one of the rules to stop applies."""
        config, done = self._config, self.progress.epoch
        if not done or done >= self.epochs:
            return done >= self.epochs
        patience, enough = config.early_stopping, config.stop_accuracy
        accuracy = self.progress.history[-1]["train_accuracy"]
        stalls = config.get(Plateau)
        most = stalls and stalls.plateau_drops
        return bool(
            (patience and done - self.progress.best["epoch"] >= patience)
            or (enough and accuracy >= enough)
            or (most and plateau.drops(self.state.opt_state) >= most)
        )

    @contextlib.contextmanager
    def saved_when_stopped(self) -> Iterator[None]:
        """Within it the progress is shown, and a signal saves the run and ends it.

        Raises:
          Stopped: If a signal asked the run to stop.
        """
        with self._interrupts.listening(), self._bar as bar:
            if not self.is_over:
                average = self._config.average != "none"
                bar.line(epoch_header(self.epochs, bar.columns, average=average))
            try:
                yield
            except Stopped:
                self._save()
                raise
            except DivergedError as error:
                # From the last checkpoint, if there is one.
                other = "give the same command with --on-nonfinite skip"
                if workdir.has_files(self._directory.path / File.CHECKPOINTS):
                    other = "resume from the last checkpoint with --on-nonfinite skip"
                raise DivergedError(f"{error}, or {other}") from error
            self._interrupts.check_last()

    def train_epoch(self) -> None:
        """Trains what is left of an epoch."""
        self._fresh = {}
        config, engine, progress = self._config, self._engine, self.progress
        epoch = progress.epoch
        before = epoch * engine.steps_per_epoch
        stop = min(engine.steps_per_epoch, self._plan.last_step - before)
        # The clock leaves out saving, and counts the part of the epoch before a resume.
        clock = time.perf_counter() - progress.seconds
        calls = engine.train_steps(self.state, config.seed, epoch, progress.step, stop)
        with self._traced(epoch):
            for call in calls:
                self.state = call.state
                progress.step += call.steps
                progress.seconds = time.perf_counter() - clock
                # Over the complete run: that of a few steps would jump.
                seconds = progress.train_seconds + progress.seconds
                pace = (before + progress.step) / seconds
                self._bar.advance(epoch + 1, call.steps, call.metrics, pace)
                self._callback.on_call(self.state)
                if self._interrupts.check():
                    jax.block_until_ready(self.state)
                    progress.seconds = time.perf_counter() - clock
                    self._save()
                    clock = time.perf_counter() - progress.seconds
            jax.block_until_ready(self.state)
            progress.seconds = time.perf_counter() - clock

    def validate(self) -> dict[str, Any]:
        """Returns the epoch's line of ``metrics.jsonl``."""
        config, engine = self._config, self._engine
        state, progress = self.state, self.progress
        sums = jax.device_get(state.monitor.epoch)
        trained = means(sums)
        validation = self._dataset.validation
        step = int(state.step)
        metrics: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "step": step,
            "train_loss": trained["loss"],
            "train_accuracy": trained["accuracy"],
            **self.evaluate(self._last(), validation).metrics("validation", *_RECORDED),
            "learning_rate": float(self._schedule(max(step - 1, 0)))
            * plateau.scale(state.opt_state),
            "gradient_norm": trained["gradient_norm"],
            "update_norm": trained["update_norm"],
            "parameter_norm": float(_norm(state.variables["params"])),
            "skipped_steps": int(sums.skipped),
            "images_per_second": progress.step * engine.batch_size / progress.seconds,
        }
        if config.test_each_epoch:
            tested = self.evaluate(self._last(), self._dataset.test)
            metrics |= tested.metrics("test", *_RECORDED)
        if (average := self._averaged()) is not None:
            averaged = self.evaluate(average, validation)
            metrics |= averaged.metrics("average_validation", *_RECORDED)
        elif config.average != "none":  # it has not begun
            names = [f"average_validation_{name}" for name in _RECORDED]
            metrics |= dict.fromkeys(names, math.nan)
        if amplify := config.get(Amplify):
            found = layer_analysis.observe(
                state.opt_state, state.params, amplify.layers, progress.selections
            )
            metrics |= {"amplified": progress.amplified, "analysis": found.analysis}
            progress.amplified, progress.selections = found.amplified, found.selections
        if config.monitor_layers:
            metrics["layers"] = layer_analysis.statistics(
                state.opt_state, state.params, amplify.layers if amplify else "kernels"
            )
        return metrics

    def test(self) -> dict[str, Evaluation]:
        """Tests the best epoch's variables, and the average if there is one."""
        tested = {"test": self.evaluate(self.best, self._dataset.test)}
        if (average := self._averaged()) is not None:
            tested["average_test"] = self.evaluate(average, self._dataset.test)
        return tested

    def _last(self) -> Any:
        """The last parameters as they are evaluated."""
        return self._evaluated("last", self.state.variables)

    def _averaged(self) -> Any:
        """The average as it is evaluated; None if there is none, or not yet."""
        if not self._average_steps():
            return None
        return self._evaluated("average", self.state.averaged(self.state.opt_state))

    def _average_steps(self) -> int:
        average = self._config.get(TailAverage)
        return average.steps(self.state.opt_state, self._plan) if average else 0

    def _evaluated(self, name: str, variables: Any) -> Any:
        """Variables with their batch statistics, which are computed once an epoch."""
        if name not in self._fresh:
            self._fresh[name] = self._engine.with_statistics(
                variables, self._interrupts.check
            )
        return self._fresh[name]

    def evaluate(self, variables: Any, examples: data.Examples) -> Evaluation:
        """See :meth:`Engine.evaluate`. A signal interrupts it."""
        return self._engine.evaluate(variables, examples, self._interrupts.check)

    def record(self, metrics: dict[str, Any]) -> None:
        """Records an epoch, selects the best one so far, and saves when it is time."""
        progress = self.progress
        loss, best = metrics["validation_loss"], progress.best
        # Without validation the loss is NaN, and the last epoch counts.
        is_best = not best or math.isnan(best["loss"]) or loss < best["loss"]
        if is_best:
            self.best = copy_to_host(self._last())
            progress.best = {"epoch": metrics["epoch"], "loss": loss}
        progress.history.append(metrics)
        if stalls := self._config.get(Plateau):
            opt_state = plateau.observe(self.state.opt_state, loss, *stalls.rule)
            self.state = self.state._replace(opt_state=opt_state)
        progress.train_seconds += progress.seconds
        progress.epoch, progress.step, progress.seconds = metrics["epoch"], 0, 0.0

        line = epoch_line(metrics, self.epochs, is_best, self._bar.columns)
        self._bar.line(line)
        # Afterwards, as the first call imports TensorBoard's writer.
        self._directory.add(metrics)
        is_lagging = not self._engine.statistics_batches
        if is_lagging and metrics["epoch"] == 2 and loss > 3 * metrics["train_loss"]:
            self._bar.line(LAG_LINE)
        if metrics.get("analysis"):
            self._directory.write_layers(progress.history)
            self._bar.line(selection_line(metrics["analysis"]))
        self._callback.on_epoch(self.state, metrics)
        block = self._config.block_means
        if block and (self.is_over or progress.epoch % block == 0):
            self._write_mean()
        every = self._config.checkpoint_epochs
        if self.is_over or (every and progress.epoch % every == 0):
            self._save()

    def report(self, tested: dict[str, Evaluation]) -> dict[str, Any]:
        """Writes ``result.json`` and draws the pictures; returns the result.

        Args:
          tested: See :meth:`test`.
        """
        config, progress = self._config, self.progress
        history = [without_nan(metrics) for metrics in progress.history]
        if (average := self._averaged()) is not None:
            self._write(self._directory.path / File.AVERAGE, average, self._origin)
        numbers: dict[str, Any] = {}
        for prefix, evaluation in tested.items():
            numbers |= evaluation.metrics(prefix)
        if config.average != "none":
            last = progress.history[-1]["average_validation_loss"]
            steps = self._average_steps()
            numbers |= {"average_validation_loss": last, "average_steps": steps}
        result = without_nan(
            {
                "best_epoch": progress.best["epoch"],
                "validation_loss": progress.best["loss"],
                **numbers,
                "train_seconds": progress.train_seconds,
                "epochs": progress.epoch,
                "stopped_early": progress.epoch < self.epochs,
                "steps": min(
                    progress.epoch * self._plan.steps_per_epoch, self._plan.last_step
                ),
                "skipped_steps": sum(m["skipped_steps"] for m in history),
                "parameters": sum(x.size for x in jax.tree.leaves(self.best["params"])),
                **provenance(),
            }
        )
        self._directory.finish(result)
        if config.draw:
            self._directory.draw(self._dataset, history, tested["test"].confusion)
        return result

    def _save(self) -> None:
        tree, progress = {"state": self.state, "best": self.best}, self.progress
        notes = dataclasses.asdict(progress) | self._origin
        self._checkpoints.save(progress.epoch, progress.step, Checkpoint(tree, notes))
        self._write_best()
        self._interrupts.saved()

    def _write_best(self) -> None:
        if notes := self.progress.best:
            path = self._directory.path / File.BEST
            self._write(path, self.best, notes | self._origin)

    def _write_mean(self) -> None:
        """Writes the mean parameters of a block of epochs, and begins the next one."""
        state, epoch = self.state, self.progress.epoch
        assert state.block is not None
        steps = int(state.block.tail_steps)
        if steps:
            mean = {"params": state.averaged(state.block)["params"]}
            notes = {"epoch": epoch, "step": int(state.step), "steps": steps}
            self._write(mean_path(self._directory.path, epoch), mean, notes)
        block = parallel.replicate(BLOCK_MEAN.init(state.params))
        self.state = state._replace(block=block)

    def _write(self, path: Path, tree: Any, notes: dict[str, Any]) -> None:
        parallel.from_coordinator(lambda: write(path, Checkpoint(tree, notes)))

    def _traced(self, epoch: int) -> contextlib.AbstractContextManager[None]:
        """With ``--profile`` traces the second epoch, for TensorBoard or Perfetto."""
        if not self._config.profile or epoch != min(1, self.epochs - 1):
            return contextlib.nullcontext()
        path = self._directory.path / File.PROFILE
        return jax.profiler.trace(str(path), create_perfetto_trace=True)
