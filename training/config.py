"""The configuration of a run: flags, presets, files, and what contradicts what."""

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from training import rules
from training.errors import ConfigError
from training.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains one network with one method and leaves a work directory.

    Without flags: a narrow ResNet-18 on the embedded digits, with parameter linear
    prediction, in about a minute on two CPU cores.

    Attributes:
      dataset: Images to train on. digits is embedded; the others are read by
        tensorflow-datasets from --data-dir.
      data_dir: Directory of prepared tensorflow-datasets sets. Unset: its own default,
        ~/tensorflow_datasets or TFDS_DATA_DIR.
      validation_fraction: Part of the training set that is held out to choose the best
        epoch by. With 0 the last epoch is taken.
      train_fraction: Part of the rest that is trained on, as much of every class.
      split_seed: Seed of these choices, apart from --seed.
      augment: Random crops (side/8 of padding) and, but for digits, mirror images.
      model: The network.
      width: Channels of the network's first stage, which all others scale with. The
        papers' networks have 64.
      stem: How the network begins.
      head: How it ends. Unset: mlp for VGG, linear for the others.
      method: What is added to the optimizer: nothing (sgd); behind it parameter linear
        prediction, Lookahead, or the average of the window; ahead of it layer-wise
        gradient amplification; or amplification and prediction.
      plp_step: PLP: how far to predict, in optimizer steps. Unset: 1.
      plp_window: PLP and average: parameters the window holds. Unset: 3.
      plp_period: PLP and average: optimizer steps in a cycle. Unset: 4, or --plp-window
        if that is more.
      plp_fit: PLP: the line through the window. Unset: midpoint, the paper's.
      lookahead_steps: Lookahead: steps between two synchronisations. Unset: 5.
      lookahead_alpha: Lookahead: rate of the slow weights. Unset: 0.5.
      amplify_select: Layers to amplify: scores (those that stand out), or as controls
        random, all, or names separated by commas. Unset: scores.
      amplify_measure: How consistently a layer's gradients point one way. Unset: g2.
      amplify_threshold: Standard deviations that a layer must stand out by. Unset: 1.5.
      amplify_two_sided: Amplify layers that stand out downwards, too.
      amplify_factor: What gradients are multiplied by. Unset: the strategy's; 2 in the
        named ones, an assumption, as the paper does not publish it.
      amplify_ratio: Part of the layers that --amplify-select random draws.
      amplify_reselect_every: Select anew after every so many amplified epochs.
      amplify_propagate: Amplify inside back-propagation, so that the layers before an
        amplified one are amplified too.
      strategy: Learning rate and amplification by epoch: paper (of VGG-19 and
        ResNet-18/34), paper-deep (of ResNet-50/101), both scaled to --epochs, or a list
        such as "[(10, 0.1, 0, 1), (20, 0.1, 1, 2.0)]" of (end epoch, learning rate,
        amplify?, factor). Takes the place of --schedule and --learning-rate. Unset:
        paper if layers are amplified, else none.
      optimizer: The optimizer.
      learning_rate: Peak learning rate; of a cyclic schedule the base. Unset: 0.05 for
        sgd and nesterov, 0.01 for adagrad, 1 for adadelta, 0.001 for the others.
      momentum: Of sgd, nesterov and rmsprop. Unset: 0.9, for rmsprop 0.
      weight_decay: L2 coefficient, added to the gradient; for adamw decoupled.
      schedule: Learning rate after the warm-up: constant; triangular between
        --learning-rate and --max-learning-rate; times 0.2 at 30, 60 and 80 % of it;
        or falling to 0 along a cosine. Unset: cosine.
      max_learning_rate: Peak of the cyclic schedule. Unset: twice --learning-rate.
      cycle_steps: Steps of half a cycle, from base to peak. Unset: 2000.
      warmup_epochs: Epochs over which the learning rate rises linearly from 0. Unset:
        1.
      epochs: Passes over the training part; a last, partial batch is left out. Unset:
        30, or the end of a listed --strategy.
      max_steps: Stop after so many optimizer steps, even inside an epoch. Schedules
        are those of all --epochs.
      batch_size: Examples in a step, over all devices.
      accumulate: In how many parts a batch is computed, one after the other, to save
        memory; on a CPU none is saved, as the parts are unrolled there. Batch
        normalisation sees a part at a time.
      precision: Type of the network's arithmetic; parameters are float32 at least.
        float16 comes with dynamic loss scaling.
      input: resident keeps the training images on the devices; host sends each batch,
        for sets that do not fit.
      steps_per_call: Training steps in one call, as a loop on the devices. Unset: 1 on
        a CPU, where a loop is slow, else a quarter of an epoch.
      seed: Seed of initial parameters, order of examples, augmentation and dropout.
        Several seeds are trained one after the other.
      profile: Write a trace of the second epoch to the work directory, for
        TensorBoard or Perfetto.
      cache_dir: Where compiled programs are kept from run to run; "none" for nowhere.
        Unset: JAX's own setting, or ~/.cache/plp_optax.
      workdir: Where the run is recorded. Unset: runs/DATASET-MODEL-METHOD-SEED.
      overwrite: Start anew in a work directory that holds a run.
      resume: What to do where a run with this configuration did not finish: auto goes
        on from its last checkpoint; required also fails where there is none; never
        refuses.
      checkpoint_epochs: Save the run after every so many epochs; 0 for the end only.
      checkpoint_minutes: Save it after so many minutes, besides.
      keep_checkpoints: How many of the newest checkpoints are kept.
      on_nonfinite: When loss, gradient or update is not finite: stop, or skip that
        step; after 25 in a row the run stops.
      coordinator_address: Host and port of the first process, HOST:PORT, to train with
        several processes; all of them share the work directory.
      num_processes: How many processes there are.
      process_id: Which of them this is, from 0; process 0 writes the records.
      distributed: Train with all processes that the cluster (Slurm, a TPU pod,
        Kubernetes, MPI) has started, found by JAX.
      preset: Start from a published protocol on CIFAR-100 at full width; flags override
        it. plp-paper (arXiv 2310.10958): 100 epochs, batch 128, one epoch of warm-up,
        then a cyclic rate between 0.001 and 0.002 with half-cycles of 2000 steps,
        momentum 0.9, weight decay 1e-4, 20 % validation. amplify-paper and
        amplify-paper-deep (arXiv 2305.18445): 150 epochs of its strategies; factor 2,
        batch 128, momentum 0.9, weight decay 5e-4, crop and flip are assumptions, as
        the paper does not publish them.
      config: Start from a work directory's config.json; flags override it.
    """

    dataset: Literal["digits", "cifar10", "cifar100"] = "digits"
    data_dir: str | None = None
    validation_fraction: float = 0.2
    train_fraction: float = 1.0
    split_seed: int = 0
    augment: bool = False

    model: Literal[
        "vgg16",
        "vgg19",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "googlenet",
        "tiny",
        "plain",
    ] = "resnet18"
    width: int = 16
    stem: Literal["cifar", "imagenet"] = "cifar"
    head: Literal["mlp", "linear"] | None = None

    method: Literal["sgd", "plp", "lookahead", "average", "amplify", "amplify+plp"] = (
        "plp"
    )
    plp_step: float | None = None
    plp_window: int | None = None
    plp_period: int | None = None
    plp_fit: Literal["midpoint", "least_squares"] | None = None
    lookahead_steps: int | None = None
    lookahead_alpha: float | None = None

    amplify_select: str | None = None
    amplify_measure: Literal["g1", "g1_per_weight", "g2"] | None = None
    amplify_threshold: float | None = None
    amplify_two_sided: bool = False
    amplify_factor: float | None = None
    amplify_ratio: float | None = None
    amplify_reselect_every: int | None = None
    amplify_propagate: bool = False
    strategy: str | None = None

    optimizer: Literal[
        "sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"
    ] = "sgd"
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cyclic", "step", "cosine"] | None = None
    max_learning_rate: float | None = None
    cycle_steps: int | None = None
    warmup_epochs: float | None = None

    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    input: Literal["resident", "host"] = "resident"
    steps_per_call: int | None = None
    seed: int | tuple[int, ...] = 0

    profile: bool = False
    cache_dir: str | None = None

    workdir: str | None = None
    overwrite: bool = False
    resume: Literal["auto", "required", "never"] = "auto"
    checkpoint_epochs: int = 1
    checkpoint_minutes: float = 15.0
    keep_checkpoints: int = 2
    on_nonfinite: Literal["stop", "skip"] = "stop"
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    distributed: bool = False

    preset: Literal["plp-paper", "amplify-paper", "amplify-paper-deep"] | None = None
    config: str | None = None


# Where a run is kept and by whom it is computed, not what.
PLACE = (
    *("workdir", "overwrite", "resume", "preset", "config", "profile", "cache_dir"),
    *("coordinator_address", "num_processes", "process_id", "distributed"),
)
# What may change while a run goes on.
_CONDUCT = (
    *("data_dir", "on_nonfinite"),
    *("checkpoint_epochs", "checkpoint_minutes", "keep_checkpoints"),
)


def parse(argv: Sequence[str]) -> list[Config]:
    """Reads flags into complete configurations, one a seed.

    Args:
      argv: Command-line arguments, without the program's name.

    Returns:
      Configurations that differ in ``seed`` and ``workdir``, with every field that
      was left unset resolved, or None where it has no meaning.

    Raises:
      ConfigError: If a flag, preset or file contradicts another or makes no sense.
      SystemExit: For ``--help``, and for flags that cannot be parsed (exit code 2).
    """
    import tyro  # only the command line needs it

    summary = inspect.cleandoc(Config.__doc__ or "").partition("\n\nAttributes")[0]
    parsed = tyro.cli(Config, args=list(argv), description=summary)
    explicit = {
        name: getattr(parsed, name) for name in _names() if _is_given(name, argv)
    }
    if parsed.preset and parsed.config is not None:
        raise ConfigError(
            "--preset and --config both set where to start from: give one of them"
        )
    base: dict[str, Any] = {}
    if parsed.preset:
        base = PRESETS[parsed.preset]
    elif parsed.config is not None:
        defaults = dataclasses.asdict(Config())
        base = rules.without_defaults(read(Path(parsed.config)), explicit, defaults)
    base = rules.without_superseded(base, explicit)
    seeds = explicit.get("seed", base.get("seed", 0))
    if isinstance(seeds, int):
        return [resolve(explicit, base)]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seed needs different seeds, got {seeds}")
    workdir = explicit.get("workdir")
    return [
        resolve(
            explicit
            | {"seed": seed, "workdir": workdir and str(Path(workdir, f"seed-{seed}"))},
            base,
        )
        for seed in seeds
    ]


def resolve(
    explicit: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> Config:
    """Completes a configuration from what was asked for.

    Args:
      explicit: Fields that were asked for, with one seed; they override ``base``,
        and may not contradict each other.
      base: Fields of a preset or of an earlier run; those that mean nothing under
        the explicit choices are dropped.

    Returns:
      The complete configuration.

    Raises:
      ConfigError: As :func:`parse`.
    """
    fields = dataclasses.asdict(Config()) | dict(base or {}) | dict(explicit)
    rules.check_types(fields, typing.get_type_hints(Config))
    rules.complete(fields, explicit)
    if fields["workdir"] is None:
        parts = (fields[name] for name in ("dataset", "model", "method", "seed"))
        fields["workdir"] = str(Path("runs", "-".join(map(str, parts))))
    config = Config(**fields)
    rules.check_values(config)
    return config


def experiment(config: Config) -> dict[str, Any]:
    """The fields that determine what a run computes."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in PLACE}


