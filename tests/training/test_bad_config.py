"""Bad flags, strategies and configuration files, generated."""

import ast
import json
import math
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models import NETWORKS
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
from training.settings import config as config_lib
from training.settings import flags
from training.settings.config import Config

ROOT = Path(__file__).parents[2]

# -- Flags -----------------------------------------------------------------------------

HINTS = typing.get_type_hints(Config)
FIELDS = sorted(n for n, one in flags.flags(Config).items() if not one.hidden)


def kinds(name):
    """The types that a field may have."""
    return typing.get_args(HINTS[name]) or [HINTS[name]]


def fields_of(kind):
    return [name for name in FIELDS if kind in kinds(name) and name != "seed"]


CHOICES = {
    "model": NETWORKS,
    "method": ["sgd", "plp", "lookahead", "average", "amplify", "amplify+plp"],
    "stem": ["cifar", "imagenet"],
    "cascade": ["dense", "conv"],
    "head": ["linear", "mlp"],
    "plp_fit": ["midpoint", "least_squares"],
    "amplify_measure": ["g1", "g1_per_weight", "g2"],
    "amplify_layers": ["kernels", "modules"],
    "optimizer": [
        *("sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta"),
    ],
    "schedule": ["constant", "cyclic", "step", "cosine", "onecycle", "plateau"],
    "precision": ["float32", "bfloat16", "float16", "float64"],
    "input": ["resident", "host"],
    "resume": ["auto", "required", "never"],
    "on_nonfinite": ["stop", "skip"],
}
INTS, FLOATS, SWITCHES = fields_of(int), fields_of(float), fields_of(bool)

AMPLIFY = {"method": "amplify", "epochs": 30}
SCORES = AMPLIFY | {"amplify_threshold": 0.5}
RANDOM = AMPLIFY | {"amplify_select": "random"}
CYCLIC = {"schedule": "cyclic"}
CASCADE = {"cascade": "conv", "model": "tiny"}
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


FLOAT32 = (1e38, ")")
INT32 = (2**31, ")")
# More would not fit into any memory.
MANY = (10**4, ")")
COUNT = Domain((1, "["), INT32)
BELOW_ONE = Domain((0, "["), (1, ")"))
ADAPTIVE, OUTER = {"method": "adaptive-window"}, {"method": "outer-nesterov"}
EMA = {"method": "ema-nesterov"}
DOMAINS = {
    **dict.fromkeys(("epochs", "max_steps", "batch_size", "batch_parts"), COUNT),
    **dict.fromkeys(("batches_per_step", "early_stopping"), COUNT),
    "plateau_patience": COUNT._replace(context={"schedule": "plateau"}),
    **dict.fromkeys(("steps_per_call", "keep_checkpoints"), COUNT),
    "cycle_steps": Domain((1, "["), (2**30, ")"), CYCLIC),
    "amplify_reselect_every": COUNT._replace(context=SCORES),
    "checkpoint_epochs": Domain((0, "["), INT32),
    **dict.fromkeys(("width", "image_size"), Domain((1, "["), MANY)),
    "plp_window": Domain((2, "["), MANY),
    "plp_period": Domain((3, "["), INT32),  # the window's 3
    "lookahead_steps": Domain((1, "["), MANY, LOOKAHEAD),
    "adaptive_window": Domain((2, "["), MANY, ADAPTIVE),
    "adaptive_period": Domain((10, "["), INT32, ADAPTIVE),  # the window's 10
    "adaptive_min_signal": Domain((-1e38, "("), FLOAT32, ADAPTIVE),
    "extrapolation": BELOW_ONE._replace(context=EMA),
    "extrapolation_decay": BELOW_ONE._replace(context=EMA),
    "outer_momentum": BELOW_ONE._replace(context=OUTER),
    "outer_rate": Domain((0, "("), FLOAT32, OUTER),
    "outer_period": COUNT._replace(context=OUTER),
    "tail_start": BELOW_ONE._replace(context={"method": "tail-average"}),
    **dict.fromkeys(("seed", "split_seed"), Domain((0, "["), (2**32, ")"))),
    "learning_rate": Domain((0, "("), FLOAT32),
    "max_learning_rate": Domain((0.05, "["), FLOAT32, CYCLIC),  # the base's 0.05
    **dict.fromkeys(("weight_decay", "l1"), Domain((0, "["), FLOAT32)),
    **dict.fromkeys(("clip_norm", "clip_value"), Domain((0, "("), FLOAT32)),
    "dropout": Domain((0, "["), (1, ")"), {"model": "vgg16"}),
    "cascade_epochs": COUNT._replace(context=CASCADE),
    **dict.fromkeys(
        ("cascade_extra_epochs", "cascade_finetune"),
        Domain((0, "["), INT32, CASCADE),
    ),
    "ema": Domain((0, "("), (1, ")")),
    "label_smoothing": Domain((0, "["), (1, ")")),
    "warmup_epochs": Domain((0, "["), INT32),
    **dict.fromkeys(("momentum", "validation_fraction"), BELOW_ONE),
    "checkpoint_minutes": Domain((0, "("), FLOAT32),
    "plp_step": Domain((-1e38, "("), FLOAT32),
    "lookahead_alpha": Domain((-1e38, "("), FLOAT32, LOOKAHEAD),
    "amplify_threshold": Domain((0, "["), FLOAT32, AMPLIFY),
    "amplify_factor": Domain((0, "("), FLOAT32, SCORES),
    "train_fraction": Domain((0, "("), (1, "]")),
    "amplify_ratio": Domain((0, "("), (1, "]"), RANDOM),
}


