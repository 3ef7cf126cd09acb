"""The types that users of the library see."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "support" / "user_program.py"


def test_the_users_program_runs():
    runpy.run_path(str(PROGRAM))


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
