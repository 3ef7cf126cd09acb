"""Trains an image classifier and leaves a work directory that explains itself.

python train.py                                         # digits, in a minute
python train.py --dataset cifar100 --preset plp-paper   # the paper's protocol
python train.py --help
"""

import contextlib
import functools
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from training import config as config_lib
from training.config import Config
from training.errors import UserError

if TYPE_CHECKING:
    import optax

    from training import data, records
    from training.loop import Loop


class Program(NamedTuple):
    """Everything that the runs of one configuration share, whatever their seeds.

    Attributes:
      dataset: The data.
      schedule: The learning rate as a function of the optimizer step.
      loop: The network and the optimizer on the devices, compiled.
      total_steps: Steps in a run.
    """

    dataset: "data.Dataset"
    schedule: "optax.Schedule"
    loop: "Loop"
    total_steps: int


class Watcher:
    """Looks on while a run trains. Does nothing; override what you need.

    Looking at ``loop.state`` waits for the devices.
    """

    def after_call(self, loop: "Loop") -> None:
        """Called after each call of the compiled training function."""

    def after_epoch(self, loop: "Loop", metrics: dict[str, Any]) -> None:
        """Called with each line of ``metrics.jsonl``."""


def train(configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Runs trainings that differ in their seeds only, compiled once.

    Args:
      configs: Complete configurations (``training.config.resolve``).

    Returns:
      What each run's ``result.json`` holds. A run that had already finished is not
      repeated.

    Raises:
      UserError: If the data, the devices or the work directory do not allow it.
    """
    from training import parallel, records
    from training.display import result_lines, say

    parallel.join(configs[0])
    results = []
    program = None
    with contextlib.ExitStack() as stack:
        directories = [stack.enter_context(records.Run(config)) for config in configs]
        for config, directory in zip(configs, directories, strict=True):
            if directory.result is not None:
                say(f"{directory.path} has finished:\n{result_lines(directory.result)}")
                results.append(directory.result)
                continue
            # Random layers are drawn inside the compiled step, by the seed.
            if program is None or config.amplify_select == "random":
                program = prepare(config)
            results.append(_run(program, config, directory, Watcher()))
    return results


def prepare(config: Config) -> Program:
    """Loads the data, builds network and optimizer, and compiles the steps.

    Args:
      config: A complete configuration; of its seed only random layers depend.

    Raises:
      UserError: If the data or the devices do not allow it.
    """
    # Imported after the flags are known to make sense, since JAX takes seconds.
    import jax

    from training import compilation, data, networks, optimizers, parallel
    from training.display import say
    from training.loop import Loop, count_steps

    compilation.keep_compiled(config.cache_dir)
    with jax.enable_x64(config.precision == "float64"):
        # -- Data ----------------------------------------------------------------
        dataset = data.load(
            config.dataset,
            data_dir=config.data_dir,
            validation_fraction=config.validation_fraction,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
        )

        # -- Network, optimizer and compiled steps -------------------------------
        steps_per_epoch, total_steps = count_steps(config, dataset)
        schedule = optimizers.make_schedule(
            config,
            steps_per_epoch=steps_per_epoch,
            total_steps=steps_per_epoch * (config.epochs or 0),
        )
        tx = optimizers.make_optimizer(
            config, schedule, steps_per_epoch=steps_per_epoch
        )
        module = networks.make_network(
            config, dataset.num_classes, axis_name=parallel.AXIS
        )
        loop = Loop(config, dataset, module, tx, networks.DTYPES[config.precision])
        loop.start(_seed(config))
        size = sum(x.size for x in jax.tree.leaves(loop.state.params))
        say(
            f"{config.model} ({size:,} parameters) on {dataset.name} with "
            f"{config.method}: {len(dataset.train.labels):,} training, "
            f"{len(dataset.validation.labels):,} validation, "
            f"{len(dataset.test.labels):,} test images; "
            f"{jax.device_count()} x {jax.local_devices()[0].device_kind}"
        )
        say("compiling")
        loop.compile()
    return Program(dataset, schedule, loop, total_steps)


def run(
    program: Program, config: Config, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Trains, tests and reports one run.

    Args:
      program: What :func:`prepare` made for this configuration with any seed.
      config: The run's configuration.
      watcher: Who looks on.

    Returns:
      What the run's ``result.json`` holds.

    Raises:
      UserError: If the work directory does not allow it, or the run diverges.
    """
    from training import records

    with records.Run(config) as directory:
        if directory.result is not None:
            return directory.result
        return _run(program, config, directory, watcher or Watcher())


def _run(
    program: Program, config: Config, directory: "records.Run", watcher: Watcher
) -> dict[str, Any]:
    import jax

    with jax.enable_x64(config.precision == "float64"):
        return _train(program, config, directory, watcher)


def _train(
    program: Program, config: Config, directory: "records.Run", watcher: Watcher
) -> dict[str, Any]:
    import jax

    from training import amplification, curves, parallel, profiling, records
    from training.display import (
        Display,
        epoch_line,
        result_lines,
        say,
        selection_line,
    )
    from training.session import Session

    dataset, schedule, loop, total_steps = program
    epochs = math.ceil(total_steps / loop.steps_per_epoch)
    session = Session(config, directory, loop, dataset)
    progress, pauses = session.progress, session.pauses
    done = progress.epoch * loop.steps_per_epoch + progress.step

    with session, Display(total_steps, done, config.batch_size) as display:
        # -- Training ------------------------------------------------------------
        while progress.epoch < epochs:
            epoch = progress.epoch + 1
            with profiling.trace(
                directory.path, config.profile and epoch == min(2, epochs)
            ):
                trained = loop.train_epoch(
                    progress,
                    functools.partial(display.advance, epoch),
                    functools.partial(watcher.after_call, loop),
                    pauses,
                    session.save,
                )
            validated = loop.evaluate(loop.state.variables, dataset.validation, pauses)
            step = int(loop.state.step)
            metrics: dict[str, Any] = {
                "epoch": epoch,
                "step": step,
                "train_loss": trained["loss"],
                "train_accuracy": trained["accuracy"],
                "validation_loss": validated["loss"],
                "validation_accuracy": validated["accuracy"],
                "learning_rate": float(schedule(max(step - 1, 0))),
                "gradient_norm": trained["gradient_norm"],
                "update_norm": trained["update_norm"],
                "parameter_norm": loop.parameter_norm(),
                "skipped_steps": int(trained["skipped"]),
                "images_per_second": trained["images_per_second"],
            }
            is_best, analysis = session.end_epoch(metrics)
            watcher.after_epoch(loop, metrics)
            display.line(epoch_line(metrics, epochs, is_best))
            if analysis is not None:
                display.line(selection_line(analysis))

        # -- Test, once, with the best parameters --------------------------------
        tested = loop.evaluate(session.best, dataset.test, pauses)

    # -- Report ------------------------------------------------------------------
    result = {
        "best_epoch": progress.best["epoch"],
        "validation_loss": progress.best["loss"],
        "test_loss": tested["loss"],
        "test_accuracy": tested["accuracy"],
        "test_top1_error": tested["top1_error"],
        "test_top5_error": tested["top5_error"],
        "train_seconds": progress.train_seconds,
        "epochs": epochs,
        "steps": total_steps,
        "skipped_steps": sum(m["skipped_steps"] for m in progress.history),
        "parameters": sum(x.size for x in jax.tree.leaves(loop.state.params)),
        **records.provenance(),
    }
    if parallel.is_coordinator():
        title = f"{config.model} on {dataset.name}, {config.method}, seed {config.seed}"
        with records.explained(directory.path):
            history = records.read_metrics(directory.path)
            curves.draw(directory.path / records.CURVES, history, title)
            amplification.draw(directory.path / records.AMPLIFICATION, history, title)
    result = directory.finish(result)
    say(f"{result_lines(result)}\nrecorded in {directory.path}")
    return result


def _seed(config: Config) -> int:
    assert isinstance(config.seed, int)  # parse makes one configuration a seed
    return config.seed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    again = shlex.join(
        ["python", "train.py", *(arg for arg in argv if arg != "--overwrite")]
    )
    try:
        configs = config_lib.parse(argv)
        if configs[0].distributed or configs[0].coordinator_address:
            print(f"should a process be lost, go on with\n  {again}", flush=True)
        train(configs)
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        what = "stopped"
        if number := getattr(interrupt, "signal", None):
            what = "stopped, and saved"
        what += f": go on with\n  {again}"
        print(f"\ntrain.py: {what}", file=sys.stderr)
        return 128 + (number or signal.SIGINT)
    return 0


if __name__ == "__main__":
    code = main()
    if code > 128:
        # Threads of the compiler may still be at work, and an orderly end would crash
        # on them. All that is recorded is on disk.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
