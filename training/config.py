"""The configuration of a run: flags, presets, files, and what contradicts what."""

import dataclasses
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from training.errors import ConfigError


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
      split_seed: Seed of that split, apart from --seed.
      augment: Random crops (side/8 of padding) and, but for digits, mirror images.
      model: The network.
      width: Channels of the network's first stage, which all others scale with. The
        papers' networks have 64.
      stem: How the network begins.
      head: How it ends. Unset: mlp for VGG, linear for the others.
      method: What follows the optimizer: nothing (sgd), parameter linear prediction,
        Lookahead, or the average of the window.
      plp_step: PLP: how far to predict, in optimizer steps. Unset: 1.
      plp_period: PLP and average: optimizer steps in a cycle. Unset: 4, or --plp-window
        if that is more.
      plp_window: PLP and average: parameters the window holds (unset: 3). Lookahead:
        steps between two synchronisations (unset: 5).
      plp_fit: PLP: the line through the window. Unset: midpoint, the paper's.
      lookahead_alpha: Lookahead: rate of the slow weights. Unset: 0.5.
      optimizer: The optimizer that the method follows.
      learning_rate: Peak learning rate; of a cyclic schedule the base. Unset: 0.05 for
        sgd and nesterov, 0.01 for adagrad, 1 for adadelta, 0.001 for the others.
      momentum: Of sgd, nesterov and rmsprop. Unset: 0.9, for rmsprop 0.
      weight_decay: L2 coefficient, added to the gradient; for adamw decoupled.
      schedule: Learning rate after the warm-up: constant; triangular between
        --learning-rate and --max-learning-rate; times 0.2 at 30, 60 and 80 % of
        training; or falling to 0 along a cosine.
      max_learning_rate: Peak of the cyclic schedule. Unset: twice --learning-rate.
      cycle_steps: Steps of half a cycle, from base to peak. Unset: 2000.
      warmup_epochs: Epochs over which the learning rate rises linearly from 0.
      epochs: Passes over the training part; a last, partial batch is left out.
      max_steps: Stop after so many optimizer steps, even inside an epoch.
      batch_size: Examples in a step, over all devices.
      precision: Type of parameters and arithmetic.
      seed: Seed of initial parameters, order of examples, augmentation and dropout.
      workdir: Where the run is recorded. Unset: runs/DATASET-MODEL-METHOD-SEED.
      overwrite: Start anew in a work directory that holds a run.
      preset: Start from a published protocol; flags override it. plp-paper (arXiv
        2310.10958): 100 epochs, batch 128, one epoch of warm-up, then a cyclic rate
        between 0.001 and 0.002 with half-cycles of 2000 steps, momentum 0.9, weight
        decay 1e-4, 20 % validation, full width.
      config: Start from a work directory's config.json; flags override it.
    """

    dataset: Literal["digits", "cifar10", "cifar100"] = "digits"
    data_dir: str | None = None
    validation_fraction: float = 0.2
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
    ] = "resnet18"
    width: int = 16
    stem: Literal["cifar", "imagenet"] = "cifar"
    head: Literal["mlp", "linear"] | None = None

    method: Literal["sgd", "plp", "lookahead", "average"] = "plp"
    plp_step: float | None = None
    plp_period: int | None = None
    plp_window: int | None = None
    plp_fit: Literal["midpoint", "least_squares"] | None = None
    lookahead_alpha: float | None = None

    optimizer: Literal[
        "sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"
    ] = "sgd"
    learning_rate: float | None = None
    momentum: float | None = None
    weight_decay: float = 5e-4
    schedule: Literal["constant", "cyclic", "step", "cosine"] = "cosine"
    max_learning_rate: float | None = None
    cycle_steps: int | None = None
    warmup_epochs: float = 1.0

    epochs: int = 30
    max_steps: int | None = None
    batch_size: int = 64
    precision: Literal["float32", "float64"] = "float32"
    seed: int = 0

    workdir: str | None = None
    overwrite: bool = False
    preset: Literal["plp-paper"] | None = None
    config: str | None = None


PRESETS: dict[str, dict[str, Any]] = {
    # Ying et al., arXiv 2310.10958. Two readings of its period exist; 4, the default,
    # is the text's.
    "plp-paper": {
        "dataset": "cifar100",
        "width": 64,
        "epochs": 100,
        "batch_size": 128,
        "warmup_epochs": 1.0,
        "schedule": "cyclic",
        "learning_rate": 0.001,
        "max_learning_rate": 0.002,
        "cycle_steps": 2000,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "validation_fraction": 0.2,
        "augment": False,
    },
}

# Where a run is kept, not what it computes.
PLACE = ("workdir", "overwrite", "preset", "config")

_LEARNING_RATES = {"sgd": 0.05, "nesterov": 0.05, "adagrad": 0.01, "adadelta": 1.0}
_VGG = ("vgg16", "vgg19")


class _Dependent(NamedTuple):
    """A flag that means something only under some choices of another one."""

    flag: str
    choice: str
    values: tuple[str, ...]
    default: Callable[[dict[str, Any]], Any]


_DEPENDENTS = (
    _Dependent("data_dir", "dataset", ("cifar10", "cifar100"), lambda c: None),
    _Dependent("plp_step", "method", ("plp",), lambda c: 1.0),
    _Dependent("plp_fit", "method", ("plp",), lambda c: "midpoint"),
    _Dependent(
        "plp_window",
        "method",
        ("plp", "average", "lookahead"),
        lambda c: 5 if c["method"] == "lookahead" else 3,
    ),
    _Dependent(
        "plp_period",
        "method",
        ("plp", "average"),
        lambda c: max(4, c["plp_window"]),
    ),
    _Dependent("lookahead_alpha", "method", ("lookahead",), lambda c: 0.5),
    _Dependent(
        "momentum",
        "optimizer",
        ("sgd", "nesterov", "rmsprop"),
        lambda c: 0.0 if c["optimizer"] == "rmsprop" else 0.9,
    ),
    _Dependent(
        "max_learning_rate",
        "schedule",
        ("cyclic",),
        lambda c: 2 * c["learning_rate"],
    ),
    _Dependent("cycle_steps", "schedule", ("cyclic",), lambda c: 2000),
)


def parse(argv: Sequence[str]) -> Config:
    """Reads flags into a complete configuration.

    Args:
      argv: Command-line arguments, without the program's name.

    Returns:
      The configuration with every field that was left unset resolved, or None where
      it has no meaning.

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
    if parsed.preset and parsed.config:
        raise ConfigError(
            "--preset and --config both set where to start from: give one of them"
        )
    base: dict[str, Any] = {}
    if parsed.preset:
        base = PRESETS[parsed.preset]
    elif parsed.config:
        base = read(Path(parsed.config))
    return resolve(explicit, base)


