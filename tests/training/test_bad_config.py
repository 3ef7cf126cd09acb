"""Bad flags, strategies and configuration files, generated, from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.bad_inputs import (
    DEEP,
    GARBAGE,
    GOOD_FILE,
    JSON,
    SMALL,
    TEXT,
    Bad,
    arguments,
    assert_refused,
    counts,
    directory_with_a_run,
    empty_directory,
    flag,
    is_object,
    trying,
)
from tests.support.declared import (
    CHOICES,
    DECLARED,
    FIELDS,
    NUMBERS,
    SWITCHES,
    context,
    inside,
    outside,
)

ROOT = Path(__file__).parents[2]

# -- Flags -----------------------------------------------------------------------------

SLIPS = st.sampled_from(["", "many", "1.5", "1e3", "0x10", "1,2", "[1]", "½", "yes"])


def is_number(text, kind):
    try:
        kind(text)
    except ValueError:
        return False
    return True


def joined(name, text):
    """Flag and value in one or two words; in one where it must be."""
    one = st.just([f"{flag(name)}={text}"])
    return one if text.startswith("-") else one | st.just([flag(name), text])


@st.composite
def unknown_flags(draw):
    letters = st.text("abcdefghijklmnopqrstuvwxyz-_0", min_size=1, max_size=12)
    name = draw(letters | st.sampled_from(FIELDS).flatmap(misspelt))
    known = {*FIELDS, *(f"no_{field}" for field in FIELDS), "help"}
    assume(name.strip("-_").replace("-", "_") not in known)
    return Bad([f"--{name}", *draw(st.sampled_from([[], ["1"]]))], [f"--{name}"])


def misspelt(name):
    return st.integers(0, len(name) - 1).map(lambda i: name[:i] + name[i + 1 :])


@st.composite
def wrong_types(draw):
    name = draw(st.sampled_from(sorted({*NUMBERS, *SWITCHES, *CHOICES} - {"seed"})))
    text = draw(SLIPS | TEXT)
    if name in SWITCHES:  # which take no value
        assume(not text.startswith("-"))
        return Bad([flag(name), text], ["Unrecognized"])
    if name in CHOICES:
        assume(text not in CHOICES[name])
    else:
        assume(not is_number(text, DECLARED[name].kind))
    return Bad(draw(joined(name, text)), [flag(name)])


@st.composite
def without_value(draw):
    name = draw(st.sampled_from(sorted({*FIELDS} - {*SWITCHES, "seed"})))
    return Bad([flag(name)], [flag(name)])


@st.composite
def out_of_range(draw):
    name = draw(st.sampled_from(sorted(NUMBERS)))
    argv = arguments(context(name))
    return Bad(argv + draw(joined(name, str(draw(outside(name))))), [flag(name)])


@st.composite
def without_meaning(draw):
    """A flag with a choice that leaves it none."""
    name = draw(st.sampled_from(sorted(n for n in FIELDS if context(n))))
    choice, values = DECLARED[name].only
    assume(DECLARED[name].kind is not str or name in CHOICES)
    if choice in CHOICES:
        other = draw(st.sampled_from(list(CHOICES[choice])))
        assume(other not in values)
        argv = arguments({**context(choice), choice: other})
    else:  # the name of a layer
        argv = arguments({**context(choice), choice: "head"})
    if name in SWITCHES:
        argv.append(flag(name))
    else:
        argv.append(f"{flag(name)}={draw(inside(name))}")
    return Bad(argv, [flag(name)])


NOISE = st.lists(
    st.sampled_from(["augment", "split_seed=3", "on_nonfinite=skip", "profile"]),
    unique=True,
).map(lambda words: [flag(word) for word in words])


@counts(25, 330)
def test_flags(count):
    every = [unknown_flags(), wrong_types(), without_value(), out_of_range()]
    every += [without_meaning()]

    @trying(count)
    @given(st.one_of(every), NOISE, st.booleans())
    def check(bad, noise, first):
        given_already = {word.partition("=")[0] for word in bad.argv}
        noise = [word for word in noise if word.partition("=")[0] not in given_already]
        argv = [*bad.argv, *noise] if first else [*noise, *bad.argv]
        with directory_with_a_run() as base:
            assert_refused([*base, *argv], bad.names)

    check()


@pytest.mark.parametrize("other", ["--overwrite", "--workdir=new"])
def test_resuming_needs_a_run_that_stays(other):
    with directory_with_a_run() as base:
        assert_refused([*base, "--resume=required", other], ["--resume"])


def test_the_reader_of_help_may_leave():
    """As in ``python train.py --help | head``."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:  # noqa: PTH123
        command = [sys.executable, "train.py", "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=closed, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert not done.stderr


# -- Configuration files ---------------------------------------------------------------

IN_FILES = sorted(name for name, one in DECLARED.items() if one.identity)
NOT_IN_FILES = sorted({*FIELDS} - {*IN_FILES})


def fits(value, name):
    """Whether a JSON value is of a field's type."""
    if name in CHOICES:
        return value is None or value in list(CHOICES[name])
    kind = DECLARED[name].kind
    return value is None or type(value) in ((int, float) if kind is float else (kind,))


@st.composite
def bad_files(draw):
    """The bytes of a file, and what must be named."""
    match draw(st.sampled_from(["garbage", "cut", "flip", "unknown", "type"])):
        case "garbage":
            return draw(GARBAGE | DEEP), ["--config"]
        case "cut":
            return GOOD_FILE[: draw(st.integers(0, len(GOOD_FILE) - 1))], ["--config"]
        case "flip":
            text = bytearray(GOOD_FILE.encode())
            text[draw(st.integers(0, len(text) - 1))] ^= 1 << draw(st.integers(0, 7))
            assume(not is_object(bytes(text)))
            return bytes(text), ["--config"]
        case "unknown":
            name = draw(TEXT | st.sampled_from([*NOT_IN_FILES, "epoch"]))
            assume(name not in IN_FILES)
            return json.dumps(SMALL | {name: draw(JSON)}), ["unknown fields"]
        case _:
            name = draw(st.sampled_from(IN_FILES))
            value = draw(JSON | st.just([0, 1]))
            assume(not fits(value, name))
            return json.dumps(SMALL | {name: value}), [flag(name)]


@counts(15, 190)
def test_configuration_files(count):
    @trying(count)
    @given(bad_files(), NOISE)
    def check(bad, noise):
        text, names = bad
        # Flags override the file.
        noise = [word for word in noise if word.partition("=")[0] not in names]
        with empty_directory() as path:
            content = text if isinstance(text, bytes) else text.encode()
            (path / "a.json").write_bytes(content)
            assert_refused(["--config", "a.json", *noise], names)

    check()
