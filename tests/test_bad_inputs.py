"""Bad inputs, generated: one sentence and exit code 2; nothing lost, nothing left.

Every input is bad by construction, by tables and rules of this file's own, and what is
told must name its part. Plain pytest tries about a hundred, `-m slow` a thousand.
"""

import ast
import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import tempfile
import typing
from pathlib import Path
from typing import NamedTuple

import filelock
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import train
import training
from tests import test_data
from training import checkpoints, data, records
from training import config as config_lib
from training.config import Config
from training.errors import DataError, RunError, UserError

# Small, should a bad input be taken for a good one.
SMALL = {"model": "tiny", "width": 2, "batch_size": 256, "max_steps": 1}


def counts(plain, thorough):
    """Parametrises a test by how many examples it tries."""
    few = pytest.param(plain, id="plain")
    many = pytest.param(thorough, id="thorough", marks=pytest.mark.slow)
    return pytest.mark.parametrize("count", [few, many])


def trying(count):
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


@contextlib.contextmanager
def within(seconds):
    """Raises if the body takes longer: it hangs."""

    def give_up(number, frame):
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(argv):
    """Runs the program; returns its exit code and what it says on stderr."""
    error = io.StringIO()
    with (
        within(60),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(error),
    ):
        try:
            code = train.main(argv)
        except SystemExit as exit_:  # flags that cannot be parsed, told in a box
            code = exit_.code
            assert code == 2
    return code, error.getvalue()


