"""Flags that are declared once: type, default, range, help, and what they depend on."""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple

from training.errors import ConfigError

_LARGEST_FLOAT = 1e38  # float32 holds three times that


class Flag(NamedTuple):
    """The declaration of a flag."""

    # A function is called with the flags declared before this one, as attributes.
    default: Any
    help: str
    # Another flag, declared before, and its values under which this one has a meaning.
    # Under others it is None, or False for a switch.
    only: tuple[str, tuple[Any, ...]] | None = None
    # An annotation Literal["a", "b"] says the same.
    choices: Collection[str] | None = None
    # The settings that each choice brings along: a class of Part, or a tuple of them.
    parts: Mapping[str, Any] | None = None
    low: float = -math.inf  # at least
    below: float = math.inf
    high: float = math.inf  # at most
    above: float = -math.inf
    # Whether it determines what a run computes. Others are not recorded, and may change
    # when a run is resumed.
    identity: bool = True
    several: bool = False  # on the command line
    alias: str | None = None  # on the command line
    hidden: bool = False  # from the command line: the program alone sets it
    # From the field: its type apart from None, its name, and that with the prefix.
    kind: type = str
    field: str = ""
    name: str = ""


def flag(default: Any, help: str, **declared: Any) -> Any:
    """Declares a flag as a field of a dataclass; see :class:`Flag`."""
    one = Flag(default, help, **declared)
    if callable(default):
        return dataclasses.field(kw_only=True, metadata={"flag": one})
    return dataclasses.field(kw_only=True, default=default, metadata={"flag": one})


class Part:
    """Settings that a choice brings along, such as those of a method.

    Derived classes are dataclasses whose fields are flags. They have a meaning with the
    choices that bring them along, and need no ``only``.
    """

    # With the prefix "plp", the field ``step`` is ``plp_step`` and ``--plp-step``.
    prefix: ClassVar[str] = ""


def flags(config: type) -> dict[str, Flag]:
    """The flags of a dataclass and of what its choices bring along, by name, in order.

    It is not cached as a whole, so that an entry that is added to the choices counts.
    """
    found: dict[str, Flag] = {}

    def add(one: Flag, choosing: Flag | None = None, choice: str = "") -> None:
        before = found.get(one.name)
        if before is not None and before._replace(only=None) != one._replace(only=None):
            raise TypeError(f"two different flags have the name {one.name}")
        if choosing is not None and one.only is None:
            choices = before.only[1] if before is not None and before.only else ()
            one = one._replace(only=(choosing.name, (*choices, choice)))
        found[one.name] = one

    for choosing in _declared(config):
        add(choosing)
        for choice in choosing.parts or ():
            for part in _parts(choosing, choice):
                for one in _declared(part):
                    add(one, choosing, choice)
    return found


@functools.cache
def _declared(holder: Any) -> list[Flag]:
    """The flags that a dataclass declares itself."""
    hints = typing.get_type_hints(holder)
    prefix = f"{name}_" if (name := getattr(holder, "prefix", "")) else ""
    found = []
    for field in dataclasses.fields(holder):
        if (one := field.metadata.get("flag")) is None:
            continue
        kind, choices = hints[field.name], one.choices or one.parts
        if types.NoneType in typing.get_args(kind):
            (kind,) = (k for k in typing.get_args(kind) if k is not types.NoneType)
        if typing.get_origin(kind) is Literal:
            kind, choices = str, typing.get_args(kind)
        name = prefix + field.name
        found.append(
            one._replace(kind=kind, choices=choices, field=field.name, name=name)
        )
    return found


def _parts(declared: Flag, choice: str | None) -> tuple[Any, ...]:
    """The classes of settings that a choice brings along."""
    if choice is None or declared.parts is None:
        return ()
    found = declared.parts[choice]
    return found if isinstance(found, tuple) else (found,)


