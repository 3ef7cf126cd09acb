"""Flags are declared once: defaults, dependence, ranges, help and messages follow."""

import dataclasses
import math
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import ConfigError
from training.settings import flags
from training.settings.flags import Part, flag


@dataclasses.dataclass(frozen=True)
class Cooked(Part):
    """What takes time."""

    minutes: int = flag(
        lambda c: 60 if "cake" in c.dish else 20, "Cooking time.", low=1
    )


@dataclasses.dataclass(frozen=True)
class Soup(Cooked):
    """A soup."""

    is_hot: bool = flag(True, "Whether it is served hot.")


@dataclasses.dataclass(frozen=True)
class Cake(Cooked):
    """A cake."""

    topping: Literal["cream", "nuts"] = flag("cream", "On the cake.")
    spoons: float | None = flag(
        lambda c: c.minutes / 10,
        "Of it.",
        only=("topping", ("cream",)),
        above=0,
        high=9,
    )


@dataclasses.dataclass(frozen=True)
class Coffee(Part):
    """A coffee after it."""

    prefix = "coffee"
    cups: int = flag(1, "How many.", low=1)


@dataclasses.dataclass(frozen=True)
class Meal:
    """What is cooked."""

    dish: str = flag(
        "soup",
        "The dish.",
        parts={
            **{"soup": Soup, "cake": Cake, "nothing": ()},
            **{"coffee": Coffee, "cake+coffee": (Cake, Coffee)},
        },
    )


@dataclasses.dataclass(frozen=True)
class Table:
    """Where it is eaten."""

    places: int = flag(4, "Number of places.", low=1, below=2**32, several=True)
    name: str | None = flag(None, "Its name.", identity=False)
    price: float = flag(1.5, "Its price.", low=0, below=100, alias="--eur")
    number: int | None = flag(7, "Its number.", only=("name", (None,)))


@dataclasses.dataclass(frozen=True)
class Everything(Table, Meal):
    """Both."""

    parts: tuple[Part, ...]


DECLARED = flags.flags(Everything)


def complete(explicit, base=None):
    return flags.complete(Everything, explicit, base or {})


def read(*argv):
    groups = {"meal": Meal, "table": Table}
    return flags.read_command_line(
        argv, groups, prog="cook", description="Cooks a meal."
    )