def contents(root):
    """Every file by its path, as bytes; every other path with None."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(Path(root).rglob("*"))
    }


def assert_told(argv, names):
    """Exit code 2, a sentence with one of the names, and all files as they were."""
    before = contents(".")
    code, error = run(argv)
    assert code == 2
    assert "Traceback" not in error
    if error.startswith("train.py: "):
        assert error.endswith("\n")
        assert error.count("\n") == 1
    # A box wraps its lines, and flags are told with their hyphens.
    flat = re.sub(r"[\s│|]", "", error).replace("_", "-")
    assert any(re.sub(r"\s", "", name).replace("_", "-") in flat for name in names)
    after = contents(".")
    assert {path: after.get(path) for path in before} == before
    # What is looked at is claimed: no more than an empty directory and its lock.
    left = {path.name for path in set(after) - set(before) if after[path] is not None}
    assert left <= {".lock"}


@contextlib.contextmanager
def elsewhere():
    """A new, empty working directory."""
    with tempfile.TemporaryDirectory() as path, contextlib.chdir(path):
        yield Path(path)


def flag(name):
    return f"--{name.replace('_', '-')}"


def spell(fields):
    """Fields as flags."""
    return [part for name, value in fields.items() for part in (flag(name), str(value))]


BASE = spell(SMALL)


@contextlib.contextmanager
def beside_a_run():
    """A new working directory with a run; flags that would overwrite it."""
    with elsewhere() as path:
        (path / "run" / "best").mkdir(parents=True)
        for name in ("config.json", "metrics.jsonl", "best/manifest.json"):
            (path / "run" / name).write_text("{}")
        yield [*BASE, "--overwrite", "--workdir", "run"]


class Bad(NamedTuple):
    """Flags that are bad by construction.

    Attributes:
      argv: The flags.
      names: What is told has one of them in it.
    """

    argv: list[str]
    names: list[str]


# -- Flags -----------------------------------------------------------------------------

HINTS = typing.get_type_hints(Config)
FIELDS = sorted(HINTS)


def kinds(name):
    """The types that a field may have."""
    hint = HINTS[name]
    if typing.get_origin(hint) is typing.Literal:
        return [hint]
    return typing.get_args(hint) or [hint]


def fields_of(kind):
    return [name for name in FIELDS if kind in kinds(name) and name != "seed"]


LITERALS = {
    name: typing.get_args(kind)
    for name in FIELDS
    for kind in kinds(name)
    if typing.get_origin(kind) is typing.Literal
}
INTS, FLOATS, SWITCHES = fields_of(int), fields_of(float), fields_of(bool)

AMPLIFY = {"method": "amplify", "epochs": 30}
SCORES = AMPLIFY | {"amplify_threshold": 0.5}
RANDOM = AMPLIFY | {"amplify_select": "random"}
CYCLIC = {"schedule": "cyclic"}
LOOKAHEAD = {"method": "lookahead"}


class Domain(NamedTuple):
    """The numbers that a field may be; ends marked ``[`` or ``]`` belong to them.

    Attributes:
      low: The least, and whether it is one of them.
      high: The greatest, and whether it is one of them.
      context: Fields under which it has a meaning.
    """

    low: tuple[float, str]
    high: tuple[float, str]
    context: dict = {}


FLOAT32 = (3.5e38, ")")
INT32 = (2**31, ")")
# More would not fit into any memory.
MANY = (10**6, ")")
COUNT = Domain((1, "["), INT32)
DOMAINS = {
    **dict.fromkeys(("epochs", "max_steps", "batch_size", "accumulate"), COUNT),
    **dict.fromkeys(("steps_per_call", "keep_checkpoints"), COUNT),
    "cycle_steps": COUNT._replace(context=CYCLIC),
    "amplify_reselect_every": COUNT._replace(context=SCORES),
    "checkpoint_epochs": Domain((0, "["), INT32),
    "width": Domain((1, "["), MANY),
    "plp_window": Domain((2, "["), MANY),
    "plp_period": Domain((3, "["), INT32),  # the window's 3
    "lookahead_steps": Domain((1, "["), MANY, LOOKAHEAD),
    **dict.fromkeys(("seed", "split_seed"), Domain((0, "["), (2**32, ")"))),
    "learning_rate": Domain((0, "("), FLOAT32),
    "max_learning_rate": Domain((0.05, "["), FLOAT32, CYCLIC),  # the base's 0.05
    **dict.fromkeys(("weight_decay", "warmup_epochs"), Domain((0, "["), FLOAT32)),
    **dict.fromkeys(("momentum", "validation_fraction"), Domain((0, "["), (1, ")"))),
    "checkpoint_minutes": Domain((0, "("), FLOAT32),
    "plp_step": Domain((-3.5e38, "("), FLOAT32),
    "lookahead_alpha": Domain((-3.5e38, "("), FLOAT32, LOOKAHEAD),
    "amplify_threshold": Domain((0, "["), FLOAT32, AMPLIFY),
    "amplify_factor": Domain((0, "("), FLOAT32, SCORES),
    "train_fraction": Domain((0, "("), (1, "]")),
    "amplify_ratio": Domain((0, "("), (1, "]"), RANDOM),
}


def test_every_number_has_a_domain_and_every_context_is_good():
    apart = {"num_processes", "process_id"}  # with their own rules, below
    assert set(DOMAINS) == {*INTS, *FLOATS, "seed"} - apart
    for name, domain in DOMAINS.items():
        low, mark = domain.low
        value = low if mark == "[" else 0.5
        assert config_lib.parse([*BASE, *spell(domain.context), flag(name), str(value)])


@st.composite
def outside(draw, name):
    """A number that a field may not be."""
    low, high, _ = DOMAINS[name]
    if name in FLOATS:
        below = st.floats(max_value=low[0], exclude_max=low[1] == "[")
        above = st.floats(min_value=high[0], exclude_min=high[1] == "]")
        return draw(below | above | st.just(math.nan))
    below = st.integers(max_value=low[0] - 1)
    above = st.integers(min_value=high[0])
    powers = st.integers(12, 400).map(lambda n: 10**n)
    return draw(below | above | powers)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
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
    name = draw(st.sampled_from([*INTS, *FLOATS, *SWITCHES, *LITERALS]))
    text = draw(SLIPS | TEXT)
    assume(text != "None")
    if name in SWITCHES:  # which take no value
        assume(not text.startswith("-"))
        return Bad([flag(name), text], ["Unrecognized"])
    if name in LITERALS:
        assume(text not in LITERALS[name])
    else:
        assume(not is_number(text, int if name in INTS else float))
    return Bad(draw(joined(name, text)), [flag(name)])


@st.composite
def without_value(draw):
    name = draw(st.sampled_from(sorted({*FIELDS} - {*SWITCHES, "seed"})))
    return Bad([flag(name)], [flag(name)])


@st.composite
def out_of_range(draw):
    name = draw(st.sampled_from(sorted(DOMAINS)))
    argv = spell(DOMAINS[name].context)
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
        return Bad(spell({n: good[n] for n in sorted(part)}), list(map(flag, part)))
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


# Fields, and choices under any of which any of them is a contradiction.
CONTRADICTIONS = [
    (["plp_step=1", "plp_fit=midpoint"], ["method=sgd", "method=lookahead"]),
    (["plp_step=1", "plp_fit=midpoint"], ["method=average", "method=amplify"]),
    (["plp_window=3", "plp_period=5"], ["method=sgd", "method=lookahead"]),
    (["lookahead_steps=5", "lookahead_alpha=0.5"], ["method=sgd", "method=plp"]),
    (
        ["amplify_measure=g1", "amplify_factor=2", "amplify_reselect_every=2"],
        ["method=sgd", "method=plp", "method=lookahead", "method=average"],
    ),
    (["amplify_select=all", "amplify_threshold=1"], ["method=sgd", "method=plp"]),
    (["amplify_ratio=0.5"], ["method=plp", "method=amplify"]),
    (
        ["max_learning_rate=1", "cycle_steps=9"],
        ["schedule=constant", "schedule=step", "schedule=cosine", "strategy=paper"],
    ),
    (["momentum=0.9"], [f"optimizer={o}" for o in ("adam", "adamw", "adadelta")]),
    (["data_dir=x"], ["dataset=digits"]),
    (
        ["schedule=step", "learning_rate=1", "warmup_epochs=2", "epochs=4"],
        ["strategy=[(5,0.1,0,1)]"],
    ),
    (["schedule=step", "learning_rate=1", "warmup_epochs=2"], ["method=amplify"]),
    (["steps_per_call=2"], ["input=host"]),
    (["head=mlp"], ["model=tiny", "model=resnet18", "model=googlenet"]),
    (["stem=imagenet"], ["model=tiny", "model=vgg16", "model=vgg19"]),
    (["momentum=0"], ["optimizer=nesterov"]),
    (["plp_window=5", "plp_window=4"], ["plp_period=3"]),
    (["max_learning_rate=0.1"], ["learning_rate=0.2 schedule=cyclic"]),
    (["config=x", "config="], ["preset=plp-paper", "preset=amplify-paper"]),
    (["resume=required"], ["overwrite", "workdir=new"]),
]


@st.composite
def contradictions(draw):
    flags, choices = draw(st.sampled_from(CONTRADICTIONS))
    chosen = [draw(st.sampled_from(flags)), *draw(st.sampled_from(choices)).split()]
    argv = [flag(word) for word in draw(st.permutations(chosen))]
    return Bad(argv, [flag(chosen[0].partition("=")[0])])


NOISE = st.lists(
    st.sampled_from(["augment", "split_seed=3", "on_nonfinite=skip", "profile"]),
    unique=True,
).map(lambda words: [flag(word) for word in words])


@counts(35, 330)
def test_flags(count):
    every = [unknown_flags(), wrong_types(), without_value(), out_of_range()]
    every += [bad_seeds(), bad_processes(), contradictions()]

    @trying(count)
    @given(st.one_of(every), NOISE, st.booleans())
    def check(bad, noise, first):
        given_already = {word.partition("=")[0] for word in bad.argv}
        noise = [word for word in noise if word.partition("=")[0] not in given_already]
        argv = [*bad.argv, *noise] if first else [*noise, *bad.argv]
        with beside_a_run() as base:
            assert_told([*base, *argv], bad.names)

    check()


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
        with beside_a_run() as base:
            # An end that is no number of epochs is told as such.
            assert_told([*base, *argv], ["--strategy", "--epochs"])

    check()


TINY_LAYERS = {"head", "stage1/conv", "stage2/conv"}
# With three layers no score is further from the mean than this.
LARGEST_Z = math.sqrt(2)


@st.composite
def idle_amplification(draw):
    """Amplification of nothing: thresholds, layers, strategies."""
    match draw(st.sampled_from(["threshold", "layers", "strategy", "epochs"])):
        case "threshold":
            value = draw(st.floats(LARGEST_Z + 1e-6, 1e30))
            flags = {"amplify_threshold": value}
            return Bad(spell(AMPLIFY | flags), ["threshold"])
        case "layers":
            names = draw(st.lists(TEXT, min_size=1, max_size=3))
            words = {word.strip() for name in names for word in name.split(",")}
            assume(not words <= TINY_LAYERS | {"scores", "random", "all", "None"})
            flags = [f"--amplify-select={','.join(names)}"]
            return Bad(spell(AMPLIFY) + flags, ["layers that do not exist", "select"])
        case "strategy":
            rates = [[end, rate, "0", "1"] for end, rate, _, _ in draw(stages())]
            text = ", ".join(f"({', '.join(stage)})" for stage in rates)
            flags = {"method": "amplify", "strategy": f"[{text}]"}
            return Bad(spell(flags), ["no stage"])
        case _:
            epochs = draw(st.integers(1, 3))  # too few for the paper's four stages
            return Bad(spell(SCORES | {"epochs": epochs}), ["--strategy"])


@counts(2, 20)
def test_amplification_of_nothing(count):
    @trying(count)
    @given(idle_amplification())
    def check(bad):
        with beside_a_run() as base:
            assert_told([*base, *bad.argv], bad.names)

    check()


# -- Work directories ------------------------------------------------------------------


def a_file(path):
    path.write_text("precious")


def a_loop(path):
    path.symlink_to(path)


def a_dangling_link(path):
    path.symlink_to("nowhere/at/all")


def strangers(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def names_of_ours(path):
    for name in ("best", "checkpoints"):
        (path / name).mkdir(parents=True)
        (path / name / "mine.txt").write_text("precious")


def a_stranger_in_a_run(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "thesis.tex").write_text("precious")


def a_directory_for_a_lock(path):
    (path / ".lock").mkdir(parents=True)


NO_DIRECTORIES = [a_file, a_loop, a_dangling_link]
TAKEN = [strangers, names_of_ours, a_stranger_in_a_run, a_directory_for_a_lock]
IMPOSSIBLE = ["/proc/run", "/dev/null", "/dev/null/run", "/proc/version/x", "x" * 300]
NOT_UTF8 = os.fsdecode(b"run-\xff")


def is_object(text):
    try:
        return isinstance(json.loads(text.decode()), dict)
    except (ValueError, RecursionError):
        return False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner),
    max_leaves=6,
)
GARBAGE = (st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode)).filter(
    lambda text: not is_object(text)
)


GOOD_FILE = json.dumps(config_lib.experiment(config_lib.resolve(SMALL)), indent=2)


@counts(8, 60)
def test_work_directories(count):
    @trying(count)
    @given(
        st.sampled_from(NO_DIRECTORIES + TAKEN),
        st.lists(st.sampled_from(["overwrite", "seed", "inside"]), unique=True),
    )
    def check_taken(take, how):
        with elsewhere():
            place = Path("run") / "seed-1" if "seed" in how else Path("run")
            place.parent.mkdir(exist_ok=True)
            take(place)
            workdir = place.parent if "seed" in how else place
            argv = [*BASE]
            if "seed" in how:
                argv += ["--seed", "0", "1"]
            elif "inside" in how and take in NO_DIRECTORIES:
                workdir /= "deep/inside"
            argv += ["--overwrite"] * ("overwrite" in how)
            assert_told([*argv, "--workdir", str(workdir)], [str(place)])

    @trying(count // 4)
    @given(GARBAGE, st.sampled_from(["config.json", "result.json"]))
    def check_records(text, name):
        with elsewhere() as path:
            (path / "run").mkdir()
            (path / "run" / "config.json").write_text(GOOD_FILE)
            (path / "run" / name).write_bytes(text)
            assert_told([*BASE, "--workdir", "run"], [name])

    @trying(count // 8)
    @given(st.sampled_from([*IMPOSSIBLE, NOT_UTF8]))
    def check_impossible(workdir):
        with elsewhere():
            assert_told([*BASE, "--workdir", workdir], [workdir, "UTF-8"])

    check_taken()
    check_records()
    check_impossible()


def test_a_work_directory_in_use():
    with elsewhere() as path:
        (path / "run").mkdir()
        with filelock.FileLock(path / "run" / ".lock"):
            assert_told([*BASE, "--workdir", "run"], ["in use"])


# -- Configuration files ---------------------------------------------------------------

DEEP = st.builds(
    lambda bracket, depth: bracket * depth,
    st.sampled_from([b"[", b'{"a":']),
    st.integers(1, 3000),
)
IN_FILES = sorted({*FIELDS} - {*config_lib.PLACE})


def fits(value, name):
    """Whether a JSON value is of a field's type."""
    types = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}
    return any(
        value in typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal
        else type(value) in types.get(kind, (kind,))
        for kind in kinds(name)
    )


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
            name = draw(TEXT | st.sampled_from([*config_lib.PLACE, "epoch"]))
            assume(name not in IN_FILES)
            return json.dumps(SMALL | {name: draw(JSON)}), ["do not exist"]
        case "type":
            name = draw(st.sampled_from(IN_FILES))
            value = draw(JSON | st.just([0, 1]))
            assume(not fits(value, name))
            return json.dumps(SMALL | {name: value}), [flag(name)]
        case _:
            name = draw(st.sampled_from(sorted(DOMAINS)))
            value = json.dumps(draw(outside(name)))
            if name in FLOATS:
                value = draw(st.sampled_from([value, "1e400", "-1e400", "1" * 400]))
            fields = json.dumps(SMALL | DOMAINS[name].context | {name: 0})
            return fields.replace(f'"{name}": 0', f'"{name}": {value}'), [flag(name)]


