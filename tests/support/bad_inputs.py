"""What tests of bad inputs share: running the program, and generated damage.

Every input is bad by construction, by tables and rules of the tests' own, and the
message must name what is bad. Plain pytest tries about a hundred, `-m slow` a thousand.
"""

import contextlib
import io
import json
import re
import signal
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import train
from training.settings import config as config_lib

# Small, should a bad input be taken for a good one.
SMALL = {"model": "tiny", "width": 2, "batch_size": 256, "max_steps": 1}


def counts(plain, thorough):
    """Parametrises a test by the number of its examples."""
    few = pytest.param(plain, id="plain")
    many = pytest.param(thorough, id="thorough", marks=pytest.mark.slow)
    return pytest.mark.parametrize("count", [few, many])


def trying(count):
    """Settings of a test that tries so many examples."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


@contextlib.contextmanager
def within(seconds):
    """Raises if the body takes longer, since it hangs."""

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
    """Runs the program; returns its exit code and stderr."""
    error = io.StringIO()
    with (
        within(60),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(error),
    ):
        try:
            code = train.main(argv)
        except SystemExit as exit_:  # flags that cannot be parsed
            code = exit_.code
            assert code == 2
    return code, error.getvalue()


def contents(root):
    """Every file by its path, as bytes; every other path with None."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(Path(root).rglob("*"))
    }


def assert_refused(argv, names):
    """Exit code 2, a sentence with one of the names, and no file changed."""
    before = contents(".")
    code, error = run(argv)
    assert code == 2
    assert "Traceback" not in error
    if error.startswith("train.py: "):
        assert error.endswith("\n")
        assert error.count("\n") == 1
    # The parser of flags wraps its lines, and spells flags with hyphens.
    flat = re.sub(r"[\s│|]", "", error).replace("_", "-")
    assert any(re.sub(r"\s", "", name).replace("_", "-") in flat for name in names)
    after = contents(".")
    assert {path: after.get(path) for path in before} == before
    # A work directory is created and locked before it is looked at.
    left = {path.name for path in set(after) - set(before) if after[path] is not None}
    assert left <= {".lock"}


@contextlib.contextmanager
def empty_directory():
    """A new current directory."""
    with tempfile.TemporaryDirectory() as path, contextlib.chdir(path):
        yield Path(path)


def flag(name):
    return f"--{name.replace('_', '-')}"


def arguments(fields):
    """Fields as flags."""
    return [part for name, value in fields.items() for part in (flag(name), str(value))]


BASE = arguments(SMALL)


@contextlib.contextmanager
def directory_with_a_run():
    """A new current directory with a run; flags that would overwrite it."""
    with empty_directory() as path:
        (path / "run" / "checkpoints").mkdir(parents=True)
        checkpoint = "checkpoints/epoch-00001-step-00000000.msgpack"
        for name in ("config.json", "metrics.jsonl", "best.msgpack", checkpoint):
            (path / "run" / name).write_text("{}")
        yield [*BASE, "--overwrite", "--workdir", "run"]


class Bad(NamedTuple):
    """Flags that are bad by construction.

    Attributes:
      argv: The flags.
      names: The message contains one of them.
    """

    argv: list[str]
    names: list[str]


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)


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

GOOD_FILE = json.dumps(config_lib.identity(config_lib.resolve(SMALL)), indent=2)

DEEP = st.builds(
    lambda bracket, depth: bracket * depth,
    st.sampled_from([b"[", b'{"a":']),
    st.integers(1, 3000),
)