def resolve(
    explicit: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> Config:
    """Completes a configuration from what was asked for.

    Args:
      explicit: Fields that were asked for; they override ``base``, and may not
        contradict each other.
      base: Fields of a preset or of an earlier run; those that mean nothing under
        the explicit choices are dropped.

    Returns:
      The complete configuration.

    Raises:
      ConfigError: As :func:`parse`.
    """
    fields = dataclasses.asdict(Config()) | dict(base or {}) | dict(explicit)
    _check_types(fields)
    if fields["learning_rate"] is None:
        fields["learning_rate"] = _LEARNING_RATES.get(fields["optimizer"], 0.001)
    for flag, choice, values, default in _DEPENDENTS:
        if fields[choice] in values:
            if fields[flag] is None:
                fields[flag] = default(fields)
        elif explicit.get(flag) is not None:
            raise ConfigError(
                f"{_flag(flag)} {explicit[flag]} means nothing with "
                f"{_flag(choice)} {fields[choice]}: leave it out, or choose "
                f"{_flag(choice)} {' or '.join(values)}"
            )
        else:
            fields[flag] = None
    if fields["head"] is None:
        fields["head"] = "mlp" if fields["model"] in _VGG else "linear"
    if fields["workdir"] is None:
        parts = (fields[name] for name in ("dataset", "model", "method", "seed"))
        fields["workdir"] = str(Path("runs", "-".join(map(str, parts))))
    config = Config(**fields)
    _check_values(config)
    return config


def experiment(config: Config) -> dict[str, Any]:
    """The fields that determine what a run computes."""
    fields = dataclasses.asdict(config)
    return {name: value for name, value in fields.items() if name not in PLACE}


def differences(config: Config, other: Mapping[str, Any]) -> list[str]:
    """Sentences such as ``seed is 0 there and 1 here``, one a field that differs."""
    here = experiment(config)
    return [
        f"{name} is {other.get(name)} there and {value} here"
        for name, value in here.items()
        if other.get(name) != value
    ]


def read(path: Path) -> dict[str, Any]:
    """Reads the fields of a ``config.json``.

    Raises:
      ConfigError: If the file is absent, is not JSON, or has a field unknown here.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {path} cannot be read ({error.strerror}): give the path of a "
            f"work directory's config.json"
        ) from error
    except ValueError as error:
        raise ConfigError(f"--config {path} is not a JSON file: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"--config {path} must hold a JSON object of fields")
    unknown = sorted(set(fields) - set(_names()).difference(PLACE))
    if unknown:
        raise ConfigError(
            f"--config {path} has fields that do not exist: {', '.join(unknown)}"
        )
    _check_types(fields)
    return fields


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(Config)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_given(name: str, argv: Sequence[str]) -> bool:
    spellings = {_flag(name), _flag(f"no_{name}")}
    given = (
        "--" + arg[2:].split("=")[0].replace("_", "-")
        for arg in argv
        if arg.startswith("--")
    )
    return any(arg in spellings for arg in given)


def _check_types(fields: Mapping[str, Any]) -> None:
    hints = typing.get_type_hints(Config)
    for name, value in fields.items():
        kinds = _alternatives(hints[name])
        if not any(_fits(value, kind) for kind in kinds):
            wanted = " or ".join(_describe(kind) for kind in kinds)
            raise ConfigError(f"{_flag(name)} must be {wanted}, got {value!r}")


def _alternatives(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [part for arg in typing.get_args(hint) for part in _alternatives(arg)]
    return [hint]


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if kind is type(None):
        return "null"
    return {int: "an integer", float: "a number", bool: "true or false"}.get(
        kind, "a string"
    )


_POSITIVE = (
    "width",
    "plp_window",
    "plp_period",
    "learning_rate",
    "max_learning_rate",
    "cycle_steps",
    "epochs",
    "max_steps",
    "batch_size",
)
_NOT_NEGATIVE = ("weight_decay", "warmup_epochs", "split_seed", "seed")


def _check_values(config: Config) -> None:
    for name, value in dataclasses.asdict(config).items():
        if value is None or isinstance(value, bool | str):
            continue
        if not math.isfinite(value):
            raise ConfigError(f"{_flag(name)} must be finite, got {value}")
        if name in _POSITIVE and value <= 0:
            raise ConfigError(f"{_flag(name)} must be positive, got {value}")
        if name in _NOT_NEGATIVE and value < 0:
            raise ConfigError(f"{_flag(name)} must not be negative, got {value}")
    if max(config.seed, config.split_seed) >= 2**32:
        raise ConfigError("--seed and --split-seed must be below 2**32")
    if not 0 <= config.validation_fraction < 1:
        raise ConfigError(
            f"--validation-fraction must be in [0, 1), got {config.validation_fraction}"
        )
    if config.momentum is not None and not 0 <= config.momentum < 1:
        raise ConfigError(f"--momentum must be in [0, 1), got {config.momentum}")
    if config.optimizer == "nesterov" and config.momentum == 0:
        raise ConfigError("--optimizer nesterov needs a --momentum above 0")
    if config.method == "plp" and config.plp_window == 1:
        raise ConfigError("--plp-window must be at least 2 to draw a line, got 1")
    if (
        config.plp_period is not None
        and config.plp_window is not None
        and config.plp_period < config.plp_window
    ):
        raise ConfigError(
            f"--plp-period {config.plp_period} is shorter than --plp-window "
            f"{config.plp_window}: a cycle must hold its window"
        )
    if (
        config.max_learning_rate is not None
        and config.learning_rate is not None
        and config.max_learning_rate < config.learning_rate
    ):
        raise ConfigError(
            f"--max-learning-rate {config.max_learning_rate} is below --learning-rate "
            f"{config.learning_rate}, the cyclic schedule's base"
        )
    is_vgg = config.model in _VGG
    if config.head == "mlp" and not is_vgg:
        raise ConfigError(
            f"--head mlp belongs to VGG; {config.model} ends in --head linear"
        )
    if config.stem == "imagenet" and (is_vgg or config.model == "tiny"):
        raise ConfigError(f"{config.model} has no --stem imagenet, only cifar")
