"""Strict JAX settings and several CPU devices for every test."""

from pathlib import Path
from typing import NamedTuple

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
# Nothing that an earlier run has compiled, and nothing left behind in the home folder.
jax.config.update("jax_enable_compilation_cache", False)
# A failed assertion in a helper shows its values, as in a test.
pytest.register_assert_rewrite(
    "tests.bad_inputs", "tests.cifar_archives", "tests.reports"
)

from training import config, recipe  # noqa: E402


class Trained(NamedTuple):
    """A small run that has finished; do not change its files.

    Attributes:
      argv: Its flags, without its work directory.
      path: Its work directory.
      prepared: Its data and compiled program.
      result: Its result.
    """

    argv: list[str]
    path: Path
    prepared: recipe.Prepared
    result: dict


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two epochs of four steps of a tiny network on the digits; two checkpoints."""
    path = tmp_path_factory.mktemp("trained") / "run"
    argv = ["--model=tiny", "--width=2", "--batch-size=256", "--epochs=2"]
    argv += ["--method=sgd", "--learning-rate=0.5", "--warmup-epochs=0"]
    (made,) = config.parse([*argv, "--workdir", str(path)])
    prepared = recipe.prepare(made)
    return Trained(argv, path, prepared, recipe.run(prepared, made))
