"""The layers of all networks: normalisation, start, pooling, dropped examples."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import layers
from tests.support.networks import filled


def test_layer_normalisation_is_that_of_the_channels():
    network = models.create("tiny", width=4).clone(normalization="layer")
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables, state = filled(network, images.shape), {}
    _, state = network.apply(
        variables, images, train=True, capture_intermediates=True, mutable=True
    )
    stage = state["intermediates"]["stage1"]
    x = np.asarray(stage["conv"]["__call__"][0], float)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1)[..., None] + 1e-6)
    found = stage["norm"]["__call__"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "batch_stats" not in variables


@pytest.mark.parametrize(("kernel_init", "factor"), [("he", 1.0), ("pytorch", 1 / 6)])
def test_initialisation_keeps_or_shrinks_the_mean_square(kernel_init, factor):
    """Per relu layer: fan_in times the variance of a weight, 2/n or 1/(3n), halved."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            squares = [(x**2).mean()]
            own = layers.Layers(True, x.dtype, None, "none", kernel_init)
            for i in range(4):
                x = nn.relu(own.dense(x, f"layer{i}", 2000))
                squares.append((x**2).mean())
            return jnp.stack(squares)

    x = 1000 * jax.random.normal(jax.random.key(1), (8, 2000))  # biases are negligible
    squares, _ = jax.jit(Deep().init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(squares[1:] / squares[:-1], factor, rtol=0.1)
    # Convolutions have the same bounds with their own fan-in, and groups.
    conv = layers.Layers(True, x.dtype, None, "none", kernel_init).conv

    class Conv(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv(x, "conv", 64, 5, groups=64)

    init = jax.jit(Conv().init)
    kernel = init(jax.random.key(0), jnp.ones((1, 5, 5, 64)))["params"]["conv"]
    expected = factor * 2 / 25
    np.testing.assert_allclose(kernel["kernel"].var(), expected, rtol=0.15)
    assert kernel["bias"].any() == (kernel_init == "pytorch")


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 1)])
@pytest.mark.parametrize("side", [2, 3, 6, 7])
def test_max_pool_is_flaxs(size, stride, side):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, side, 5, 3), np.float32)
    pad = [(0, 0)] * 2 if size == 2 else [(1, 1)] * 2
    expected = nn.max_pool(x, (size, size), (stride, stride), pad)
    np.testing.assert_array_equal(
        layers.max_pool(jnp.asarray(x), size, stride), expected
    )


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 3)])
def test_gradient_of_a_window_of_equals_goes_to_one_of_them(size, stride):
    """One that asks which input equals the maximum depends on how both are rounded."""
    ties = jnp.full((2, 6, 6, 3), 2.0)
    weights = jax.random.normal(
        jax.random.key(0), layers.max_pool(ties, size, stride).shape
    )
    grad = jax.grad(lambda x: (weights * layers.max_pool(x, size, stride)).sum())(ties)
    np.testing.assert_array_equal(np.sort(grad[grad != 0]), np.sort(weights.ravel()))


def test_max_pool_leaves_a_side_of_one_alone():
    x = jnp.array([[[[3.0], [1.0], [2.0], [5.0]]]])  # 1 x 4 pixels
    np.testing.assert_array_equal(layers.max_pool(x, 2, 2).ravel(), [3, 5])
    np.testing.assert_array_equal(layers.max_pool(x, 3, 2).ravel(), [3, 5])


def test_stochastic_depth_drops_branches_of_examples():
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.Layers(True, x.dtype, None).drop_examples(x, 0.25)

    x = jnp.ones((4000, 2, 2, 3))
    y = Branch().apply({}, x, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y[:, 0, 0, 0])
    np.testing.assert_array_equal(
        y, np.broadcast_to(kept[:, None, None, None], y.shape)
    )
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.75], rtol=1e-6)
    assert abs(np.mean(kept > 0) - 0.75) < 5 * math.sqrt(0.25 * 0.75 / 4000)
