"""The training program, from a configuration to a work directory.

:func:`prepare` loads the data and compiles network and optimizer; :func:`run` trains,
selects the best epoch, tests it once, and records everything.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from training import cascade, data, stages
from training.engine import feed, networks, parallel, pretrained
from training.engine.program import Program
from training.engine.state import Given
from training.errors import ConfigError, RunError
from training.run.callbacks import Callback
from training.run.display import result_lines, say, summary_line, waiting
from training.run.interrupts import acknowledged
from training.run.session import Session
from training.run.workdir import WorkDirectory
from training.settings import chain
from training.settings.config import Config
from training.settings.methods import AdaptiveWindow, Amplify
from training.settings.optimizers import SGD
from training.settings.plan import Plan

# Steps in a row that may be skipped before a run stops.
_MOST_SKIPPED = 25


class Prepared(NamedTuple):
    """What the runs of one configuration share, whatever their seeds.

    Attributes:
      dataset: The data.
      program: Network and optimizer, compiled.
      schedule: The learning rate as a function of the optimizer step.
      total_steps: Steps in a run.
      weights: Variables of ``--initial-weights``.
    """

    dataset: data.Dataset
    program: Program
    schedule: optax.Schedule
    total_steps: int
    weights: Given | None


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
    prepared: dict[int | None, Prepared] = {}  # by stage, one at a time
    results = []

    def run_one(
        config: Config,
        directory: WorkDirectory,
        dataset: data.Dataset | None = None,
        given: Given | None = None,
    ) -> dict[str, Any]:
        stage = config.cascade_stage
        if stage not in prepared or depends_on_seed(config):
            prepared.clear()  # it holds the images
            if stage is not None:
                # JAX keeps compiled functions that can no longer be called. Those of
                # about a hundred stages use up the memory maps of a process on Linux.
                jax.clear_caches()
            prepared[stage] = prepare(config, dataset, given)
        with _precision(config):
            return _run(prepared[stage], config, directory, callback, given)

    with acknowledged(), contextlib.ExitStack() as stack:
        try:
            directories = [stack.enter_context(WorkDirectory(c)) for c in configs]
        except RunError:
            # A mistake in the configuration is reported first.
            _plan(configs[0], _load(configs[0]))
            raise
        for config, directory in zip(configs, directories, strict=True):
            if directory.result is not None:
                say(f"{directory.path} has finished:\n{result_lines(directory.result)}")
                results.append(directory.result)
                continue
            if len(configs) > 1:
                say(f"seed {config.seed}")
            if config.cascade is None:
                results.append(run_one(config, directory))
            else:
                with _precision(config):
                    dataset = _load(config)
                    _check_stages(config, dataset)
                    results.append(cascade.run(config, directory, dataset, run_one))
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


def _run(
    prepared: Prepared,
    config: Config,
    directory: WorkDirectory,
    callback: Callback | None,
    given: Given | None = None,
) -> dict[str, Any]:
    callback = callback or Callback()
    callback.on_start(config, prepared.program, prepared.dataset)
    session = Session(
        config,
        directory,
        prepared.dataset,
        prepared.program,
        prepared.schedule,
        prepared.total_steps,
        callback,
        prepared.weights if given is None else given,
    )
    with session.saved_when_stopped():
        while not session.is_over:
            session.train_epoch()
            metrics = session.validate()
            session.record(metrics)
        tested = session.test()  # once
    result = session.report(tested)
    say(f"{result_lines(result)}\nrecorded in {directory.path}")
    return result


# -- Preparing -------------------------------------------------------------------------


def prepare(
    config: Config, dataset: data.Dataset | None = None, given: Given | None = None
) -> Prepared:
    """Loads the data, builds network and optimizer, and compiles them.

    Args:
      config: A complete configuration. Its seed matters if :func:`depends_on_seed`.
      dataset: Its data, if they are loaded already.
      given: Of a stage of a cascade, the variables that it starts from.

    Raises:
      UserError: If the data or the devices do not allow it.
    """
    _cache_programs(config.cache_dir)
    with _precision(config):
        if dataset is None:
            dataset = _load(config)
        schedule, total_steps = _plan(config, dataset)
        say(
            f"{config.model} on {dataset.name} with {config.method}: "
            f"{len(dataset.train.labels):,} training, "
            f"{len(dataset.validation.labels):,} validation, "
            f"{len(dataset.test.labels):,} test images; "
            f"{jax.device_count()} x {jax.local_devices()[0].device_kind}"
        )
        if config.pin_memory and jax.default_backend() == "cpu":
            say("note: --pin-memory means nothing on a CPU, which transfers no batches")
        sgd = config.get(SGD)
        if config.get(Amplify) and not sgd:
            say(
                f"note: {config.optimizer} is nearly invariant to the scale of "
                f"gradients, so amplification has little effect"
            )
        is_heavy_ball = sgd and sgd.momentum and not sgd.nesterov
        if config.get(AdaptiveWindow) and is_heavy_ball:
            say(
                "note: a jump leaves heavy-ball momentum as it was, which is slower "
                "than momentum alone: choose --optimizer nesterov or --momentum 0"
            )
        weights = _load_weights(config, dataset)
        with waiting("compiling (the first time only, unless settings change)"):
            source = None
            if stages.has_cache(config):
                source = _feed(config, stages.frozen_outputs(config, dataset, given))
            program = build(config, dataset, source)
    return Prepared(dataset, program, schedule, total_steps, weights)


def _load_weights(config: Config, dataset: data.Dataset) -> Given | None:
    """The variables of ``--initial-weights``."""
    if config.initial_weights is None:
        return None
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    shape = dataset.train.images.shape[1:]
    weights, notes = pretrained.load(config, module, shape)
    say("; ".join((f"starting from {config.initial_weights}", *notes)))
    return weights


def _load(config: Config) -> data.Dataset:
    """The data of a run."""
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
    """Whether what :func:`prepare` makes serves one seed only."""
    # Random layers are drawn inside the compiled step.
    amplify = config.get(Amplify)
    is_random = amplify is not None and amplify.select == "random"
    # The cache is what blocks that were trained with this seed make of the images.
    return config.split_per_seed or is_random or config.cascade_cache


def build(
    config: Config, dataset: data.Dataset, source: feed.Feed | None = None
) -> Program:
    """Builds and compiles the program of a configuration.

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
) -> Program:
    """As :func:`build`, without compiling."""
    module, trained, tx = _network_and_optimizer(config, dataset)
    amplify = config.get(Amplify)
    # float16 overflows until its loss scale fits.
    is_patient = config.on_nonfinite == "skip" or config.precision == "float16"
    return Program(
        module,
        tx,
        source or _feed(config, dataset.train),
        dataset,
        batch_size=config.batch_size * config.batches_per_step,
        dtype=networks.DTYPES[config.precision],
        augment=config.augment,
        propagate=amplify.layers if amplify and amplify.propagate else None,
        trained=trained,
        train_module=module.clone(cached=True) if stages.has_cache(config) else None,
        parts=config.batch_parts * config.batches_per_step,
        label_smoothing=config.label_smoothing,
        ema=config.ema,
        most_skipped=_MOST_SKIPPED if is_patient else 1,
    )


