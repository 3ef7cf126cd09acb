"""The training program, from a configuration to a work directory.

:func:`prepare` loads the data and compiles network and optimizer; :func:`run` trains,
selects the best epoch, tests it once, and records everything.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from training import (
    amplification,
    data,
    feed,
    networks,
    optimizers,
    parallel,
    workdir,
)
from training.callbacks import Callback
from training.checkpoints import Checkpoint, Checkpoints, copy_to_host, write
from training.config import Config
from training.display import (
    LAG_LINE,
    Display,
    epoch_header,
    epoch_line,
    result_lines,
    say,
    selection_line,
    summary_line,
    waiting,
)
from training.errors import ConfigError, RunError
from training.interrupts import Interrupts, Stopped, acknowledged
from training.program import Program, means
from training.provenance import provenance
from training.state import TrainState
from training.workdir import WorkDirectory, without_nan

# Steps in a row that may be skipped before a run stops.
_MOST_SKIPPED = 25


class Prepared(NamedTuple):
    """What the runs of one configuration share, whatever their seeds.

    Attributes:
      dataset: The data.
      program: Network and optimizer, compiled.
      schedule: The learning rate as a function of the optimizer step.
      total_steps: Steps in a run.
    """

    dataset: data.Dataset
    program: Program
    schedule: optax.Schedule
    total_steps: int


def train(
    configs: Sequence[Config], callback: Callback | None = None
) -> list[dict[str, Any]]:
    """Runs trainings that differ in their seeds only, compiled once.

    Args:
      configs: Complete configurations (:func:`training.config.resolve`).
      callback: Called while they train.

    Returns:
      The content of each run's ``result.json``. A run that has already finished is not
      repeated.

    Raises:
      UserError: If the data, the devices or a work directory do not allow it, or a run
        diverges.
    """
    parallel.join(configs[0])
    prepared, results = None, []
    with acknowledged(), contextlib.ExitStack() as stack:
        directories = [stack.enter_context(WorkDirectory(c)) for c in configs]
        for config, directory in zip(configs, directories, strict=True):
            if directory.result is not None:
                say(f"{directory.path} has finished:\n{result_lines(directory.result)}")
                results.append(directory.result)
                continue
            if prepared is None or depends_on_seed(config):
                prepared = prepare(config)
            if len(configs) > 1:
                say(f"seed {config.seed}")
            with _precision(config):
                results.append(_run(prepared, config, directory, callback))
        if len(configs) > 1:
            say(summary_line(results))
    return results


def run(
    prepared: Prepared, config: Config, callback: Callback | None = None
) -> dict[str, Any]:
    """Runs one training.

    Args:
      prepared: What :func:`prepare` made for this configuration with any seed.
      config: The configuration.
      callback: Called while it trains.

    Returns:
      The content of the run's ``result.json``.

    Raises:
      UserError: If the work directory does not allow it, or the run diverges.
    """
    with WorkDirectory(config) as directory, _precision(config):
        if directory.result is not None:
            return directory.result
        return _run(prepared, config, directory, callback)


# -- Preparing -------------------------------------------------------------------------


def prepare(config: Config) -> Prepared:
    """Loads the data, builds network and optimizer, and compiles them.

    Args:
      config: A complete configuration. Its seed matters if :func:`depends_on_seed`.

    Raises:
      UserError: If the data or the devices do not allow it.
    """
    _cache_programs(config.cache_dir)
    with _precision(config):
        dataset = data.load(
            config.dataset,
            data_dir=config.data_dir,
            image_size=config.image_size,
            validation_fraction=config.validation_fraction,
            train_fraction=config.train_fraction,
            split_seed=config.seed if config.split_per_seed else config.split_seed,
        )
        steps_per_epoch, total_steps = count_steps(config, dataset)
        schedule = optimizers.make_schedule(config, steps_per_epoch=steps_per_epoch)
        say(
            f"{config.model} on {dataset.name} with {config.method}: "
            f"{len(dataset.train.labels):,} training, "
            f"{len(dataset.validation.labels):,} validation, "
            f"{len(dataset.test.labels):,} test images; "
            f"{jax.device_count()} x {jax.local_devices()[0].device_kind}"
        )
        with waiting("compiling (the first time only, unless settings change)"):
            program = build(config, dataset)
    return Prepared(dataset, program, schedule, total_steps)


def depends_on_seed(config: Config) -> bool:
    """Whether what :func:`prepare` makes serves one seed only."""
    # Random layers are drawn inside the compiled step.
    return config.split_per_seed or config.amplify_select == "random"


def build(config: Config, dataset: data.Dataset) -> Program:
    """Builds and compiles the program of a configuration.

    Args:
      config: A complete configuration.
      dataset: The data, which need not be the configuration's.

    Raises:
      ConfigError: If the optimizer does not fit the network, or the batch the devices.
    """
    steps_per_epoch, _ = count_steps(config, dataset)
    tx = optimizers.make_optimizer(config, steps_per_epoch=steps_per_epoch)
    module = networks.make_network(config, dataset.num_classes, axis_name=parallel.AXIS)
    source: feed.Feed
    if config.input == "host":
        source = feed.Host(dataset.train, config.batch_size)
    else:
        steps_per_call = config.steps_per_call or _steps_per_call(steps_per_epoch)
        source = feed.Resident(dataset.train, config.batch_size, steps_per_call)
    # float16 overflows until its loss scale fits.
    is_patient = config.on_nonfinite == "skip" or config.precision == "float16"
    return Program(
        module,
        tx,
        source,
        dataset,
        batch_size=config.batch_size,
        dtype=networks.DTYPES[config.precision],
        augment=config.augment,
        propagate=config.amplify_layers if config.amplify_propagate else None,
        accumulate=config.accumulate,
        most_skipped=_MOST_SKIPPED if is_patient else 1,
    )


def count_steps(config: Config, dataset: data.Dataset) -> tuple[int, int]:
    """Returns the optimizer steps in an epoch (whole batches) and in the run.

    Raises:
      UserError: If the batch does not fit the devices or the data.
    """
    parallel.check_batch_size(config.batch_size, config.accumulate)
    steps_per_epoch = len(dataset.train.labels) // config.batch_size
    if not steps_per_epoch:
        raise ConfigError(
            f"--batch-size {config.batch_size} is more than the "
            f"{len(dataset.train.labels)} training examples of {dataset.name}: choose "
            f"a smaller one"
        )
    total = config.epochs * steps_per_epoch
    if total >= 2**31:  # optimizers count in int32
        raise ConfigError(
            f"--epochs {config.epochs} is {total:,} steps, and a run has fewer than "
            f"2**31: choose fewer"
        )
    return steps_per_epoch, min(total, config.max_steps or total)


def _steps_per_call(steps_per_epoch: int) -> int:
    # A convolution's backward pass inside a loop is many times slower on a CPU. On an
    # accelerator, few calls an epoch leave the host idle.
    if jax.default_backend() == "cpu":
        return 1
    return math.ceil(steps_per_epoch / 4)


def _cache_programs(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache."""
    if cache_dir == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if cache_dir is None:
        cache_dir = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    elif Path(cache_dir).is_file():
        raise ConfigError(f"--cache-dir {cache_dir} is a file: choose a directory")
    path = cache_dir or str(Path("~/.cache/plp_optax").expanduser())
    jax.config.update("jax_compilation_cache_dir", path)


