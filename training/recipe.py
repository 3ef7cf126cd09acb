"""The training program: what happens to a configuration, from top to bottom.

:func:`train` prepares and runs several seeds, and the stages of a cascade.
:func:`prepare` loads the data, builds network and optimizer, and compiles. A run trains
epoch by epoch, tests the best epoch once, and records everything.
"""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from training import cascade, data
from training.engine import feed, networks, parallel
from training.engine.engine import Engine
from training.engine.optimizer import (
    make_optimizer,
    make_plan,
    make_schedule,
    notes,
)
from training.engine.state import split_frozen, variable_shapes
from training.engine.step import Preprocess, make_train_step
from training.errors import ConfigError, DivergedError
from training.run.callbacks import Callback
from training.run.display import (
    result_lines,
    say,
    show_sweep,
    summary_line,
    waiting,
)
from training.run.interrupts import acknowledged
from training.run.loop import Prepared, TrainingLoop
from training.run.records import read_metrics
from training.run.workdir import WorkDirectory
from training.settings.config import Config
from training.settings.methods import Amplify
from training.settings.plan import Plan
from training.start import initial_variables

# Programs by the stage of a cascade that they train; None stands for an ordinary run.
Kept = dict[int | None, Prepared]

# Steps in a row that may be skipped before a run stops.
_MOST_SKIPPED = 25


def train(
    configs: Sequence[Config],
    callback: Callback | None = None,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """Runs trainings that differ in learning rate and seed only; a rate compiles once.

    A run that has already finished is not repeated. Returns the content of each run's
    ``result.json``; with several rates, of one that diverges ``{"diverged": reason}``.

    Args:
      configs: Complete configurations.
      callback: Called while they train.
      kept: Programs that earlier calls prepared, for any seed. New ones are added.

    Raises:
      UserError: If the data, the devices or a work directory do not allow it, or a run
        diverges.
    """
    parallel.join(configs[0])
    kept = {} if kept is None else kept
    rates = [config.learning_rate for config in configs]
    is_sweep = len(set(rates)) > 1
    before: Config | None = None  # the run before
    finished: data.Dataset | None = None  # the data of runs that have finished
    results = []
    with acknowledged(), contextlib.ExitStack() as stack:
        directories = [stack.enter_context(WorkDirectory(c)) for c in configs]
        earlier = [d.earlier_epochs for d in directories]
        for config, directory in zip(configs, directories, strict=True):
            if before is not None and (
                depends_on_seed(config) or config.learning_rate != before.learning_rate
            ):
                kept.clear()
            before = config
            if directory.result is not None:
                if finished is None or config.split_per_seed:
                    finished = kept[None].dataset if None in kept else load_data(config)
                directory.refuse_other_data(finished)
                say(f"{directory.path} has finished:\n{result_lines(directory.result)}")
                results.append(directory.result)
                continue
            if len(configs) > 1:
                of_rate = f"learning rate {config.learning_rate}, " if is_sweep else ""
                say(f"{of_rate}seed {config.seed}")
            try:
                if config.cascade is not None:
                    results.append(_run_cascade(config, directory, callback, kept))
                    continue
                if None not in kept:
                    kept[None] = prepare(config, earlier=earlier)
                elif directory.earlier_epochs is not None:
                    with networks.precision(config):
                        _refuse_another_beginning(
                            config, directory.earlier_epochs, kept[None].dataset
                        )
                results.append(_run(kept[None], config, directory, callback))
            except DivergedError as error:
                if not is_sweep:
                    raise
                say(str(error))
                results.append({"diverged": str(error)})
        if is_sweep:
            show_sweep(rates, results)
        elif len(configs) > 1:
            say(summary_line(results))
    return results


def _run_cascade(
    config: Config,
    directory: WorkDirectory,
    callback: Callback | None,
    kept: Kept,
) -> dict[str, Any]:
    """Runs the stages of a cascade, each of them as an ordinary run.

    A stage that has finished is not repeated, and one that has not is resumed.
    """
    with networks.precision(config):
        dataset = load_data(config)
        _check_stages(config, dataset)
    if not directory.is_unfinished:
        directory.start(dataset)
    stages = cascade.stage_configs(config)
    history: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (block, stage) in enumerate(stages.items(), 1):
        with WorkDirectory(stage) as part:
            if part.result is None:
                say(f"stage {number} of {len(stages)}: {block}")
                # JAX keeps compiled functions that can no longer be called. Those of
                # about a hundred stages use up a process's memory maps on Linux.
                jax.clear_caches()
                if number in kept:
                    given = initial_variables(stage, dataset)
                    kept[number] = kept[number]._replace(given=given)
                else:
                    kept[number] = prepare(stage, dataset)
                results.append(_run(kept[number], stage, part, callback))
            else:
                part.refuse_other_data(dataset)
                results.append(part.result)
            # Epochs and steps count on from the stage before.
            last = history[-1] if history else {"epoch": 0, "step": 0}
            history += [
                line
                | {name: last[name] + line[name] for name in ("epoch", "step")}
                | {"stage": number, "block": block}
                for line in read_metrics(part.path)
            ]
        directory.rewrite(dataset, history)
    result = cascade.summary(stages, results)
    directory.finish(result)
    if config.draw:
        directory.draw(dataset, history)
    say(f"{result_lines(result)}\nrecorded in {directory.path}")
    return result


def _check_stages(config: Config, dataset: data.Dataset) -> None:
    """Raises ConfigError if the optimizer does not fit the layers of a stage.

    At the beginning, and not only in the stage itself, hours later.
    """
    for block, stage in cascade.stage_configs(config).items():
        try:
            tx = make_optimizer(stage, count_steps(stage, dataset))
            jax.eval_shape(tx.init, _param_shapes(stage, dataset))
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"in the stage of {block}, {error}") from error


