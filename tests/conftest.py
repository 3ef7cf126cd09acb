"""Strict JAX settings and several CPU devices for every test."""

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