# -- Completing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("explicit", "expected"),
    [
        ({}, {"dish": "soup", "minutes": 20, "topping": None, "spoons": None}),
        ({}, {"is_hot": True, "places": 4, "name": None, "number": 7}),
        ({"dish": "cake"}, {"minutes": 60, "topping": "cream", "spoons": 6.0}),
        ({"dish": "cake"}, {"is_hot": False}),
        ({"dish": "cake", "minutes": 30}, {"spoons": 3.0}),
        ({"dish": "cake", "topping": "nuts"}, {"spoons": None}),
        ({"dish": "nothing"}, {"minutes": None, "topping": None, "spoons": None}),
        ({"name": "round"}, {"number": None}),
    ],
)
def test_defaults_follow_what_was_chosen(explicit, expected):
    fields = complete(explicit)
    assert list(fields) == list(DECLARED)
    assert {name: fields[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("explicit", "base", "expected"),
    [
        # What was chosen before stays, unless it has no meaning any more.
        ({"minutes": 5}, {"dish": "cake"}, {"dish": "cake", "minutes": 5}),
        ({"dish": "soup"}, {"dish": "cake", "topping": "nuts"}, {"topping": None}),
        ({"dish": "cake"}, {"minutes": 15}, {"minutes": 15, "spoons": 1.5}),
        # A flag replaces what excludes it.
        ({"number": 3}, {"name": "round"}, {"name": None, "number": 3}),
        # A number may be written as an integer.
        ({"price": 2}, {}, {"price": 2.0}),
        # The ends of a range belong to it or not, as declared.
        ({"minutes": 1, "places": 2**32 - 1}, {}, {"minutes": 1}),
        ({"price": 0.0}, {}, {"price": 0.0}),
        ({"dish": "cake", "spoons": 9.0}, {}, {"spoons": 9.0}),
        # Null is unset.
        ({"minutes": None}, {"minutes": 5}, {"minutes": 20}),
        ({"dish": None}, {}, {"dish": "soup"}),
    ],
)
def test_explicit_fields_override_others(explicit, base, expected):
    fields = complete(explicit, base)
    assert repr({name: fields[name] for name in expected}) == repr(expected)


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        (
            {"topping": "nuts"},
            "--topping nuts has no meaning with --dish soup: leave it out, or choose "
            "--dish cake or cake+coffee",
        ),
        (
            {"dish": "nothing", "minutes": 3},
            "--minutes 3 has no meaning with --dish nothing: leave it out, or choose "
            "--dish soup or cake or cake+coffee",
        ),
        # The first choice that must change is named.
        (
            {"spoons": 3.0},
            "--spoons 3.0 has no meaning with --dish soup: leave it out, or choose "
            "--dish cake or cake+coffee",
        ),
        (
            {"dish": "cake", "topping": "nuts", "spoons": 3},
            "--spoons 3 has no meaning with --topping nuts: leave it out, or choose "
            "--topping cream",
        ),
        (
            {"number": 0, "name": "round"},
            "--number 0 contradicts --name round: give one of them",
        ),
        (
            {"dish": "cake", "is_hot": True},
            "--is-hot True has no meaning with --dish cake: leave it out, or choose "
            "--dish soup",
        ),
        ({"minutes": 0}, "--minutes must be at least 1, got 0"),
        ({"minutes": 2**31}, "--minutes must be below 2**31, got 2147483648"),
        ({"minutes": 1.0}, "--minutes must be an integer, got 1.0"),
        ({"places": 2**32}, "--places must be below 2**32, got 4294967296"),
        ({"price": 100.0}, "--price must be below 100, got 100.0"),
        ({"price": math.nan}, "--price must be finite, got nan"),
        ({"price": True}, "--price must be a number, got true"),
        ({"dish": "cake", "spoons": 0}, "--spoons must be above 0, got 0"),
        ({"dish": "cake", "spoons": 9.5}, "--spoons must be at most 9, got 9.5"),
        (
            {"dish": "stew"},
            "--dish must be one of soup, cake, nothing, coffee, cake+coffee, got stew",
        ),
        ({"dish": ["soup"]}, '--dish must be a string, got ["soup"]'),
        ({"is_hot": 1}, "--is-hot must be true or false, got 1"),
        ({"name": "\ud800"}, "--name must be UTF-8, got '\\ud800'"),
    ],
)
def test_messages_name_the_flag_and_the_remedy(explicit, message):
    with pytest.raises(ConfigError) as error:
        complete(explicit)
    assert str(error.value) == message


def test_a_base_is_checked_too():
    with pytest.raises(ConfigError, match="--minutes must be at least 1, got 0"):
        complete({}, {"minutes": 0})
    # Even what the choice drops afterwards: a damaged file is not taken for a good one.
    with pytest.raises(ConfigError, match="--spoons must be above 0"):
        complete({"dish": "soup"}, {"dish": "cake", "spoons": -1})


def refusal(function):
    """The message that a function's arguments are refused with, if they are."""
    try:
        function()
    except ConfigError as error:
        return str(error)
    return None


GOOD = {
    "dish": st.sampled_from(["soup", "cake", "nothing", "cake+coffee"]),
    "coffee_cups": st.integers(1, 3),
    "minutes": st.integers(1, 90),
    "topping": st.sampled_from(["cream", "nuts"]),
    "spoons": st.floats(0.1, 9),
    "is_hot": st.booleans(),
    "places": st.integers(1, 12),
    "name": st.sampled_from(["round", "long"]),
    "price": st.floats(0, 99),
    "number": st.integers(-9, 9),
}
FIELDS = st.fixed_dictionaries({}, optional=GOOD)