def depends_on_seed(config: Config) -> bool:
    """Whether the result of :func:`prepare` serves one seed only."""
    # Random layers are drawn inside the compiled step.
    amplify = config.get(Amplify)
    return config.split_per_seed or bool(amplify and amplify.select == "random")


# -- Preparing -------------------------------------------------------------------------


def prepare(
    config: Config,
    dataset: data.Dataset | None = None,
    *,
    earlier: Collection[int | None] = (),
) -> Prepared:
    """Loads the data, builds network and optimizer, and compiles them.

    Args:
      config: A complete configuration. Its seed matters if :func:`depends_on_seed`.
      dataset: Its data, if they are loaded already.
      earlier: The epochs of runs with this configuration that go on to more of them.

    Raises:
      UserError: If the data or the devices do not allow it, or an earlier run would
        have been another.
    """
    _cache_programs(config.cache_dir)
    with networks.precision(config):
        dataset = dataset or load_data(config)
        plan = count_steps(config, dataset)
        # Compiled as one function: the first call otherwise compiles a dozen.
        schedule = jax.jit(make_schedule(config, plan))
        for epochs in {epochs for epochs in earlier if epochs is not None}:
            _refuse_another_beginning(config, epochs, dataset)
        say(
            f"{config.model} on {dataset.name}, {config.optimization}: "
            f"{len(dataset.train.labels):,} training, "
            f"{len(dataset.validation.labels):,} validation, "
            f"{len(dataset.test.labels):,} test images; "
            f"{jax.device_count()} x {jax.local_devices()[0].device_kind}"
        )
        for note in (*dataset.notes, *notes(config)):
            say(f"note: {note}")
        given = initial_variables(config, dataset)
        with waiting("compiling (the first time only, unless settings change)"):
            engine = build(config, dataset)
        if count := engine.statistics_batches:
            say(
                f"evaluations: batch statistics over {count} training batches (precise "
                f"batch norm)"
            )
    return Prepared(dataset, engine, schedule, plan, given)


def load_data(config: Config) -> data.Dataset:
    """Loads the data of a run."""
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        image_size=config.image_size,
        validation_fraction=config.validation_fraction,
        train_fraction=config.train_fraction,
        split_seed=config.seed if config.split_per_seed else config.split_seed,
    )


def count_steps(config: Config, dataset: data.Dataset) -> Plan:
    """Counts the optimizer steps of a run.

    A step takes ``--batches-per-step`` whole batches.

    Raises:
      UserError: If the batch does not fit the devices or the data.
    """
    parallel.check_batch_size(config.batch_size, config.batch_parts)
    count, several = len(dataset.train.labels), config.batches_per_step
    steps_per_epoch = count // (config.batch_size * several)
    if not steps_per_epoch:
        times = f" times --batches-per-step {several}" if several > 1 else ""
        raise ConfigError(
            f"--batch-size {config.batch_size}{times} is more than the {count} "
            f"training examples of {dataset.name}: choose a smaller one"
        )
    return make_plan(config, steps_per_epoch)


