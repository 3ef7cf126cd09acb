"""Bad flags, strategies and configuration files, generated."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.bad_inputs import (
    BASE,
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
    make_file,
    make_loop,
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
def bad_seeds(draw):
    good = st.integers(0, 2**32 - 1)
    seeds = draw(st.lists(good, max_size=4, unique=True))
    words = [str(seed) for seed in seeds]
    bad = st.sampled_from(["x", "-7", "1.5", *words]) | st.integers(2**32).map(str)
    if words or draw(st.booleans()):  # no seed at all is bad, too
        words.insert(draw(st.integers(0, len(words))), draw(bad))
    return Bad(["--seed", *words], ["--seed"])


@st.composite
def bad_processes(draw):
    good = {"coordinator_address": "localhost:8476", "num_processes": "2"}
    good |= {"process_id": "0"}
    if draw(st.booleans()):
        part = draw(st.sets(st.sampled_from(sorted(good)), min_size=1, max_size=2))
        return Bad(arguments({n: good[n] for n in sorted(part)}), list(map(flag, part)))
    if draw(st.booleans()):
        ports = st.sampled_from(
            ["", ":", ":0", ":http", ":-1", ":80 ", ":\uff18\uff10"]
        )
        beyond = st.integers(2**16, 10**9).map(":{}".format)
        address = draw(st.text("abc.:-1 ", max_size=8)) + draw(ports | beyond)
        host, _, port = address.rpartition(":")
        is_port = re.fullmatch("[0-9]+", port) and 0 < int(port) < 2**16
        assume(not (is_port and re.fullmatch(r"\S+", host)))
        bad = {"coordinator_address": address}
    else:
        count = draw(st.integers(-2, 4))
        number = draw(st.integers(max(count, 0), 9))
        bad = {"num_processes": count, "process_id": number}
    argv = [f"{flag(n)}={value}" for n, value in (good | bad).items()]
    return Bad(argv, [flag(name) for name in bad])


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


@counts(35, 330)
def test_flags(count):
    every = [unknown_flags(), wrong_types(), without_value(), out_of_range()]
    every += [bad_seeds(), bad_processes(), without_meaning()]

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


# -- Strategies, layers and thresholds -------------------------------------------------


@st.composite
def stages(draw):
    """A good strategy, a list of four texts a stage."""
    lengths = draw(st.lists(st.integers(2, 9), min_size=1, max_size=4))
    ends = np.cumsum(lengths).tolist()
    rates = st.floats(1e-3, 1).map(str)
    switches = st.sampled_from(["0", "1", "True", "False"])
    return [
        [str(end), draw(rates), draw(switches), draw(st.sampled_from(["1", "2.5"]))]
        for end in ends
    ]


NOT_POSITIVE = ["0", "-0.1", "1e400", "1" * 400, "'0.1'", "None", "[1]", "True", "2j"]
# What is wrong with one entry of a stage, by its place.
WRONG = [
    [*("0", "-3", "1e400", "1" * 400, "5.5", "'5'", "b'5'", "None", "[5]", "{}", "5j")],
    NOT_POSITIVE,
    ["2", "-1", "0.5", "'yes'", "None", "[]", "1e400"],
    NOT_POSITIVE,
]


@st.composite
def wrong_stages(draw):
    good = draw(stages())
    number = draw(st.integers(0, len(good) - 1))
    stage = good[number]
    match draw(st.sampled_from(["entry", "order", "short", "long", "one epoch"])):
        case "entry":
            place = draw(st.integers(0, 3))
            stage[place] = draw(st.sampled_from(WRONG[place]))
        case "order":
            good.insert(number, list(stage))
        case "short":
            del stage[draw(st.integers(0, 1)) :]
        case "long":
            stage += draw(st.lists(st.just("1"), min_size=1, max_size=3))
        case "one epoch":
            before = int(good[number - 1][0]) if number else 0
            stage[0], stage[2] = str(before + 1), "1"
    return "[" + ", ".join(f"({', '.join(s)}{',' * bool(s)})" for s in good) + "]"


def is_list_of_stages(text):
    try:
        return all(isinstance(s, tuple | list | set) for s in ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


NESTED = st.builds(
    lambda sign, depth, end: sign * depth + end,
    st.sampled_from(["(", "[", "-", "{", "1+", "[["]),
    st.integers(1, 10_000),
    st.sampled_from(["1", "", "]"]),
)
NO_STRATEGY = (TEXT | NESTED).filter(lambda text: not is_list_of_stages(text))
FIXED = ["[]", "()", "[()]", "{}", "5", "'paper'", "Paper", "paper_deep", "[(5, 0.1"]
MISSING_COMMA = "[(5, 0.1, 0, 1) (6, 0.1, 0, 1)]"


@counts(12, 100)
def test_strategies(count):
    texts = wrong_stages() | NO_STRATEGY | st.sampled_from([*FIXED, MISSING_COMMA])

    @trying(count)
    @given(texts, st.sampled_from(["sgd", "amplify+plp"]))
    def check(text, method):
        argv = ["--method", method, f"--strategy={text}"]
        argv += ["--amplify-threshold", "0.5"] * (method != "sgd")
        with directory_with_a_run() as base:
            # An end that is no number of epochs is reported as such.
            assert_refused([*base, *argv], ["--strategy", "--epochs"])

    check()


# With three layers no score is further from the mean than the root of 2.
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"epochs": 30, "amplify_threshold": 1.42}, "--amplify-threshold"),
        ({"epochs": 30, "amplify_select": "head,nonsense"}, "--amplify-select"),
        ({"strategy": "[(4, 0.1, 0, 1)]"}, "no stage"),
        # Too few epochs for the paper's four stages.
        ({"epochs": 3, "amplify_threshold": 0.5}, "--strategy"),
    ],
)
def test_amplification_of_nothing(fields, name):
    with directory_with_a_run() as base:
        assert_refused([*base, *arguments({"method": "amplify"} | fields)], [name])


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
    match draw(st.sampled_from(["garbage", "cut", "flip", "unknown", "type", "range"])):
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
        case "type":
            name = draw(st.sampled_from(IN_FILES))
            value = draw(JSON | st.just([0, 1]))
            assume(not fits(value, name))
            return json.dumps(SMALL | {name: value}), [flag(name)]
        case _:
            name = draw(st.sampled_from(sorted(NUMBERS & {*IN_FILES})))
            value = json.dumps(draw(outside(name)))
            if DECLARED[name].kind is float:
                value = draw(st.sampled_from([value, "1e400", "-1e400", "1" * 400]))
            fields = json.dumps(SMALL | context(name) | {name: 0})
            return fields.replace(f'"{name}": 0', f'"{name}": {value}'), [flag(name)]


@counts(20, 190)
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


@pytest.mark.parametrize("name", ["", ".", "absent", "file/inside", "link", "x" * 300])
def test_paths_of_configuration_files(name):
    with empty_directory() as path:
        make_file(path / "file")
        make_loop(path / "link")
        assert_refused([*BASE, f"--config={name}"], ["--config"])
