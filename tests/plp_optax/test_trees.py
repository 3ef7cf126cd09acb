"""Arithmetic on trees: rounded once, in the widest dtype, and no NaN passes a gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plp_optax._trees import combine, scale, select, widened, zeros


@pytest.mark.parametrize("mode", ["standard", "strict"])
def test_a_combination_is_rounded_once(mode):
    """Between 256 and 512 bfloat16 has even numbers only."""
    large, one = ({"w": jnp.asarray([x], jnp.bfloat16)} for x in (256.0, 1.0))
    with jax.numpy_dtype_promotion(mode):
        total = combine((1, large), (1, one), (np.float32(1), one), like=large)
        assert total["w"].dtype == jnp.bfloat16
        assert float(total["w"][0]) == 258
        # The widest of the trees decides, whatever their order.
        wide = combine((1, one), (2.0**-20, {"w": np.ones(1, np.float32)}))
        assert wide["w"].dtype == jnp.float32
        assert float(wide["w"][0]) == 1 + 2.0**-20


def test_numbers_are_leaves_too():
    assert float(combine((2.0, [3.0]), (-1, [1]))[0]) == 5


def test_a_selection_keeps_types_and_hides_what_is_not_selected():
    new, old = jnp.asarray([jnp.nan, 1.0]), jnp.ones(2, jnp.bfloat16)
    kept = select(jnp.asarray(False), new, old)
    assert kept.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept, 1)
    assert np.isnan(select(jnp.asarray(True), new, old)[0])


def test_scale_rounds_once():
    x = jnp.asarray(1.0078125, jnp.bfloat16)
    expected = jnp.asarray(np.float32(1.0078125) * np.float32(1.7), jnp.bfloat16)
    assert scale(x, jnp.asarray(1.7)) == expected


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [("bfloat16", "float32"), ("int8", "float32"), ("complex64", "complex64")],
)
def test_widened(dtype, wide):
    assert widened(jnp.dtype(dtype)) == wide
    # Only real buffers take another dtype.
    given = zeros(jnp.ones(2, dtype), jnp.float16).dtype
    assert given == ("float16" if dtype == "bfloat16" else dtype)
