"""What tests of bad inputs share: running the program, and what must stay."""

import contextlib
import io
import re
import signal
import tempfile
from pathlib import Path

import train

# Small, should a bad input be taken for a good one.
SMALL = {"model": "tiny", "width": 2, "batch_size": 256, "max_steps": 1}


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


@contextlib.contextmanager
def directory_with_a_run():
    """A new current directory with a run; flags that would overwrite it."""
    with empty_directory() as path:
        flags = [f"--{n.replace('_', '-')}={value}" for n, value in SMALL.items()]
        (path / "run" / "checkpoints").mkdir(parents=True)
        checkpoint = "checkpoints/epoch-00001-step-00000000.msgpack"
        for name in ("config.json", "metrics.jsonl", "best.msgpack", checkpoint):
            (path / "run" / name).write_text("{}")
        yield [*flags, "--overwrite", "--workdir", "run"]