def differences(config: Config, other: Mapping[str, Any]) -> list[str]:
    """Sentences such as ``seed is 0 there and 1 here``, one a field that differs.

    Fields that may change while a run goes on are left out.
    """
    here = experiment(config)
    return [
        f"{name} is {other.get(name)} there and {value} here"
        for name, value in here.items()
        if name not in _CONDUCT and other.get(name) != value
    ]


def read(path: Path, what: str = "--config ") -> dict[str, Any]:
    """Reads the fields of a ``config.json``; ``what`` it is called in errors.

    Raises:
      ConfigError: If the file is absent, is not JSON, or has a field unknown here.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what}{path} cannot be read ({error.strerror})") from error
    # Brackets that are nested too deeply exhaust the parser.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what}{path} is not a JSON file: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{what}{path} must hold a JSON object of fields")
    unknown = sorted(set(fields) - set(_names()).difference(PLACE))
    if unknown:
        raise ConfigError(
            f"{what}{path} has fields that do not exist: {', '.join(unknown)}"
        )
    rules.check_types(fields, typing.get_type_hints(Config))
    return fields


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Config)]


def _is_given(name: str, argv: Sequence[str]) -> bool:
    spellings = {rules.flag(name), rules.flag(f"no_{name}")}
    given = (
        "--" + arg[2:].split("=")[0].replace("_", "-")
        for arg in argv
        if arg.startswith("--")
    )
    return any(arg in spellings for arg in given)