def build(config: Any, fields: Mapping[str, Any]) -> Any:
    """Makes a dataclass of flags from all of its fields (:func:`complete`).

    Its ``parts`` are what the choices bring along.
    """

    def make(holder: Any, **others: Any) -> Any:
        own = {one.field: fields[one.name] for one in _declared(holder)}
        return holder(**own, **others)

    choosing = flags(config).values()
    chosen = [p for one in choosing for p in _parts(one, fields[one.name])]
    return make(config, parts=tuple(map(make, chosen)))


def values(config: Any) -> dict[str, Any]:
    """All fields of what :func:`build` made, by name."""
    found: dict[str, Any] = {}
    for holder in (config, *config.parts):
        kind: Any = type(holder)
        found |= {one.name: getattr(holder, one.field) for one in _declared(kind)}
    return {n: found.get(n, _unset(one)) for n, one in flags(type(config)).items()}


def naming(part: Any, error: ValueError) -> str | None:
    """An error that begins with an argument's name, about the flag that gives it.

    The arguments are the fields of ``part``; None if it is about none of them.
    """
    kind: Any = type(part)
    argument, _, rest = str(error).partition(" ")
    names = {one.field: one.name for one in _declared(kind)}
    return f"{spell(names[argument])} {rest}" if argument in names else None


def spell(name: str) -> str:
    """The command line's spelling of a field's name."""
    return f"--{name.replace('_', '-')}"


# -- The command line ------------------------------------------------------------------