@counts(20, 190)
def test_configuration_files(count):
    @trying(count)
    @given(bad_files(), NOISE)
    def check(bad, noise):
        text, names = bad
        # Flags override the file.
        noise = [word for word in noise if word.partition("=")[0] not in names]
        with elsewhere() as path:
            content = text if isinstance(text, bytes) else text.encode()
            (path / "a.json").write_bytes(content)
            assert_told(["--config", "a.json", *noise], names)

    check()


@pytest.mark.parametrize("place", ["", ".", "absent", "file/inside", "link", "x" * 300])
def test_places_of_configuration_files(place):
    with elsewhere() as path:
        a_file(path / "file")
        a_loop(path / "link")
        assert_told([*BASE, f"--config={place}"], ["--config"])


# -- Damage ----------------------------------------------------------------------------


class Damage(NamedTuple):
    """What befalls a file.

    Attributes:
      file: Which one, of a list that begins anew at its end.
      how: What befalls it.
      where: The place in it, from 0 to 1.
      bit: The bit that is flipped there.
      garbage: What replaces it.
    """

    file: int
    how: str
    where: float
    bit: int
    garbage: bytes

    def befall(self, files):
        """Damages one of the files, unless it is gone."""
        file = files[self.file % len(files)]
        if not file.is_file():
            return
        content = bytearray(file.read_bytes())
        place = int(self.where * len(content))
        file.unlink()
        match self.how:
            case "flipped":
                if content:
                    content[place] ^= 1 << self.bit
                file.write_bytes(content)
            case "cut":
                file.write_bytes(content[:place])
            case "replaced":
                file.write_bytes(self.garbage)
            case "directory":
                file.mkdir()