def _precision(config: Config) -> contextlib.AbstractContextManager[None]:
    return jax.enable_x64(config.precision == "float64")


# -- Running ---------------------------------------------------------------------------


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


def _run(
    prepared: Prepared,
    config: Config,
    directory: WorkDirectory,
    callback: Callback | None,
) -> dict[str, Any]:
    dataset, program, schedule, total_steps = prepared
    callback = callback or Callback()
    steps_per_epoch = program.steps_per_epoch
    epochs = math.ceil(total_steps / steps_per_epoch)
    checkpoints = Checkpoints(
        directory.path / workdir.CHECKPOINTS, config.keep_checkpoints
    )

    # -- Start or resume ---------------------------------------------------------------
    state, best, progress = _start(program, config, directory, checkpoints, dataset)
    interrupts = Interrupts(config.checkpoint_minutes)

    def save() -> None:
        if progress.best:
            path = directory.path / workdir.BEST
            parallel.from_coordinator(
                lambda: write(path, Checkpoint(best, progress.best))
            )
        notes = dataclasses.asdict(progress)
        tree = {"state": state, "best": best}
        checkpoints.save(progress.epoch, progress.step, Checkpoint(tree, notes))
        interrupts.saved()

    done = progress.epoch * steps_per_epoch + progress.step
    display = Display(total_steps, done)
    with interrupts.listening(), display:
        if progress.epoch < epochs:
            display.line(epoch_header(epochs))
        try:
            while progress.epoch < epochs:
                # -- Train an epoch ----------------------------------------------------
                epoch = progress.epoch
                stop = min(steps_per_epoch, total_steps - epoch * steps_per_epoch)
                with _trace(
                    directory.path, config.profile and epoch == min(1, epochs - 1)
                ):
                    clock = time.perf_counter()
                    for call in program.train_epoch(
                        state, config.seed, epoch, progress.step, stop
                    ):
                        state = call.state
                        progress.step += call.steps
                        seconds = progress.seconds + time.perf_counter() - clock
                        display.advance(
                            epoch + 1, call.steps, call.metrics, progress.step / seconds
                        )
                        callback.on_call(state)
                        if interrupts.check():
                            jax.block_until_ready(state)
                            progress.seconds += time.perf_counter() - clock
                            save()
                            clock = time.perf_counter()
                    sums = jax.device_get(state.monitor.epoch)
                    progress.seconds += time.perf_counter() - clock

                # -- Validate and record -----------------------------------------------
                trained = means(sums)
                validated = program.evaluate(
                    state.variables, dataset.validation, interrupts.check
                )
                step = int(state.step)
                metrics: dict[str, Any] = {
                    "epoch": epoch + 1,
                    "step": step,
                    "train_loss": trained["loss"],
                    "train_accuracy": trained["accuracy"],
                    "validation_loss": validated["loss"],
                    "validation_accuracy": validated["accuracy"],
                    "learning_rate": float(schedule(max(step - 1, 0))),
                    "gradient_norm": trained["gradient_norm"],
                    "update_norm": trained["update_norm"],
                    "parameter_norm": float(optax.tree.norm(state.params)),
                    "skipped_steps": int(sums.skipped),
                    "images_per_second": stop * config.batch_size / progress.seconds,
                }
                if config.test_each_epoch:
                    tested = program.evaluate(
                        state.variables, dataset.test, interrupts.check
                    )
                    metrics["test_loss"] = tested["loss"]
                    metrics["test_accuracy"] = tested["accuracy"]
                selection = _observe(config, state, progress, metrics)
                directory.add(metrics)
                is_best = _is_best(metrics["validation_loss"], progress.best)
                if is_best:
                    best = copy_to_host(state.variables)
                    progress.best = {
                        "epoch": epoch + 1,
                        "loss": metrics["validation_loss"],
                    }
                progress.history.append(metrics)
                progress.epoch, progress.step = epoch + 1, 0
                progress.train_seconds += progress.seconds
                progress.seconds = 0.0
                if selection:
                    directory.write_layers(amplification.layers_text(progress.history))
                display.line(epoch_line(metrics, epochs, is_best))
                if epoch == 1 and 3 * metrics["train_loss"] < validated["loss"]:
                    display.line(LAG_LINE)
                if selection:
                    display.line(selection_line(selection))
                callback.on_epoch(state, metrics)
                every = config.checkpoint_epochs
                if progress.epoch == epochs or (every and progress.epoch % every == 0):
                    save()

            # -- Test once, with the best parameters -----------------------------------
            tested = program.evaluate(best, dataset.test, interrupts.check)
        except Stopped:
            save()
            raise
        interrupts.check_last()

    # -- Report ------------------------------------------------------------------------
    history = [without_nan(metrics) for metrics in progress.history]
    title = f"{config.model} on {dataset.name}, {config.method}, seed {config.seed}"
    directory.draw(history, title)
    result = without_nan(
        {
            "best_epoch": progress.best["epoch"],
            "validation_loss": progress.best["loss"],
            "test_loss": tested["loss"],
            "test_accuracy": tested["accuracy"],
            "test_top1_error": tested["top1_error"],
            "test_top5_error": tested["top5_error"],
            "train_seconds": progress.train_seconds,
            "epochs": epochs,
            "steps": total_steps,
            "skipped_steps": sum(m["skipped_steps"] for m in history),
            "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
            **provenance(),
        }
    )
    directory.finish(result)
    say(f"{result_lines(result)}\nrecorded in {directory.path}")
    return result