@settings(max_examples=200, deadline=None)
@given(FIELDS, FIELDS)
def test_completing_is_idempotent_and_keeps_what_was_asked_for(explicit, base):
    if message := refusal(lambda: complete(explicit, base)):
        assert "has no meaning with" in message or "contradicts" in message
        assert message.split()[0] in map(flags.spell, explicit)
        return
    fields = complete(explicit, base)
    assert {name: fields[name] for name in explicit} == explicit
    assert complete({}, fields) == fields
    assert flags.values(flags.build(Everything, fields)) == fields
    # What follows by default can be left out.
    chosen = {
        name: value
        for name, value in fields.items()
        if value != flags.default(DECLARED[name], fields)
    }
    assert complete({}, chosen) == fields


# -- The command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), {}),
        (("--dish", "cake", "--minutes=9"), {"dish": "cake", "minutes": 9}),
        (("--is-hot",), {"is_hot": True}),
        (("--no-is-hot",), {"is_hot": False}),
        (("--is_hot",), {"is_hot": True}),
        (("--places", "3", "4"), {"places": (3, 4)}),
        (("--price", "-2e-3", "--name", "a b"), {"price": -2e-3, "name": "a b"}),
        (("--eur", "3"), {"price": 3.0}),
    ],
)
def test_only_what_was_given_is_read(argv, expected):
    assert read(*argv) == expected


@pytest.mark.parametrize(
    "argv",
    [
        ["--minutes", "many"],
        ["--minutes", "None"],
        ["--minutes"],
        ["--dish", "stew"],
        ["--nonsense"],
        ["stray"],
        ["yes", "--is-hot"],
    ],
)
def test_flags_that_cannot_be_parsed_end_with_code_2(argv, capsys):
    with pytest.raises(SystemExit) as exit_:
        read(*argv)
    assert exit_.value.code == 2
    shown = capsys.readouterr()
    assert argv[0] in shown.err
    assert not shown.out


def test_help_shows_groups_defaults_and_dependence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as exit_:
        read("--help")
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Cooks a meal." in shown
    for text in (
        *("What is cooked.", "Where it is eaten."),
        "--dish {soup,cake,nothing,coffee,cake+coffee} The dish. (default: soup)",
        "Cooking time. (with --dish soup or cake or cake+coffee)",
        "--coffee-cups INT How many. (with --dish coffee or cake+coffee; default: 1)",
        "Its number. (not with --name; default: 7)",
        "Its price. (default: 1.5)",
        "(with --dish soup; default: true)",
    ):
        assert text in shown


# -- What choices bring along ----------------------------------------------------------


def test_settings_are_made_of_what_was_chosen():
    made = flags.build(Everything, complete({"dish": "cake+coffee", "coffee_cups": 2}))
    cake = Cake(minutes=60, topping="cream", spoons=6.0)
    assert made.parts == (cake, Coffee(cups=2))
    assert (made.dish, made.places) == ("cake+coffee", 4)
    assert flags.build(Everything, complete({"dish": "nothing"})).parts == ()


def test_two_flags_of_one_name_are_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Stew(Part):
        """Its cooking time has another range."""

        minutes: int = flag(9, "Cooking time.", low=2)

    monkeypatch.setitem(DECLARED["dish"].parts, "stew", Stew)
    with pytest.raises(TypeError, match="two different flags have the name minutes"):
        flags.flags(Everything)


def test_errors_about_arguments_name_the_flag():
    coffee = Coffee(cups=1)
    error = ValueError("cups must be clean, got 1")
    assert flags.naming(coffee, error) == "--coffee-cups must be clean, got 1"
    assert flags.naming(coffee, ValueError("plates must be clean")) is None
