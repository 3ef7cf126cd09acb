"""Convolutions in other forms are XLA's convolutions."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import convolution
from models.layers import Layers

# Sides of the image, of the kernel, stride, padding.
SHAPES = [
    ((1, 1), 3, 1, 1),
    ((2, 2), 3, 1, 1),
    ((3, 2), 3, 1, 1),
    ((4, 3), 3, 2, 1),  # the last row is unused
    ((4, 4), 7, 2, 3),
    ((5, 4), 2, 2, 0),
    ((4, 4), 1, 2, 0),
    ((6, 6), 3, 2, 1),  # to 3 x 3: too large for a product
    ((1, 9), 3, 1, 1),  # a side of 9
]


@pytest.mark.parametrize(("sides", "size", "stride", "padding"), SHAPES)
@pytest.mark.parametrize(("form", "groups"), [("dense", 1), ("depthwise", 6)])
def test_values_and_gradients(form, groups, sides, size, stride, padding):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(3, *sides, 6)))
        kernel = jnp.asarray(rng.normal(size=(size, size, 6 // groups, 6)))
        convolve = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(stride, stride),
            padding=[(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        weights = jnp.asarray(rng.normal(size=convolve(x, kernel).shape))

        def other(x, kernel):
            return getattr(convolution, form)(
                x,
                kernel,
                (stride, stride),
                [(padding, padding)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        @functools.partial(jax.jit, static_argnums=0)
        def value_and_gradients(f):
            loss = jax.value_and_grad(lambda *a: jnp.sum(weights * f(*a)), (0, 1))
            return f(x, kernel), loss(x, kernel)

        expected = value_and_gradients(convolve)
        chex.assert_trees_all_close(
            value_and_gradients(other), expected, rtol=1e-12, atol=1e-12
        )


class _Convolution(nn.Module):
    padding: int | str

    @nn.compact
    def __call__(self, x):
        layers = Layers(train=False, dtype=jnp.float32, axis_name=None)
        return layers.conv(x, "conv", 5, 3, padding=self.padding)


@pytest.mark.parametrize(
    ("side", "padding", "platform", "is_product"),
    [
        (2, 1, "cpu", True),
        (2, 1, "tpu", False),
        (2, 1, "cuda", False),
        (3, 1, "cpu", False),
        (2, "SAME", "cpu", False),
    ],
)
def test_products_are_for_small_outputs_on_a_cpu(side, padding, platform, is_product):
    module, x = _Convolution(padding), jnp.ones((2, side, side, 3))
    variables = module.init(jax.random.key(0), x)
    traced = jax.jit(module.apply).trace(variables, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) == is_product
    assert ("convolution" in text) != is_product
