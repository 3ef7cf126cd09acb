"""Strict JAX settings and several CPU devices for every test."""

import gc
import os
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from hypothesis import settings
from matplotlib.figure import Figure

# Traces of programs are many small objects, and collecting them at the usual thresholds
# took a tenth of the time of all tests.
gc.set_threshold(50_000, 20, 50)
# Of the processes that tests start, too.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
settings.register_profile("default", deadline=None, max_examples=15, derandomize=True)
settings.load_profile("default")
# A failed assertion in a helper shows its values, as in a test.
pytest.register_assert_rewrite(
    *(f"tests.support.{n}" for n in ("bad_inputs", "cifar_archives", "reports", "runs"))
)

from experiments import trainer  # noqa: E402
from tests.support import programs  # noqa: E402
from training import recipe  # noqa: E402
from training.run import style  # noqa: E402
from training.settings import config  # noqa: E402

OLDER_FUSIONS = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    """Plain pytest compiles quickly; what is compiled is kept for all processes.

    Compiling is most of the tests' time, and LLVM's optimisation half of that; without
    it, XLA's older code for fusions, which JAX 0.10 still has, takes half of the rest.
    Slow tests are compiled as users' programs are. ``pytest --cache-clear`` forgets
    what was kept. A process may read a file that another one is writing. JAX then
    warns, which pyproject.toml lets pass, and compiles.
    """
    if config.option.markexpr == "not slow":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
        if jax.__version_info__[:2] == (0, 10):
            flags = f"{os.environ.get('XLA_FLAGS', '')} {OLDER_FUSIONS}"
            os.environ["XLA_FLAGS"] = flags.strip()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
            config.cache.mkdir("jax")
        )
        jax.config.update("jax_compilation_cache_dir", folder)


class BlankFigure(Figure):
    """A picture that is not drawn into a file of a run."""

    def savefig(self, path, **options):
        if isinstance(path, Path):
            path.write_bytes(b"\x89PNG")
        else:
            super().savefig(path, **options)


@pytest.fixture(scope="session", autouse=True)
def _blank_pictures():
    """Drawing a run's pictures takes longer than a small run.

    Those of ``trained``, of ``test_display`` and of runs in other processes are drawn.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "Figure", BlankFigure)
        yield


@pytest.fixture(scope="session", autouse=True)
def _shared_programs():
    """Tests that train by the recipe compile equal programs once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "build", programs.build)
        yield


@pytest.fixture(scope="module", autouse=True)
def _memory_maps():
    """Compiled programs take memory maps, and a process that has too many crashes."""
    yield
    if trainer.is_crowded():
        programs.forget()
        jax.clear_caches()


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
    argv += ["--schedule=constant"]
    (made,) = config.parse([*argv, "--workdir", str(path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "Figure", Figure)
        prepared = recipe.prepare(made)
        (result,) = recipe.train([made], kept={None: prepared})
        return Trained(argv, path, prepared, result)
