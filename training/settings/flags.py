"""Flags that are declared once: type, default, range, help, and what they depend on."""

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from training.errors import ConfigError

T = TypeVar("T")

_LARGEST_FLOAT = 1e38  # float32 holds three times that


class Flag(NamedTuple):
    """What is declared about a flag.

    Attributes:
      default: The value of a flag that is not given. A function is called with the
        flags declared before this one, as attributes.
      help: What ``--help`` says.
      only: Another flag, declared before, and its values under which this one has a
        meaning. Under others it is None, or False for a switch.
      choices: The strings that it may be; an annotation ``Literal["a", "b"]`` says the
        same.
      parts: The settings that each choice brings along, by its name: a class derived
        from :class:`Part`, or a tuple of them.
      low: It must be at least this.
      below: It must be below this.
      high: It must be at most this.
      above: It must be above this.
      identity: Whether it determines what a run computes. Those that do not may change
        when a run is resumed, and are not recorded.
      several: Whether the command line takes several values.
      alias: Another spelling on the command line.
      hidden: Whether the program alone sets it, and the command line does not have it.
      kind: Its type, apart from None; from the annotation.
      field: Its field's name.
      name: The same with the class's prefix: its name in ``config.json``.
    """

    default: Any
    help: str
    only: tuple[str, tuple[Any, ...]] | None = None
    choices: Collection[str] | None = None
    parts: Mapping[str, Any] | None = None
    low: float = -math.inf
    below: float = math.inf
    high: float = math.inf
    above: float = -math.inf
    identity: bool = True
    several: bool = False
    alias: str | None = None
    hidden: bool = False
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

    Attributes:
      prefix: What a field's name is preceded by in flags and in the configuration:
        with the prefix "plp", the field ``step`` is ``plp_step`` and ``--plp-step``.
    """

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


def _read_declarations(holder: type) -> list[Flag]:
    """The flags that a dataclass declares itself."""
    hints = typing.get_type_hints(holder)
    prefix = getattr(holder, "prefix", "")
    return [
        _typed(field.metadata["flag"], hints[field.name])._replace(
            field=field.name, name=f"{prefix}_{field.name}" if prefix else field.name
        )
        for field in dataclasses.fields(holder)
        if "flag" in field.metadata
    ]


_declared: Callable[[type], list[Flag]] = functools.cache(_read_declarations)


def _typed(declared: Flag, hint: Any) -> Flag:
    """The flag with what its annotation says: ``int | None``, ``Literal["a", "b"]``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is Literal:
        return declared._replace(kind=str, choices=typing.get_args(hint))
    return declared._replace(kind=hint, choices=declared.choices or declared.parts)


def _parts(declared: Flag, choice: str | None) -> tuple[type[Part], ...]:
    """The classes of settings that a choice brings along."""
    if choice is None or declared.parts is None:
        return ()
    found = declared.parts[choice]
    return found if isinstance(found, tuple) else (found,)


def build(config: Callable[..., T], fields: Mapping[str, Any]) -> T:
    """Makes a dataclass of flags from all of its fields (:func:`complete`).

    Its ``parts`` are what the choices bring along.
    """

    def make(holder: Any, **others: Any) -> Any:
        own = {one.field: fields[one.name] for one in _declared(holder)}
        return holder(**own, **others)

    choosing = flags(cast("type", config)).values()
    chosen = [p for one in choosing for p in _parts(one, fields[one.name])]
    made: T = make(config, parts=tuple(map(make, chosen)))
    return made


def values(config: Any) -> dict[str, Any]:
    """All fields of what :func:`build` made, by name."""
    found = {
        one.name: getattr(holder, one.field)
        for holder in (config, *config.parts)
        for one in _declared(type(holder))
    }
    return {n: found.get(n, _unset(one)) for n, one in flags(type(config)).items()}


def naming(part: Part, error: ValueError) -> str | None:
    """An error about an argument as one about the flag that gives it, if there is one.

    Args:
      part: Settings whose fields are the arguments.
      error: An error that begins with an argument's name, as the library's do.
    """
    argument, _, rest = str(error).partition(" ")
    names = {one.field: one.name for one in _declared(type(part))}
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
      prog: Name of the program.
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

    Args:
      config: The dataclass.
      explicit: Fields that were asked for; they override ``base``.
      base: Fields to start from. Those without a meaning are dropped.

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
    """The value of a flag that is not given.

    Args:
      declared: The flag.
      fields: The fields declared before it.
    """
    if not _applies(declared, fields):
        return _unset(declared)
    if callable(declared.default):
        make: Callable[[Any], Any] = declared.default
        return make(SimpleNamespace(**fields))
    return declared.default


def _unset(declared: Flag) -> Any:
    return False if declared.kind is bool else None


def _applies(declared: Flag, fields: Mapping[str, Any]) -> bool:
    return declared.only is None or fields[declared.only[0]] in declared.only[1]


def check(declared: Flag, value: Any) -> None:
    """Raises ConfigError unless a value is of the flag's type and in its range."""
    if value is None:  # unset
        return
    name, kind = spell(declared.name), declared.kind
    if not _fits(value, kind):
        names = {int: "an integer", float: "a number", bool: "true or false"}
        raise ConfigError(
            f"{name} must be {names.get(kind, 'a string')}, got "
            f"{json.dumps(value, default=str)}"
        )
    if declared.choices is not None and value not in declared.choices:
        raise ConfigError(
            f"{name} must be one of {', '.join(declared.choices)}, got {value}"
        )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{name} must be UTF-8, got {value!a}") from error
    elif not isinstance(value, bool):
        _check_range(declared, value)


def _check_range(declared: Flag, value: float) -> None:
    name = spell(declared.name)
    limit = 2**31 if isinstance(value, int) else _LARGEST_FLOAT
    below = limit if math.isinf(declared.below) else declared.below
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value}")
    bounds = {
        f"at least {declared.low:g}": value >= declared.low,
        f"above {declared.above:g}": value > declared.above,
        f"below {_power(below)}": value < below,
        f"at most {declared.high:g}": value <= declared.high,
        f"above -{_power(limit)}": value > -limit,
    }
    for bound, holds in bounds.items():
        if not holds:
            raise ConfigError(f"{name} must be {bound}, got {value}")


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _power(number: float) -> str:
    exponent = math.log2(number) if number > 0 else 0.5
    is_large = exponent >= 20 and exponent.is_integer()
    return f"2**{exponent:.0f}" if is_large else f"{number:g}"


def _has_no_meaning(
    name: str, value: Any, declared: Mapping[str, Flag], fields: Mapping[str, Any]
) -> str:
    given = f"{spell(name)} {value}"
    only = declared[name].only
    assert only is not None
    while fields[only[0]] is None and declared[only[0]].only is not None:
        only = declared[only[0]].only  # the choice has no meaning itself
        assert only is not None
    choice, values = only
    if fields[choice] is None:
        return f"{given} has no meaning without {spell(choice)}: give both, or neither"
    if values == (None,):
        return f"{given} contradicts {spell(choice)} {fields[choice]}: give one of them"
    return (
        f"{given} has no meaning with {spell(choice)} {fields[choice]}: leave it out, "
        f"or choose {spell(choice)} {' or '.join(values)}"
    )