def _start(
    program: Program,
    config: Config,
    directory: WorkDirectory,
    checkpoints: Checkpoints,
    dataset: data.Dataset,
) -> tuple[TrainState, Any, Progress]:
    """Training state, best variables and progress that a run starts from."""
    state = program.initial_state(config.seed)
    best = copy_to_host(state.variables)
    found = None
    if directory.is_unfinished:
        like = {"state": copy_to_host(state), "best": best}
        found = checkpoints.newest(like)
    if found is not None:
        path, (tree, notes) = found
        progress = Progress(**notes)
        directory.resume(dataset, progress.history)
        if text := amplification.layers_text(progress.history):
            directory.write_layers(text)
        say(f"resuming from {path}")
        return parallel.replicate(tree["state"]), tree["best"], progress
    if config.resume == "required":
        raise RunError(
            f"{directory.path} holds no checkpoint to resume from: leave --resume out "
            f"to start the run again"
        )
    directory.start(dataset)
    say(f"recording in {directory.path}")
    return state, best, Progress()


def _observe(
    config: Config, state: TrainState, progress: Progress, metrics: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """Adds amplification to an epoch's metrics; returns its analysis, if it had one."""
    if config.amplify_layers is None:
        return None
    found = amplification.observe(
        state.opt_state, state.params, config.amplify_layers, progress.selections
    )
    if found is None:
        return None
    metrics["amplified"] = progress.amplified
    metrics["analysis"] = found.analysis
    progress.amplified, progress.selections = found.amplified, found.selections
    return found.analysis


def _is_best(loss: float, best: dict[str, Any]) -> bool:
    # Without a validation part the loss is NaN, and the last epoch counts.
    return not best or math.isnan(best["loss"]) or loss < best["loss"]


def _trace(path: Path, on: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, if on, everything is traced, for TensorBoard or Perfetto."""
    if not on:
        return contextlib.nullcontext()
    trace_path = str(path / workdir.PROFILE)
    return jax.profiler.trace(trace_path, create_perfetto_trace=True)
