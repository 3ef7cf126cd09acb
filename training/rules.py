"""What the fields of a configuration may be, and how they depend on each other."""

import ast
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from training.errors import ConfigError

_LEARNING_RATES = {"sgd": 0.05, "nesterov": 0.05, "adagrad": 0.01, "adadelta": 1.0}
_VGG = ("vgg16", "vgg19")
_PLP = ("plp", "amplify+plp")
_AMPLIFYING = ("amplify", "amplify+plp")
NAMED_STRATEGIES = ("paper", "paper-deep")


class _Dependent(NamedTuple):
    """A flag that means something only under some choices of another one."""

    flag: str
    choice: str
    values: tuple[Any, ...]
    default: Callable[[dict[str, Any]], Any] = lambda fields: None


# In an order in which each choice is complete before what depends on it.
_DEPENDENTS = (
    _Dependent("data_dir", "dataset", ("cifar10", "cifar100")),
    _Dependent("schedule", "strategy", (None,), lambda c: "cosine"),
    _Dependent("warmup_epochs", "strategy", (None,), lambda c: 1.0),
    _Dependent(
        "learning_rate",
        "strategy",
        (None,),
        lambda c: _LEARNING_RATES.get(c["optimizer"], 0.001),
    ),
    _Dependent(
        "max_learning_rate",
        "schedule",
        ("cyclic",),
        lambda c: 2 * c["learning_rate"],
    ),
    _Dependent("cycle_steps", "schedule", ("cyclic",), lambda c: 2000),
    _Dependent("plp_step", "method", _PLP, lambda c: 1.0),
    _Dependent("plp_fit", "method", _PLP, lambda c: "midpoint"),
    _Dependent(
        "plp_window",
        "method",
        (*_PLP, "average"),
        lambda c: 3,
    ),
    _Dependent(
        "plp_period", "method", (*_PLP, "average"), lambda c: max(4, c["plp_window"])
    ),
    _Dependent("steps_per_call", "input", ("resident",)),
    _Dependent("lookahead_steps", "method", ("lookahead",), lambda c: 5),
    _Dependent("lookahead_alpha", "method", ("lookahead",), lambda c: 0.5),
    _Dependent("amplify_select", "method", _AMPLIFYING, lambda c: "scores"),
    _Dependent("amplify_measure", "method", _AMPLIFYING, lambda c: "g2"),
    _Dependent("amplify_threshold", "amplify_select", ("scores",), lambda c: 1.5),
    _Dependent("amplify_two_sided", "amplify_select", ("scores",)),
    _Dependent("amplify_factor", "method", _AMPLIFYING),
    _Dependent("amplify_ratio", "amplify_select", ("random",)),
    _Dependent("amplify_reselect_every", "method", _AMPLIFYING),
    _Dependent("amplify_propagate", "method", _AMPLIFYING),
    _Dependent(
        "momentum",
        "optimizer",
        ("sgd", "nesterov", "rmsprop"),
        lambda c: 0.0 if c["optimizer"] == "rmsprop" else 0.9,
    ),
)


# Defaults that follow a choice: (choice, follower).
_FOLLOWS = (
    ("model", "head"),
    ("optimizer", "learning_rate"),
    ("optimizer", "momentum"),
    ("learning_rate", "max_learning_rate"),
    ("plp_window", "plp_period"),
)


def without_superseded(
    base: Mapping[str, Any], explicit: Mapping[str, Any]
) -> dict[str, Any]:
    """A preset's or file's fields, less a strategy that explicit flags replace."""
    replaced = any(explicit.get(f) for f in ("schedule", "learning_rate"))
    return {n: v for n, v in base.items() if not (replaced and n == "strategy")}


