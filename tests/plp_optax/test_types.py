"""The types that users of the library see."""

import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import plp_optax

PROGRAM = Path(__file__).parents[1] / "support" / "user_program.py"


def test_the_users_program_runs():
    runpy.run_path(str(PROGRAM))


def test_the_users_program_has_every_public_name():
    used = set(re.findall(r"plp_optax\.(\w+)", PROGRAM.read_text()))
    assert used == set(plp_optax.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_the_users_program_passes_a_strict_type_checker(checker, tmp_path):
    pytest.importorskip(checker)
    # Somewhere else, so that this project's own settings do not apply.
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-optax.*]\nignore_missing_imports = true\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", checker, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", ["plp", "affine_window", "amplify_layers", "plp_sgd"])
def test_help_begins_with_a_signature_of_a_few_lines(name):
    signature = str(inspect.signature(getattr(plp_optax, name)))
    assert "Union" not in signature
    assert len(signature) < 650