DAMAGES = st.builds(
    Damage,
    st.integers(0, 10**6),
    st.sampled_from(["flipped", "cut", "replaced", "removed", "directory"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 7),
    st.binary(max_size=60) | GARBAGE | DEEP | JSON.map(json.dumps).map(str.encode),
)


def files_in(*places):
    """The files in some places, in a fixed order."""
    files = [[place] if place.is_file() else place.rglob("*") for place in places]
    return sorted(path for group in files for path in group if path.is_file())


def assert_same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# -- Data ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data directory with a small CIFAR-100, and the archive it was prepared from."""
    root = tmp_path_factory.mktemp("data")
    test_data._write_archive(test_data._by_hand(root), "cifar100", (40, 20))
    with pytest.MonkeyPatch.context() as patch:
        test_data._register(patch, root)  # nothing is asked of the network
        with contextlib.redirect_stderr(io.StringIO()):
            yield root, data.load("cifar100", data_dir=root)


CIFAR = ["--dataset", "cifar100", "--data-dir", "data"]


def parts(dataset):
    return dataset.train, dataset.validation, dataset.test


@counts(5, 40)
def test_archives(prepared, count):
    original, _ = prepared
    in_the_way = st.sampled_from([None, "downloads", "downloads/manual"])

    @trying(count)
    @given(DAMAGES, in_the_way)
    def check(damage, obstacle):
        with elsewhere() as path:
            archive = test_data._by_hand(path / "data")
            shutil.copytree(test_data._by_hand(original).parent, archive.parent)
            damage.befall([archive])
            assume(
                not archive.is_file()
                or archive.read_bytes() != test_data._by_hand(original).read_bytes()
            )
            if obstacle:
                shutil.rmtree(path / "data" / obstacle)
                a_file(path / "data" / obstacle)
            assert_told([*BASE, *CIFAR], [archive.name])

    check()


@counts(6, 60)
def test_prepared_sets(prepared, count):
    root, whole = prepared

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        with elsewhere() as path:
            copy = path / "data"
            shutil.copytree(test_data._prepared(root), test_data._prepared(copy))
            # Coarse labels are never read.
            files = [f for f in files_in(copy) if not f.name.startswith("coarse")]
            for damage in damages:
                damage.befall(files)
            if any(not f.is_file() or f.stat().st_size < 100 for f in files):
                assert_told([*BASE, *CIFAR], ["cannot be read"])
                return
            # A flipped bit may lie where nobody looks, else it is noticed.
            with within(60), contextlib.suppress(DataError):
                read = data.load("cifar100", data_dir=copy)
                assert read.num_classes == whole.num_classes
                assert_same_tree(parts(read), parts(whole))

    check()


@pytest.mark.parametrize("place", ["absent", "file", "file/x", "link", "~no-one/x"])
def test_places_of_data(place):
    with elsewhere() as path:
        a_file(path / "file")
        a_loop(path / "link")
        flags = ["--dataset", "cifar10", "--data-dir"]
        assert_told([*BASE, *flags, place], [place])
        assert_told([*BASE, *flags, "x" * 300], ["xxx"])


# -- Runs to go on with ----------------------------------------------------------------

RUN = spell(SMALL | {"max_steps": 8, "epochs": 2, "method": "sgd"})


class Unfinished(NamedTuple):
    """A run that lacks nothing but its result.

    Attributes:
      path: Its work directory.
      program: The compiled program.
      result: The result that it had.
    """

    path: Path
    program: train.Program
    result: dict


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    path = tmp_path_factory.mktemp("unfinished") / "run"
    (config,) = config_lib.parse([*RUN, "--workdir", str(path)])
    program = train.prepare(config)
    result = train.run(program, config)
    (path / records.RESULT).unlink()
    return Unfinished(path, program, result)


def whole_checkpoints(path, original):
    """Names of the checkpoints whose every file is as it was."""
    names = sorted(p.name for p in (original / records.CHECKPOINTS).iterdir())
    return [
        name
        for name in names
        if all(
            there.is_file() and there.read_bytes() == file.read_bytes()
            for file in files_in(original / records.CHECKPOINTS / name)
            for there in [path / file.relative_to(original)]
        )
    ]


@counts(8, 80)
def test_the_newest_whole_checkpoint_is_taken(unfinished, count):
    state = unfinished.program.loop.state
    like = {"state": state, "best": checkpoints.copy_to_host(state.variables)}

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=4))
    def check(damages):
        with elsewhere() as path, contextlib.redirect_stderr(io.StringIO()) as error:
            shutil.copytree(unfinished.path, path / "run")
            place = path / "run" / records.CHECKPOINTS
            files = files_in(place)
            for damage in damages:
                damage.befall(files)
            whole = whole_checkpoints(path / "run", unfinished.path)
            before = contents(place)
            store = checkpoints.Checkpoints(place, keep=2)
            if whole:
                name, (tree, notes) = store.newest(like)
                assert name == whole[-1]
                original = unfinished.path / records.CHECKPOINTS / name
                assert_same_tree(
                    jax.tree.leaves(tree),
                    jax.tree.leaves(checkpoints._read(original, like).tree),
                )
                assert notes == checkpoints.read(original).notes
            else:
                with pytest.raises(RunError, match=r"no checkpoint .* is left whole"):
                    store.newest(like)
            store.close()
            newer = [p for p in place.iterdir() if whole and p.name > whole[-1]]
            lines = error.getvalue().splitlines()
            assert len(lines) == len(newer)
            for damaged, line in zip(sorted(newer, reverse=True), lines, strict=True):
                assert line.startswith(f"train.py: warning: {damaged} is damaged (")
                assert line.endswith(f"going on from {place / whole[-1]} instead")
            assert contents(place) == before

    check()


