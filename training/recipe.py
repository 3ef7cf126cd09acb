"""The training program: what happens to a configuration, from top to bottom.

:func:`prepare` loads the data, builds network and optimizer, and compiles. :func:`run`
trains epoch by epoch, tests the best epoch once, and records everything.
:func:`train` does both for several seeds, and for the stages of a cascade.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from training import cascade, data
from training.engine import feed, networks, parallel, pretrained
from training.engine.engine import Engine
from training.engine.state import Given, make_initial_state, split_frozen
from training.engine.step import (
    Preprocess,
    make_eval_step,
    make_statistics_step,
    make_train_step,
)
from training.errors import ConfigError, RunError
from training.run.callbacks import Callback
from training.run.display import result_lines, say, summary_line, waiting
from training.run.interrupts import acknowledged
from training.run.loop import Prepared, TrainingLoop
from training.run.workdir import WorkDirectory
from training.settings import chain
from training.settings.averages import TailAverage
from training.settings.config import Config
from training.settings.methods import Amplify, Anderson
from training.settings.optimizers import SGD
from training.settings.plan import Plan

# Steps in a row that may be skipped before a run stops.
_MOST_SKIPPED = 25


def prepare(config: Config, dataset: data.Dataset | None = None) -> Prepared:
    """Loads the data, builds network and optimizer, and compiles them.

    Args:
      config: A complete configuration. Its seed matters if :func:`depends_on_seed`.
      dataset: Its data, if they are loaded already.

    Raises:
      UserError: If the data or the devices do not allow it.
    """
    _cache_programs(config.cache_dir)
    with precision(config):
        dataset = dataset or load_data(config)
        schedule, total_steps = _plan(config, dataset)
        say(
            f"{config.model} on {dataset.name}, {config.optimization}: "
            f"{len(dataset.train.labels):,} training, "
            f"{len(dataset.validation.labels):,} validation, "
            f"{len(dataset.test.labels):,} test images; "
            f"{jax.device_count()} x {jax.local_devices()[0].device_kind}"
        )
        for note in (*dataset.notes, *_notes(config)):
            say(f"note: {note}")
        weights = _initial_variables(config, dataset)
        with waiting("compiling (the first time only, unless settings change)"):
            engine = build(config, dataset)
        if count := engine.statistics_batches:
            say(
                f"evaluations: batch statistics over {count} training batches (precise "
                f"batch norm)"
            )
    return Prepared(dataset, engine, schedule, total_steps, weights)


def run(
    prepared: Prepared, config: Config, callback: Callback | None = None
) -> dict[str, Any]:
    """Runs one training.

    Args:
      prepared: The result of :func:`prepare` for this configuration with any seed.
      config: The configuration.
      callback: Called while it trains.

    Returns:
      The content of the run's ``result.json``.

    Raises:
      UserError: If the work directory does not allow it, or the run diverges.
    """
    with WorkDirectory(config) as directory:
        if directory.result is not None:
            directory.refuse_other_data(prepared.dataset)
            return directory.result
        return _run(prepared, config, directory, callback)


def _run(
    prepared: Prepared,
    config: Config,
    directory: WorkDirectory,
    callback: Callback | None,
) -> dict[str, Any]:
    callback = callback or Callback()
    with precision(config):
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


def train(
    configs: Sequence[Config], callback: Callback | None = None
) -> list[dict[str, Any]]:
    """Runs trainings that differ in their seeds only, compiled once.

    Args:
      configs: Complete configurations (:func:`training.settings.config.resolve`).
      callback: Called while they train.

    Returns:
      The content of each run's ``result.json``. A run that has already finished is not
      repeated.

    Raises:
      UserError: If the data, the devices or a work directory do not allow it, or a run
        diverges.
    """
    parallel.join(configs[0])
    prepared: Prepared | None = None
    finished: data.Dataset | None = None  # the data of runs that have finished
    results = []
    with acknowledged(), contextlib.ExitStack() as stack:
        try:
            directories = [stack.enter_context(WorkDirectory(c)) for c in configs]
        except RunError:
            # A mistake in the configuration is reported first.
            _plan(configs[0], load_data(configs[0]))
            raise
        for config, directory in zip(configs, directories, strict=True):
            if directory.result is not None:
                if finished is None or config.split_per_seed:
                    finished = prepared.dataset if prepared else load_data(config)
                directory.refuse_other_data(finished)
                say(f"{directory.path} has finished:\n{result_lines(directory.result)}")
                results.append(directory.result)
                continue
            if len(configs) > 1:
                say(f"seed {config.seed}")
            if config.cascade is not None:
                results.append(_run_cascade(config, directory, callback))
                continue
            if prepared is None or depends_on_seed(config):
                prepared = None  # frees its images before others are loaded
                prepared = prepare(config)
            results.append(_run(prepared, config, directory, callback))
        if len(configs) > 1:
            say(summary_line(results))
    return results


def _run_cascade(
    config: Config, directory: WorkDirectory, callback: Callback | None
) -> dict[str, Any]:
    """Runs the stages of a cascade, each of them as an ordinary run."""
    with precision(config):
        dataset = load_data(config)
        _check_stages(config, dataset)

    def run_stage(stage: Config, directory: WorkDirectory) -> dict[str, Any]:
        # JAX keeps compiled functions that can no longer be called. Those of about a
        # hundred stages use up the memory maps of a process on Linux.
        jax.clear_caches()
        return _run(prepare(stage, dataset), stage, directory, callback)

    return cascade.run(config, directory, dataset, run_stage)


def _check_stages(config: Config, dataset: data.Dataset) -> None:
    """Raises ConfigError if the optimizer does not fit the layers of a stage.

    At the beginning, and not only in the stage itself, hours later.
    """
    shape = dataset.train.images.shape[1:]
    images = jnp.zeros((1, *shape))
    for block, stage in cascade.stage_configs(config).items():
        module, tx = _network_and_optimizer(stage, dataset)
        init = functools.partial(module.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        params, _ = split_frozen(variables["params"], module, shape)
        try:
            jax.eval_shape(tx.init, params)
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"in the stage of {block}, {error}") from error


# -- Preparing -------------------------------------------------------------------------


def _notes(config: Config) -> list[str]:
    """Settings that have no effect, or less than one may think."""
    notes = []
    if config.pin_memory and jax.default_backend() == "cpu":
        notes.append("--pin-memory means nothing on a CPU, which transfers no batches")
    sgd = config.get(SGD)
    if config.get(Amplify) and not sgd:
        notes.append(
            f"{config.optimizer} is nearly invariant to the scale of gradients, so "
            f"amplification has little effect"
        )
    is_heavy_ball = sgd and sgd.momentum and not sgd.nesterov
    if config.get(Anderson) and is_heavy_ball:
        notes.append(
            "a jump leaves heavy-ball momentum as it was, which is slower than "
            "momentum alone: choose --optimizer nesterov or --momentum 0"
        )
    return notes


def _initial_variables(config: Config, dataset: data.Dataset) -> Given | None:
    """The variables that a run starts from; None if all are drawn."""
    if config.cascade_stage is not None:
        return cascade.initial_variables(config)
    if config.initial_weights is None:
        return None
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    shape = dataset.train.images.shape[1:]
    weights, notes = pretrained.load(config, module, shape)
    say("; ".join((f"starting from {config.initial_weights}", *notes)))
    return weights


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


def _plan(config: Config, dataset: data.Dataset) -> tuple[optax.Schedule, int]:
    """Learning rate and number of steps of a run."""
    plan = count_steps(config, dataset)
    return chain.make_schedule(config, plan), plan.last_step


def depends_on_seed(config: Config) -> bool:
    """Whether the result of :func:`prepare` serves one seed only."""
    # Random layers are drawn inside the compiled step.
    amplify = config.get(Amplify)
    is_random = amplify is not None and amplify.select == "random"
    return config.split_per_seed or is_random


def build(
    config: Config, dataset: data.Dataset, source: feed.Feed | None = None
) -> Engine:
    """Builds and compiles the engine of a configuration.

    Args:
      config: A complete configuration.
      dataset: The data, which need not be the configuration's.
      source: How batches reach the step; by default as ``config.input`` says.

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
    module, tx = _network_and_optimizer(config, dataset)
    amplify = config.get(Amplify)
    dtype = networks.DTYPES[config.precision]
    preprocess = Preprocess.of(dataset, dtype, augment=config.augment)
    # float16 overflows until its loss scale fits.
    is_patient = config.on_nonfinite == "skip" or config.precision == "float16"
    most_skipped = _MOST_SKIPPED if is_patient else 1
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
    image_shape = dataset.train.images.shape[1:]
    with_block = config.block_means is not None
    average = config.get(TailAverage)
    plan = count_steps(config, dataset)
    return Engine(
        make_initial_state(module, tx, image_shape, dtype, with_block=with_block),
        train_step,
        make_statistics_step(module, preprocess),
        make_eval_step(module, preprocess),
        source or _feed(config, dataset.train),
        dataset,
        batch_size=config.batch_size * config.batches_per_step,
        most_skipped=most_skipped,
        precise_bn=config.precise_bn,
        split_stats=functools.partial(
            split_frozen,
            module=module,
            image_shape=image_shape,
            collection="batch_stats",
        ),
        average_start=average.first_step(plan) if average else 0,
    )