def read_command_line(
    argv: Sequence[str], groups: Mapping[str, type], *, prog: str, description: str
) -> dict[str, Any]:
    """Returns the flags that were given, by name.

    Args:
      argv: Arguments, without the program's name.
      groups: Dataclasses of flags, by their titles in ``--help``.
      prog: Name of the program, in ``--help``.
      description: The first lines of ``--help``.

    Raises:
      SystemExit: For ``--help`` (exit code 0), and for flags that cannot be parsed
        (exit code 2, with a message on stderr).
    """
    import tyro  # only the command line needs it, and it takes a while to import

    def argument(declared: Flag) -> Any:
        hint: Any = declared.kind
        if declared.choices is not None:
            hint = Literal[tuple(declared.choices)]
        if declared.several:
            hint = types.GenericAlias(tuple, (hint, ...))
        option = tyro.conf.arg(
            help=declared.help,
            help_behavior_hint=_describe_default(declared),
            aliases=[declared.alias] if declared.alias else None,
        )
        return typing.Annotated[hint, option]

    # A TypedDict that is not total has an entry only for what was given.
    typed_dict: Any = typing.TypedDict
    arguments = {}
    for title, group in groups.items():
        shown = {name: one for name, one in flags(group).items() if not one.hidden}
        fields = {name: argument(one) for name, one in shown.items()}
        about = tyro.conf.arg(help=(group.__doc__ or "").strip())
        typed = typed_dict(title.title(), fields, total=False)
        arguments[title] = typing.Annotated[typed, about]
    given: dict[str, dict[str, Any]] = tyro.cli(
        typed_dict("Flags", arguments),
        args=list(argv),
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return {name: value for group in given.values() for name, value in group.items()}


def _describe_default(declared: Flag) -> str:
    parts = []
    if declared.only is not None:
        choice, values = declared.only
        if values == (None,):
            parts.append(f"not with {spell(choice)}")
        else:
            parts.append(f"with {spell(choice)} {' or '.join(values)}")
    if not callable(declared.default) and declared.default is not None:
        value = declared.default
        shown = str(value).lower() if isinstance(value, bool) else value
        parts.append(f"default: {shown}")
    return f"({'; '.join(parts)})" if parts else ""


# -- Completing and checking -----------------------------------------------------------


def complete(
    config: type, explicit: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns all fields of a dataclass of flags.

    Explicit fields, those that were asked for, override the base's, of which those
    without a meaning are dropped.

    Raises:
      ConfigError: If a value is out of range, or an explicit one has no meaning.
    """
    declared = flags(config)
    base = dict(base)
    for name, value in {**base, **explicit}.items():
        check(declared[name], value)
    for name in explicit:
        only = declared[name].only
        if only is not None and only[1] == (None,) and only[0] not in explicit:
            base[only[0]] = None  # an explicit flag replaces what excludes it
    fields: dict[str, Any] = {}
    for name, one in declared.items():
        value = explicit.get(name, base.get(name))
        if not _applies(one, fields):
            if explicit.get(name) is not None and value is not False:
                raise ConfigError(_has_no_meaning(name, value, declared, fields))
            value = None
        if one.kind is float and value is not None:
            value = float(value)  # 1 and 1.0 are the same run
        fields[name] = default(one, fields) if value is None else value
    return fields


def default(declared: Flag, fields: Mapping[str, Any]) -> Any:
    """The value of a flag that is not given, from the fields declared before it."""
    if not _applies(declared, fields):
        return _unset(declared)
    if callable(declared.default):
        return declared.default(SimpleNamespace(**fields))
    return declared.default


def _unset(declared: Flag) -> Any:
    return False if declared.kind is bool else None


def _applies(declared: Flag, fields: Mapping[str, Any]) -> bool:
    return declared.only is None or fields[declared.only[0]] in declared.only[1]


def check(declared: Flag, value: Any) -> None:
    """Raises ConfigError unless a value is of the flag's type and in its range."""
    if value is None:  # unset
        return
    kind, shown = declared.kind, value
    is_kind = isinstance(value, float | int if kind is float else kind)
    if not is_kind or (isinstance(value, bool) and kind is not bool):
        names = {int: "an integer", float: "a number", bool: "true or false"}
        expected, shown = names.get(kind, "a string"), json.dumps(value, default=str)
    elif declared.choices is not None and value not in declared.choices:
        expected = f"one of {', '.join(declared.choices)}"
    elif isinstance(value, str):
        is_text = value.encode(errors="ignore").decode() == value
        expected, shown = "" if is_text else "UTF-8", ascii(value)
    else:
        expected = "" if kind is bool else _violated(declared, value)
    if expected:
        raise ConfigError(f"{spell(declared.name)} must be {expected}, got {shown}")


def _violated(declared: Flag, value: float) -> str:
    """The bound of a number's range that a value violates; "" if there is none."""
    limit = 2**31 if isinstance(value, int) else _LARGEST_FLOAT
    below = limit if math.isinf(declared.below) else declared.below
    bounds = {
        "finite": isinstance(value, int) or math.isfinite(value),
        f"at least {declared.low:g}": value >= declared.low,
        f"above {declared.above:g}": value > declared.above,
        f"below {_power(below)}": value < below,
        f"at most {declared.high:g}": value <= declared.high,
        f"above -{_power(limit)}": value > -limit,
    }
    return next((bound for bound, holds in bounds.items() if not holds), "")


def _power(number: float) -> str:
    exponent = math.log2(number) if number > 0 else 0.5
    is_large = exponent >= 20 and exponent.is_integer()
    return f"2**{exponent:.0f}" if is_large else f"{number:g}"


def _has_no_meaning(
    name: str, value: Any, declared: Mapping[str, Flag], fields: Mapping[str, Any]
) -> str:
    given = f"{spell(name)} {value}"
    choice, values = declared[name].only or ("", ())
    while fields[choice] is None and (above := declared[choice].only) is not None:
        choice, values = above  # the choice has no meaning itself
    if fields[choice] is None:
        return f"{given} has no meaning without {spell(choice)}: give both, or neither"
    if values == (None,):
        return f"{given} contradicts {spell(choice)} {fields[choice]}: give one of them"
    return (
        f"{given} has no meaning with {spell(choice)} {fields[choice]}: leave it out, "
        f"or choose {spell(choice)} {' or '.join(values)}"
    )
