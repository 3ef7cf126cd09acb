"""Strict JAX settings and several CPU devices for every test."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
# Nothing that an earlier run has compiled, and nothing left behind in the home folder.
jax.config.update("jax_enable_compilation_cache", False)
# What fails in a helper that asserts is told in full, as in a test.
pytest.register_assert_rewrite(
    "tests.bad_inputs", "tests.cifar_archives", "tests.reports"
)

from tests.cifar_archives import original as original  # noqa: E402
from tests.cifar_archives import with_archive as with_archive  # noqa: E402