@counts(4, 40)
def test_what_was_trained_is_whole_or_told(unfinished, count):
    original = training.load(unfinished.path).variables

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=2))
    def check(damages):
        with elsewhere() as path:
            shutil.copytree(unfinished.path, path / "run")
            best = files_in(path / "run" / records.BEST)
            sealed = contents(path / "run" / records.BEST)
            rest = [path / "run" / name for name in ("config.json", "dataset.json")]
            for damage in damages:
                damage.befall([*best, *rest])
            is_whole = contents(path / "run" / records.BEST) == sealed
            told = variables = None
            try:
                variables = training.load(path / "run").variables
            except UserError as error:
                told = str(error)
            if told is None:
                assert is_whole
                assert_same_tree(variables, original)
            else:
                assert "\n" not in told

    check()


def without_times(fields):
    times = {"images_per_second", "train_seconds"}
    return {name: value for name, value in fields.items() if name not in times}


@counts(5, 58)
def test_a_damaged_run_goes_on_or_is_left_alone(unfinished, count):
    history = [*map(without_times, records.read_metrics(unfinished.path))]
    best = training.load(unfinished.path).variables
    names = [records.CONFIG, records.METRICS, records.DATASET]
    names += [records.BEST, records.CHECKPOINTS]

    @trying(count)
    @given(st.lists(DAMAGES, min_size=1, max_size=3))
    def check(damages):
        with elsewhere(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "prepare", lambda config: unfinished.program)
            place = Path("run")
            shutil.copytree(unfinished.path, place)
            files = files_in(*(place / name for name in names))
            before = contents(place)
            for damage in damages:
                damage.befall(files)
            after = contents(place)
            kept = {file for file in files if before[file] == after.get(file)}
            damaged = {file.relative_to(place).parts[0] for file in {*files} - kept}
            possible = {0}
            if records.CONFIG in damaged:  # perhaps where it does not matter
                possible = {0, 2}
            whole = whole_checkpoints(place, unfinished.path)
            if not whole or (place / records.METRICS).is_dir():
                possible = {2}

            code, error = run([*RUN, "--workdir", str(place)])
            assert code in possible
            assert all(line.startswith("train.py: ") for line in error.splitlines())
            if code == 0:
                assert [*map(without_times, records.read_metrics(place))] == history
                result = records.read_json(place / records.RESULT)
                assert without_times(result) == without_times(unfinished.result)
                if records.DATASET not in damaged:
                    assert_same_tree(training.load(place).variables, best)
            else:
                assert error.count("\n") == 1 + error.count("warning: ")
                assert all(before[file] == contents(place).get(file) for file in kept)

    check()
