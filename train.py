"""Trains an image classifier and leaves a work directory that explains itself.

python train.py                                         # digits, in a minute
python train.py --dataset cifar100 --preset plp-paper   # the paper's protocol
python train.py --help
"""

import functools
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from training import config as config_lib
from training.config import Config
from training.errors import UserError

if TYPE_CHECKING:
    import optax

    from training import data
    from training.loop import Loop


class Program(NamedTuple):
    """Everything that the runs of one configuration share, whatever their seeds.

    Attributes:
      config: The configuration that it was prepared for.
      dataset: The data.
      schedule: The learning rate as a function of the optimizer step.
      loop: The network and the optimizer on the devices, compiled.
      total_steps: Steps in a run.
    """

    config: Config
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
    from training import records
    from training.display import result_lines

    results = []
    program = None
    for config in configs:
        run_directory = records.Run(config)
        if run_directory.result is not None:
            print(
                f"{config.workdir} has finished:\n{result_lines(run_directory.result)}"
            )
            results.append(run_directory.result)
            continue
        # Random layers are drawn inside the compiled step, by the seed.
        if program is None or config.amplify_select == "random":
            program = prepare(config)
        results.append(run(program, config))
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
    from training.loop import Loop, count_steps

    compilation.keep_compiled(config.cache_dir)
    with jax.enable_x64(config.precision == "float64"):
        # -- Data ----------------------------------------------------------------
        dataset = data.load(
            config.dataset,
            data_dir=config.data_dir,
            validation_fraction=config.validation_fraction,
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
        print(
            f"{config.model} ({size:,} parameters) on {dataset.name} with "
            f"{config.method}: {len(dataset.train.labels):,} training, "
            f"{len(dataset.validation.labels):,} validation, "
            f"{len(dataset.test.labels):,} test images; "
            f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
            flush=True,
        )
        print("compiling", flush=True)
        loop.compile()
    return Program(config, dataset, schedule, loop, total_steps)


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
    import jax

    with jax.enable_x64(config.precision == "float64"):
        return _run(program, config, watcher or Watcher())


def _run(program: Program, config: Config, watcher: Watcher) -> dict[str, Any]:
    import jax

    from training import amplification, checkpoints, curves, profiling, records
    from training.display import Display, epoch_line, result_lines, selection_line

    _, dataset, schedule, loop, total_steps = program
    run = records.Run(config)
    if run.result is not None:
        return run.result
    run.begin(dataset)
    loop.start(_seed(config))

    # -- Training ----------------------------------------------------------------
    best: dict[str, Any] = {}
    observer = amplification.Observer(loop.state.opt_state, loop.state.params)
    epochs = math.ceil(total_steps / loop.steps_per_epoch)
    with Display(total_steps, config.batch_size) as display:
        for epoch in range(epochs):
            with profiling.trace(
                run.path, config.profile and epoch == min(1, epochs - 1)
            ):
                trained = loop.train_epoch(
                    epoch,
                    functools.partial(display.advance, epoch + 1),
                    functools.partial(watcher.after_call, loop),
                )
            validated = loop.evaluate(loop.state.variables, dataset.validation)
            step = int(loop.state.step)
            metrics: dict[str, Any] = {
                "epoch": epoch + 1,
                "step": step,
                "train_loss": trained["loss"],
                "train_accuracy": trained["accuracy"],
                "validation_loss": validated["loss"],
                "validation_accuracy": validated["accuracy"],
                "learning_rate": float(schedule(step - 1)),
                "gradient_norm": trained["gradient_norm"],
                "update_norm": trained["update_norm"],
                "parameter_norm": loop.parameter_norm(),
                "skipped_steps": int(trained["skipped"]),
                "images_per_second": trained["images_per_second"],
            }
            account = observer.observe(loop.state.opt_state)
            if account is not None:
                metrics |= {
                    "amplified": account.amplified,
                    "analysis": account.analysis,
                }
            run.add(metrics)
            watcher.after_epoch(loop, metrics)
            # NaN without a validation part: then the last epoch counts as the best.
            loss = metrics["validation_loss"]
            is_best = not best or math.isnan(best["loss"]) or loss < best["loss"]
            if is_best:
                best = {"epoch": epoch + 1, "loss": loss}
                checkpoints.save(run.path / records.BEST, loop.state.variables)
            display.line(epoch_line(metrics, epochs, is_best))
            if account is not None and account.analysis is not None:
                run.add_table(f"after epoch {epoch + 1}", str(account.table))
                display.line(selection_line(account.analysis))

    # -- Test, once, with the best parameters ------------------------------------
    tested = loop.evaluate(checkpoints.load(run.path / records.BEST), dataset.test)

    # -- Report ------------------------------------------------------------------
    result = {
        "best_epoch": best["epoch"],
        "validation_loss": best["loss"],
        "test_loss": tested["loss"],
        "test_accuracy": tested["accuracy"],
        "test_top1_error": tested["top1_error"],
        "test_top5_error": tested["top5_error"],
        "train_seconds": loop.train_seconds,
        "epochs": epochs,
        "steps": total_steps,
        "parameters": sum(x.size for x in jax.tree.leaves(loop.state.params)),
        **records.provenance(),
    }
    title = f"{config.model} on {dataset.name}, {config.method}, seed {config.seed}"
    curves.draw(run.path / records.CURVES, run.history(), title)
    amplification.draw(run.path / records.AMPLIFICATION, run.history(), title)
    result = run.finish(result)
    print(f"{result_lines(result)}\nrecorded in {run.path}", flush=True)
    return result


def _seed(config: Config) -> int:
    assert isinstance(config.seed, int)  # parse makes one configuration a seed
    return config.seed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        train(config_lib.parse(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntrain.py: stopped; what was recorded stays", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    code = main()
    if code == 130:
        # Threads of the compiler may still be at work, and an orderly end would crash
        # on them. All that is recorded is on disk.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