def test_every_number_has_a_domain_and_every_context_is_good():
    related = {"num_processes", "process_id"}  # with rules of their own, below
    assert set(DOMAINS) == {*INTS, *FLOATS, "seed"} - related
    for name, domain in DOMAINS.items():
        low, mark = domain.low
        value = low if mark == "[" else 0.5
        assert config_lib.parse(
            [*BASE, *arguments(domain.context), flag(name), str(value)]
        )


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
    name = draw(st.sampled_from([*INTS, *FLOATS, *SWITCHES, *CHOICES]))
    text = draw(SLIPS | TEXT)
    if name in SWITCHES:  # which take no value
        assume(not text.startswith("-"))
        return Bad([flag(name), text], ["Unrecognized"])
    if name in CHOICES:
        assume(text not in CHOICES[name])
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
    argv = arguments(DOMAINS[name].context)
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


# Fields, and choices under any of which any of them is a contradiction.
CONTRADICTIONS = [
    (["plp_step=1", "plp_fit=midpoint"], ["method=sgd", "method=lookahead"]),
    (["plp_step=1", "plp_fit=midpoint"], ["method=average", "method=amplify"]),
    (["plp_window=3", "plp_period=5"], ["method=sgd", "method=lookahead"]),
    (["lookahead_steps=5", "lookahead_alpha=0.5"], ["method=sgd", "method=plp"]),
    (["adaptive_window=5", "outer_rate=1", "tail_start=0"], ["method=ema-nesterov"]),
    (["extrapolation=0.5", "extrapolation_decay=0"], ["method=outer-nesterov"]),
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
    (
        ["momentum=0.9", "momentum=0"],
        [f"optimizer={o}" for o in ("adam", "adamw", "adadelta")],
    ),
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
        with directory_with_a_run() as base:
            assert_refused([*base, *argv], bad.names)

    check()


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
            return Bad(arguments(AMPLIFY | flags), ["--amplify-threshold"])
        case "layers":
            names = draw(st.lists(TEXT, min_size=1, max_size=3))
            words = {word.strip() for name in names for word in name.split(",")}
            assume(not words <= TINY_LAYERS | {"scores", "random", "all", "None"})
            flags = [f"--amplify-select={','.join(names)}"]
            names = ["--amplify-select"]
            return Bad(arguments(AMPLIFY) + flags, names)
        case "strategy":
            rates = [[end, rate, "0", "1"] for end, rate, _, _ in draw(stages())]
            text = ", ".join(f"({', '.join(stage)})" for stage in rates)
            flags = {"method": "amplify", "strategy": f"[{text}]"}
            return Bad(arguments(flags), ["no stage"])
        case _:
            epochs = draw(st.integers(1, 3))  # too few for the paper's four stages
            return Bad(arguments(SCORES | {"epochs": epochs}), ["--strategy"])


@counts(2, 20)
def test_amplification_of_nothing(count):
    @trying(count)
    @given(idle_amplification())
    def check(bad):
        with directory_with_a_run() as base:
            assert_refused([*base, *bad.argv], bad.names)

    check()


# -- Configuration files ---------------------------------------------------------------

# How a run is kept; the rest of the fields is recorded.
NOT_IN_FILES = {
    *("workdir", "overwrite", "resume", "checkpoint_epochs", "checkpoint_minutes"),
    *("keep_checkpoints", "on_nonfinite", "profile", "cache_dir", "data_dir"),
    *("coordinator_address", "num_processes", "process_id", "distributed"),
}
IN_FILES = sorted({*FIELDS} - NOT_IN_FILES)


def fits(value, name):
    """Whether a JSON value is of a field's type."""
    if name in CHOICES:
        return value is None or value in list(CHOICES[name])
    types = {float: (int, float)}
    return value is None or any(
        type(value) in types.get(kind, (kind,)) for kind in kinds(name)
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
            name = draw(TEXT | st.sampled_from([*sorted(NOT_IN_FILES), "epoch"]))
            assume(name not in IN_FILES)
            return json.dumps(SMALL | {name: draw(JSON)}), ["unknown fields"]
        case "type":
            name = draw(st.sampled_from(IN_FILES))
            value = draw(JSON | st.just([0, 1]))
            assume(not fits(value, name))
            return json.dumps(SMALL | {name: value}), [flag(name)]
        case _:
            name = draw(st.sampled_from(sorted({*DOMAINS} - NOT_IN_FILES)))
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
