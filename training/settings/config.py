"""The configuration of a run: how flags are read, completed and compared."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from models import NETWORKS
from training.errors import ConfigError, UserError
from training.settings import flags, presets
from training.settings.methods import Amplify
from training.settings.optimizers import SGD
from training.settings.options import GROUPS, IN_BLOCKS, Config, StartFlags
from training.settings.plan import listed_epochs
from training.settings.schedules import Cyclic, Plateau


def parse(argv: Sequence[str]) -> list[Config]:
    """Reads a command line into complete configurations, one a rate and seed.

    Args:
      argv: Command-line arguments, without the program's name.

    Returns:
      Configurations that differ in ``learning_rate``, ``seed`` and ``workdir`` only.

    Raises:
      ConfigError: If flags contradict each other or are out of range.
      SystemExit: For ``--help`` and ``--show-config``, and for flags that cannot be
        parsed (exit code 2).
    """
    explicit = flags.read_command_line(
        argv,
        {"start": StartFlags, **GROUPS},
        prog="train.py",
        description="Trains one network with one method. Without flags: a narrow "
        "ResNet-18 on the embedded digits, with parameter linear prediction, in about "
        "a minute on two CPU cores.",
    )
    preset, file = explicit.pop("preset", None), explicit.pop("config", None)
    show = explicit.pop("show_config", False)
    if preset is not None and file is not None:
        raise ConfigError(
            "--preset and --config both set where to start from: give one of them"
        )
    base = presets.preset(preset, explicit.get("dataset")) if preset else {}
    if file is not None:
        base = chosen(resolve({}, read(Path(file), "--config ")))
        if "cascade_stage" in base:
            raise ConfigError(
                f"--config {file} is of one stage of a cascade: name the config.json "
                f"of the whole cascade, two directories up"
            )
    explicit.setdefault("seed", (base.get("seed", 0),))
    swept = {n: explicit.pop(n) for n in ("learning_rate", "seed") if n in explicit}
    for name, values in swept.items():
        if not values or len(set(values)) < len(values):
            raise ConfigError(
                f"{flags.spell(name)} needs different values, got {values}"
            )
    configs = []
    for values in itertools.product(*swept.values()):
        own = dict(zip(swept, values, strict=True))
        folders = [
            f"{name.replace('_', '-')}-{value}"
            for name, value in own.items()
            if len(swept[name]) > 1
        ]
        if explicit.get("workdir") is not None:
            own["workdir"] = str(Path(explicit["workdir"], *folders))
        configs.append(resolve({**explicit, **own}, base))
    if explicit.get("head") and configs[0].cascade is not None:
        raise ConfigError(
            f"--head {explicit['head']} has no meaning with --cascade "
            f"{configs[0].cascade}, which is the kind of head: leave --head out"
        )
    if show:
        print(json.dumps(identity(configs[0]), indent=2))
        raise SystemExit(0)
    return configs


def resolve(
    explicit: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> Config:
    """Completes a configuration.

    Args:
      explicit: Fields that were asked for; they override ``base``, and must have a
        meaning together.
      base: Fields of a preset or of an earlier run; those without a meaning under the
        explicit choices are dropped.

    Raises:
      ConfigError: If a field is out of range, has no meaning, or contradicts another.
    """
    base = dict(base or {})
    if listed_epochs(explicit.get("strategy")) or explicit.get("cascade"):
        # A listed strategy says where it ends, and a cascade how long its stages are.
        base.pop("epochs", None)
    for name in ("initial_weights", "start_from"):
        if explicit.get(name) is not None:
            base.pop(f"{name}_sha256", None)
    config: Config = flags.build(Config, flags.complete(Config, explicit, base))
    for problem in _contradictions(config):
        raise ConfigError(problem)
    workdir = config.workdir
    if workdir is None:
        workdir = _default_workdir(config)
    elif workdir.startswith("~"):  # as in --workdir=~/runs, which shells leave alone
        try:
            workdir = str(Path(workdir).expanduser())
        except RuntimeError as error:
            raise ConfigError(
                f"--workdir {workdir} cannot be used ({error}): choose another"
            ) from error
    return dataclasses.replace(config, workdir=workdir)


def fields(config: Config) -> dict[str, Any]:
    """All fields of a configuration by name, as in ``config.json`` and as flags.

    Those without a meaning under its choices are None, or False for a switch.
    """
    return flags.values(config)


def identity(config: Config) -> dict[str, Any]:
    """The fields that determine what a run computes, complete."""
    declared = flags.flags(Config)
    return {n: v for n, v in fields(config).items() if declared[n].identity}


def chosen(config: Config) -> dict[str, Any]:
    """The same without what follows by default: ``resolve(chosen(c))`` gives it back.

    So a field that is added later, with a default, leaves it as it is.
    """
    found = fields(config)

    def follows(name: str, declared: flags.Flag) -> bool:
        try:
            return bool(found[name] == flags.default(declared, found))
        except ConfigError:  # the digest of a file that is no longer there
            return False

    return {
        name: found[name]
        for name, declared in flags.flags(Config).items()
        if declared.identity and not follows(name, declared)
    }


def fingerprint(fields: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for some fields (:func:`chosen`)."""
    text = json.dumps(dict(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def signature(config: Config) -> str:
    """The name of a run in its files, however long it is.

    Without digests of other files, which are no default once those are gone.
    """
    fields = chosen(config)
    return fingerprint(
        {n: v for n, v in fields.items() if n != "epochs" and "sha256" not in n}
    )


def differences(config: Config, other: Mapping[str, Any]) -> list[str]:
    """Sentences such as ``seed is 0 there and 1 here``, one a field that differs.

    A field that is not there has its default: it was added after that run.
    """
    declared, own = flags.flags(Config), identity(config)
    defaults = {n: flags.default(declared[n], own) for n in set(own) - set(other)}
    there = {n: json.dumps({**defaults, **other}[n]) for n in own}
    return [
        f"{name} is {there[name]} there and {json.dumps(value)} here"
        for name, value in own.items()
        if there[name] != json.dumps(value)
    ] + [f"{name} is unknown here" for name in sorted(set(other) - set(own))]


def read(path: Path, what: str = "") -> dict[str, Any]:
    """Reads the fields of a ``config.json``; ``what`` precedes its path in errors.

    Raises:
      ConfigError: If the file is absent, is not JSON, or has a field unknown here.
    """
    fields = read_object(path, what)
    known = {name for name, one in flags.flags(Config).items() if one.identity}
    if unknown := sorted(set(fields) - known):
        raise ConfigError(f"{what}{path} has unknown fields: {', '.join(unknown)}")
    return fields


def read_object(
    path: Path, what: str = "", kind: type[UserError] = ConfigError
) -> dict[str, Any]:
    """Reads a JSON object; raises an error of this kind if it cannot be read."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise kind(f"{what}{path} cannot be read ({error.strerror})") from error
    # Brackets that are nested too deeply exhaust the parser.
    except (ValueError, RecursionError) as error:
        raise kind(f"{what}{path} is not a JSON file ({error})") from error
    if not isinstance(fields, dict):
        raise kind(f"{what}{path} does not hold a JSON object")
    return fields


def _default_workdir(config: Config) -> str:
    named = ("dataset", "model", "method", "seed")
    parts = [str(getattr(config, name)) for name in named]
    parts[0] = Path(parts[0]).stem or "data"
    others = {n: v for n, v in chosen(config).items() if n not in named[1:]}
    if others.get("dataset") == parts[0]:
        del others["dataset"]
    if others:
        parts.append(fingerprint(others))
    return str(Path("runs", "-".join(parts)))


def _contradictions(c: Config) -> Iterator[str]:
    """Sentences on fields that contradict each other, the first one first."""
    if c.cascade is not None and c.cascade_stage is None:
        if c.model not in IN_BLOCKS:
            yield (
                f"--cascade trains block by block, which {c.model} cannot be: choose a "
                f"--model of {', '.join(IN_BLOCKS)}"
            )
        if c.epochs != c.cascade_epochs:
            yield (
                f"--epochs {c.epochs} has no meaning with --cascade, whose stages have "
                f"--cascade-epochs {c.cascade_epochs} and more: leave --epochs out"
            )
        if listed_epochs(c.strategy):
            yield (
                "a listed --strategy is for one run end to end, and --cascade has a "
                "run for each stage: choose --strategy paper or paper-deep, or leave "
                "it out"
            )
        if c.initial_weights is not None or c.start_from is not None:
            name = "--start-from" if c.start_from else "--initial-weights"
            yield (
                f"{name} has no meaning with --cascade, which trains each block from "
                f"the start: leave one of them out"
            )
    if (end := listed_epochs(c.strategy)) and c.epochs != end:
        yield (
            f"--epochs {c.epochs} contradicts --strategy, which ends with epoch {end}: "
            f"leave --epochs out"
        )
    if c.split_per_seed and c.split_seed:
        yield (
            f"--split-seed {c.split_seed} contradicts --split-per-seed: give one of "
            f"them"
        )
    sgd, cyclic, amplify = c.get(SGD), c.get(Cyclic), c.get(Amplify)
    if sgd and sgd.nesterov and sgd.momentum == 0:
        yield "--optimizer nesterov needs a --momentum above 0"
    if cyclic and cyclic.cycle_momentum and not (sgd and sgd.momentum >= 0.1):
        yield (
            "--cycle-momentum needs --optimizer sgd or nesterov with a --momentum of "
            "at least 0.1"
        )
    if c.average != "none" and c.precise_bn == 0:
        yield (
            f"--precise-bn 0 leaves no batch statistics for --average {c.average}: "
            f"choose --precise-bn 16, or --average none"
        )
    if cyclic and cyclic.max_learning_rate < (c.learning_rate or 0):
        yield (
            f"--max-learning-rate {cyclic.max_learning_rate} is below --learning-rate "
            f"{c.learning_rate}, the lower bound of the cyclic schedule"
        )
    if c.validation_fraction == 0 and (c.early_stopping or c.get(Plateau)):
        watching = "--early-stopping" if c.early_stopping else "--schedule plateau"
        yield (
            f"{watching} watches the validation loss, and --validation-fraction 0 "
            f"leaves none: choose a larger one, such as 0.2"
        )
    if amplify and amplify.select == "random" and amplify.ratio is None:
        yield "--amplify-select random needs --amplify-ratio, such as 0.2"
    if amplify and amplify.inner and amplify.propagate:
        yield (
            "--amplify-inner contradicts --amplify-propagate, which amplifies before "
            "the optimizer: give one of them"
        )
    if amplify and amplify.lowest and amplify.two_sided:
        yield "--amplify-two-sided selects the lowest too: leave --amplify-lowest out"
    if c.head == "mlp" and not NETWORKS[c.model].has_mlp_head:
        yield f"--head mlp is for VGG; {c.model} has --head linear"
    for name in ("initial_weights", "start_from"):
        if getattr(c, f"{name}_sha256") and not getattr(c, name):
            flag = flags.spell(name)
            yield f"{flag}-sha256 has no meaning without {flag}: give both"
    if c.start_from and c.workdir and Path(c.start_from) == Path(c.workdir):
        yield (
            f"--start-from {c.start_from} is the work directory, which would be "
            f"overwritten: choose another --workdir"
        )
    if c.initial_weights and c.start_from:
        yield (
            "--initial-weights and --start-from both say where to start from: give one "
            "of them"
        )
    if c.stem == "imagenet" and not NETWORKS[c.model].has_imagenet_stem:
        yield f"{c.model} has no --stem imagenet, only cifar"
    address, count, number = c.coordinator_address, c.num_processes, c.process_id
    port = re.fullmatch(r"\S+:([0-9]{1,5})", address or "")
    if address is not None and not (port and 0 < int(port[1]) < 2**16):
        yield (
            f"--coordinator-address must be HOST:PORT, such as 10.0.0.1:8476, got "
            f"{address}"
        )
    if len({address is None, count is None, number is None}) > 1:
        yield (
            "--coordinator-address, --num-processes and --process-id belong together: "
            "give all three, or --distributed to let JAX find them"
        )
    if number is not None and count is not None and number >= count:
        yield f"--process-id {number} must be below --num-processes {count}"