def _network_and_optimizer(
    config: Config, dataset: data.Dataset
) -> tuple[nn.Module, stages.Trained, optax.GradientTransformationExtraArgs]:
    """The network, which of its parameters are trained, and the optimizer of those."""
    module = stages.make_network(config, dataset.num_classes, axis_name=parallel.AXIS)
    trained = stages.Trained(module, dataset.train.images.shape[1:])
    tx = chain.make_optimizer(config, count_steps(config, dataset))
    return module, trained, trained.only(tx)


def _check_stages(config: Config, dataset: data.Dataset) -> None:
    """Raises ConfigError if the optimizer does not fit the layers of a stage.

    At the beginning, and not only in the stage itself, hours later.
    """
    shape = dataset.train.images.shape[1:]
    images = jnp.zeros((1, *shape), networks.DTYPES[config.precision])
    for stage in stages.make_stages(config):
        module, _, tx = _network_and_optimizer(stage.configure(config), dataset)
        init = functools.partial(module.init, train=False)
        variables = jax.eval_shape(init, jax.random.key(0), images)
        try:
            jax.eval_shape(tx.init, variables["params"])
        except (ConfigError, ValueError) as error:
            raise ConfigError(f"in the stage of {stage.block}, {error}") from error


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


def _precision(config: Config) -> contextlib.AbstractContextManager[None]:
    return jax.enable_x64(config.precision == "float64")