def _network_and_optimizer(
    config: Config, dataset: data.Dataset
) -> tuple[nn.Module, optax.GradientTransformationExtraArgs]:
    axis = parallel.AXIS
    module = networks.make_network(config, dataset.num_classes, axis_name=axis)
    return module, chain.make_optimizer(config, count_steps(config, dataset))


def _feed(config: Config, examples: data.Examples) -> feed.Feed:
    """How batches of examples reach the step, as ``config.input`` says."""
    batch_size = config.batch_size * config.batches_per_step
    if config.input == "host":
        pin = config.pin_memory and parallel.can_pin()
        return feed.Host(examples, batch_size, pin=pin)
    steps_per_epoch = len(examples.labels) // batch_size
    steps_per_call = config.steps_per_call or _steps_per_call(steps_per_epoch)
    return feed.Resident(examples, batch_size, steps_per_call)


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
    total = config.epochs * steps_per_epoch
    if total >= 2**31:  # optimizers count in int32
        raise ConfigError(
            f"--epochs {config.epochs} is {total:,} steps, and a run has fewer than "
            f"2**31: choose fewer"
        )
    return chain.make_plan(config, steps_per_epoch)


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
    else:
        try:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--cache-dir {cache_dir} cannot be used ({error.strerror}): choose "
                f"another directory"
            ) from error
    path = cache_dir or str(Path("~/.cache/plp_optax").expanduser())
    jax.config.update("jax_compilation_cache_dir", path)


def precision(config: Config) -> contextlib.AbstractContextManager[None]:
    """The context in which everything of a run is computed."""
    return jax.enable_x64(config.precision == "float64")