def without_defaults(
    file: Mapping[str, Any], explicit: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """A file's fields, less defaults that followed a choice which is made anew.

    A run's file holds all fields, also those that nobody chose: they are completed
    anew. ``defaults`` are the fields of a configuration without any choice.
    """
    kept = dict(file)
    for choice, follower in _FOLLOWS:
        if choice in explicit and follower in file:
            unset = {**defaults, **file, follower: None}
            complete(unset, {})
            if file[follower] == unset[follower]:
                kept.pop(follower)
    return kept


def complete(fields: dict[str, Any], explicit: Mapping[str, Any]) -> None:
    """Fills in fields that were left unset, and empties those without meaning.

    Args:
      fields: All fields; changed in place.
      explicit: Those that were asked for, which may not be without meaning.

    Raises:
      ConfigError: If they are.
    """
    if fields["strategy"] is None and fields["method"] in _AMPLIFYING:
        fields["strategy"] = "paper"
    for rule in _DEPENDENTS:
        if fields[rule.choice] in rule.values:
            if fields[rule.flag] is None:
                fields[rule.flag] = rule.default(fields)
        elif explicit.get(rule.flag) not in (None, False):
            raise ConfigError(_means_nothing(rule, explicit[rule.flag], fields))
        else:
            # False for switches, None for all else.
            fields[rule.flag] = False if isinstance(fields[rule.flag], bool) else None
    _complete_epochs(fields, explicit)
    if fields["head"] is None:
        fields["head"] = "mlp" if fields["model"] in _VGG else "linear"


def listed_strategy(text: str) -> list[tuple[Any, ...]]:
    """Reads ``--strategy`` in the paper's notation.

    Raises:
      ConfigError: If it is not a list of tuples of numbers.
    """
    wrong = ConfigError(
        f"--strategy {text!r} is neither {' nor '.join(NAMED_STRATEGIES)} nor a "
        f"list of (end epoch, learning rate, amplify?, factor)"
    )
    try:
        stages = [tuple(stage) for stage in ast.literal_eval(text)]
    # Text that is nested too deeply exhausts the parser.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise wrong from error
    numbers = [number for stage in stages for number in stage]
    if not stages or not all(stages) or not all(map(_is_number, numbers)):
        raise wrong
    return stages


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return f"--{name.replace('_', '-')}"


def check_types(fields: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises unless every field is of its type."""
    for name, value in fields.items():
        kinds = _alternatives(hints[name])
        if not any(_fits(value, kind) for kind in kinds):
            wanted = " or ".join(_describe(kind) for kind in kinds)
            raise ConfigError(f"{flag(name)} must be {wanted}, got {value!r}")


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
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(item, int) for item in value)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if kind is type(None):
        return "null"
    names = {int: "an integer", float: "a number", bool: "true or false"}
    if typing.get_origin(kind) is tuple:
        return "several integers"
    return names.get(kind, "a string")


_POSITIVE = (
    "width",
    "plp_window",
    "plp_period",
    "lookahead_steps",
    "learning_rate",
    "max_learning_rate",
    "cycle_steps",
    "epochs",
    "max_steps",
    "batch_size",
    "accumulate",
    "steps_per_call",
    "amplify_factor",
    "amplify_reselect_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "num_processes",
)
_NOT_NEGATIVE = (
    "weight_decay",
    "warmup_epochs",
    "split_seed",
    "seed",
    "amplify_threshold",
    "process_id",
    "checkpoint_epochs",
)
_PATHS = ("data_dir", "cache_dir", "workdir")
# What numbers must stay below; integers without an entry below 2**31, others below
# _LARGEST.
_LIMITS = {
    **dict.fromkeys(("seed", "split_seed"), 2**32),
    "warmup_epochs": 2**31,
    # More is a slip, and would take all memory, or hours, before it is noticed.
    **dict.fromkeys(("width", "plp_window", "lookahead_steps"), 10_000),
}
_LARGEST = 1e38  # Float32 holds three times that.


def check_values(config: Any) -> None:
    """Raises unless the values of a complete configuration make sense together."""
    for name, value in vars(config).items():
        if name in _PATHS:
            _check_path(name, value or "")
        if value is None or isinstance(value, bool | str):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{flag(name)} must be finite, got {value}")
        if name in _POSITIVE and value <= 0:
            raise ConfigError(f"{flag(name)} must be positive, got {value}")
        if name in _NOT_NEGATIVE and value < 0:
            raise ConfigError(f"{flag(name)} must not be negative, got {value}")
        limit = _LIMITS.get(name, 2**31 if isinstance(value, int) else _LARGEST)
        if abs(value) >= limit:
            bound = f"below {_power(limit)}" if value > 0 else f"above -{_power(limit)}"
            raise ConfigError(f"{flag(name)} must be {bound}, got {value}")
    _check_processes(config)
    if not 0 <= config.validation_fraction < 1:
        raise ConfigError(
            f"--validation-fraction must be in [0, 1), got {config.validation_fraction}"
        )
    if not 0 < config.train_fraction <= 1:
        raise ConfigError(
            f"--train-fraction must be in (0, 1], got {config.train_fraction}"
        )
    if config.momentum is not None and not 0 <= config.momentum < 1:
        raise ConfigError(f"--momentum must be in [0, 1), got {config.momentum}")
    if config.optimizer == "nesterov" and config.momentum == 0:
        raise ConfigError("--optimizer nesterov needs a --momentum above 0")
    if config.plp_window == 1:
        raise ConfigError("--plp-window must be at least 2, got 1")
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
    if config.cycle_steps is not None and config.cycle_steps >= 2**30:
        # A whole cycle is counted in int32.
        raise ConfigError(
            f"--cycle-steps, half a cycle, must be below 2**30, got "
            f"{config.cycle_steps}"
        )
    if config.amplify_select == "random" and config.amplify_ratio is None:
        raise ConfigError("--amplify-select random needs --amplify-ratio, such as 0.2")
    if config.amplify_ratio is not None and not 0 < config.amplify_ratio <= 1:
        raise ConfigError(
            f"--amplify-ratio must be in (0, 1], got {config.amplify_ratio}"
        )
    is_vgg = config.model in _VGG
    if config.head == "mlp" and not is_vgg:
        raise ConfigError(
            f"--head mlp belongs to VGG; {config.model} ends in --head linear"
        )
    if config.stem == "imagenet" and (is_vgg or config.model in ("tiny", "plain")):
        raise ConfigError(f"{config.model} has no --stem imagenet, only cifar")


def _check_path(name: str, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        # The libraries that read and write arrays take no other names.
        raise ConfigError(f"{flag(name)} must be in UTF-8, got {path!a}") from error


def _power(number: float) -> str:
    exponent = math.log2(number)
    return f"2**{exponent:.0f}" if exponent.is_integer() else f"{number:g}"


def _check_processes(config: Any) -> None:
    address, count, number = (
        config.coordinator_address,
        config.num_processes,
        config.process_id,
    )
    port = re.fullmatch(r"\S+:([0-9]{1,5})", address or "")
    if address is not None and not (port and 0 < int(port[1]) < 2**16):
        raise ConfigError(
            f"--coordinator-address must be HOST:PORT, such as 10.0.0.1:8476, got "
            f"{address}"
        )
    if (address is None) != (count is None) or (count is None) != (number is None):
        raise ConfigError(
            "--coordinator-address, --num-processes and --process-id belong together: "
            "give all three, or --distributed to let JAX find them"
        )
    if number is not None and number >= count:
        raise ConfigError(
            f"--process-id {number} must be below --num-processes {count}"
        )


def _complete_epochs(fields: dict[str, Any], explicit: Mapping[str, Any]) -> None:
    strategy = fields["strategy"]
    if strategy is not None and strategy not in NAMED_STRATEGIES:
        end = listed_strategy(strategy)[-1][0]
        if explicit.get("epochs") not in (None, end):
            raise ConfigError(
                f"--epochs {explicit['epochs']} contradicts --strategy, which ends "
                f"with epoch {end}: leave --epochs out"
            )
        fields["epochs"] = end
    elif fields["epochs"] is None:
        fields["epochs"] = 30


def _means_nothing(rule: _Dependent, value: Any, fields: Mapping[str, Any]) -> str:
    given = f"{flag(rule.flag)} {value}"
    if fields[rule.choice] is None:  # itself without meaning under another choice
        rule = next(other for other in _DEPENDENTS if other.flag == rule.choice)
    choice, values = rule.choice, rule.values
    if values == (None,):
        return f"{given} contradicts {flag(choice)} {fields[choice]}: give one of them"
    return (
        f"{given} means nothing with {flag(choice)} {fields[choice]}: leave it out, or "
        f"choose {flag(choice)} {' or '.join(values)}"
    )
