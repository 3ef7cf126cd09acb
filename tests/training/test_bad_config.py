"""Bad flags and configuration files, from end to end: nothing is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.bad_inputs import SMALL, assert_refused, directory_with_a_run
from training.settings.config import identity, resolve

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--epoch", "1"], "--epoch"),
        (["--augment", "yes"], "yes"),
        (["--method"], "--method"),
        (["--method=sdg"], "--method"),
        (["--lr=-1"], "--learning-rate"),
        (["--seed=4294967296"], "--seed"),
        (["--method=lookahead", "--plp-step=1"], "--plp-step"),
        (["--amplify-lowest"], "--amplify-lowest"),
    ],
)
def test_bad_flags(argv, name):
    with directory_with_a_run() as base:
        assert_refused([*base, "--augment", *argv], [name])


GOOD = json.dumps(identity(resolve(SMALL)), indent=2)
FILES = {
    "empty": ("", "--config"),
    "cut": (GOOD[:-9], "not a JSON file"),
    "binary": (b"\xff\x00" + GOOD.encode(), "--config"),
    "a list": ("[1]", "JSON object"),
    "deep": ('{"a":' * 3000, "--config"),
    "unknown": (json.dumps(SMALL | {"epoch": 1}), "unknown fields"),
    "not recorded": (json.dumps(SMALL | {"draw": True}), "unknown fields"),
    "text": (json.dumps(SMALL | {"epochs": "3"}), "--epochs must be an integer"),
    "list": (json.dumps(SMALL | {"method": ["sgd"]}), "--method"),
    "number": (json.dumps(SMALL | {"augment": 1}), "--augment"),
}


@pytest.mark.parametrize(("content", "name"), FILES.values(), ids=FILES)
def test_bad_configuration_files(content, name):
    content = content if isinstance(content, bytes) else content.encode()
    with directory_with_a_run() as base:
        Path("a.json").write_bytes(content)
        overwriting = base[base.index("--overwrite") :]
        assert_refused(["--config", "a.json", *overwriting], [name])


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