def _refuse_another_beginning(
    config: Config, epochs: int, dataset: data.Dataset
) -> None:
    """Raises ConfigError unless a run of fewer epochs is the beginning of this one.

    It is if learning rate and optimizer are the same programs for both, and if no block
    of ``--block-means`` was cut short.
    """
    params = _param_shapes(config, dataset)

    def programs(config: Config) -> tuple[str, str]:
        plan = count_steps(config, dataset)
        rate = make_schedule(config, plan)
        tx = make_optimizer(config, plan)
        state = jax.eval_shape(tx.init, params)
        return (
            jax.jit(rate).lower(0).as_text(),
            jax.jit(tx.update).lower(params, state, params).as_text(),
        )

    now, before = programs(config), programs(dataclasses.replace(config, epochs=epochs))
    if now[0] != before[0]:
        what = "the learning rate"
    elif now[1] != before[1]:
        what = "--method or --average-start"
    elif config.block_means and epochs % config.block_means:
        what = "the last block of --block-means"
    else:
        return
    raise ConfigError(
        f"a run of {epochs} epochs is not the beginning of one of {config.epochs}: "
        f"{what} depends on --epochs; choose another --workdir, and --start-from to "
        f"start from its variables"
    )


def _param_shapes(config: Config, dataset: data.Dataset) -> Any:
    """Shapes and dtypes of the parameters that a run trains."""
    module = networks.make_network(config, dataset.num_classes, axis_name=parallel.AXIS)
    shape = dataset.train.images.shape[1:]
    return split_frozen(variable_shapes(module, shape)["params"], module, shape)[0]


def build(
    config: Config, dataset: data.Dataset, source: feed.Feed | None = None
) -> Engine:
    """Builds and compiles the engine of a configuration.

    The data need not be the configuration's, and batches reach the step by way of
    ``source``; by default as ``config.input`` says.

    Raises:
      ConfigError: If the optimizer does not fit the network, or the batch the devices.
    """
    try:
        return assemble(config, dataset, source).compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        raise ConfigError(
            f"the devices have not enough memory ({reason}): choose a smaller "
            f"--batch-size or network, more --batch-parts, or --input host"
        ) from error


def assemble(
    config: Config, dataset: data.Dataset, source: feed.Feed | None = None
) -> Engine:
    """As :func:`build`, without compiling."""
    plan = count_steps(config, dataset)
    amplify = config.get(Amplify)
    # float16 overflows until its loss scale fits.
    is_patient = config.on_nonfinite == "skip" or config.precision == "float16"
    most_skipped = _MOST_SKIPPED if is_patient else 1
    module = networks.make_network(config, dataset.num_classes, axis_name=parallel.AXIS)
    tx = make_optimizer(config, plan)
    preprocess = Preprocess(dataset, jnp.dtype(config.precision), config.augment)
    train_step = make_train_step(
        module,
        tx,
        preprocess,
        propagate=amplify.layers if amplify and amplify.propagate else None,
        parts=config.batch_parts * config.batches_per_step,
        unroll=jax.default_backend() == "cpu",
        label_smoothing=config.label_smoothing,
        most_skipped=most_skipped,
    )
    return Engine(
        module,
        tx,
        preprocess,
        source or _feed(config, dataset.train),
        train_step,
        batch_size=config.batch_size * config.batches_per_step,
        with_block=config.block_means is not None,
        precise_bn=config.precise_bn,
        most_skipped=most_skipped,
    )


def _feed(config: Config, examples: data.Examples) -> feed.Feed:
    """How batches of examples reach the step, as ``config.input`` says."""
    batch_size = config.batch_size * config.batches_per_step
    if config.input == "host":
        pin = config.pin_memory and parallel.can_pin()
        return feed.Host(examples, batch_size, pin=pin)
    steps_per_epoch = len(examples.labels) // batch_size
    # A convolution's backward pass inside a loop is many times slower on a CPU. On an
    # accelerator, few calls an epoch leave the host idle.
    is_cpu = jax.default_backend() == "cpu"
    usual = 1 if is_cpu else math.ceil(steps_per_epoch / 4)
    return feed.Resident(examples, batch_size, config.steps_per_call or usual)


def _cache_programs(cache_dir: str | None) -> None:
    """Turns on JAX's persistent compilation cache."""
    if cache_dir == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if cache_dir is None:
        cache_dir = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    else:
        try:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--cache-dir {cache_dir} cannot be used ({error.strerror}): choose "
                f"another directory"
            ) from error
    path = cache_dir or str(Path("~/.cache/plp_optax").expanduser())
    # Also programs that compile within a second, of which there are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_compilation_cache_dir", path)


# -- Running ---------------------------------------------------------------------------


def _run(
    prepared: Prepared,
    config: Config,
    directory: WorkDirectory,
    callback: Callback | None,
) -> dict[str, Any]:
    callback = callback or Callback()
    with networks.precision(config):
        callback.on_start(config, prepared.engine, prepared.dataset)
        loop = TrainingLoop(config, directory, prepared, callback)
        with loop.saved_when_stopped():
            while not loop.is_over:
                loop.train_epoch()
                metrics = loop.validate()
                loop.record(metrics)
            tested = loop.test()  # once
        result = loop.report(tested)
    say(f"{result_lines(result)}\nrecorded in {directory.path}")
    return result
