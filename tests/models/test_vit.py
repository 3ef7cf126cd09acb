"""Vision Transformer: layers, shared blocks, amplification, dropout."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from plp_optax.linen import propagate_amplification
from tests.support.networks import filled, layer_names
from training.engine.networks import make_network
from training.settings.config import resolve


def test_each_projection_of_attention_is_a_layer():
    """Class token and positions are parameters of the stem, which has no kernel."""
    names = layer_names("vit-tiny", "kernels")
    parts = {f"attention/{part}" for part in ("query", "key", "value", "out")}
    parts |= {"mlp/hidden", "mlp/output"}
    blocks = {f"block{i}/{part}" for i in range(12) for part in parts}
    assert set(names) == {"stem/patches", "head"} | blocks
    norms = {f"block{i}/norm{j}" for i in range(12) for j in (1, 2)} | {"norm"}
    assert set(layer_names("vit-tiny", "modules")) == {*names, "stem"} | norms


def shallow_vit(depth, dtype=jnp.float32, **attributes):
    network = models.create("vit-tiny", 10, width=2, dtype=dtype)
    return network.clone(depth=depth, **attributes)


def test_shared_blocks_have_the_gradients_of_separate_ones():
    network = shallow_vit(2, jnp.float64)
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1), jnp.float64)
        variables = network.init(jax.random.key(1), images, train=False)
        shared = network.clone(share_blocks=True)
        drawn = shared.init(jax.random.key(1), images, train=False)
        chex.assert_trees_all_equal(variables, drawn)

        def gradient(network):
            def loss(variables):
                return jnp.sin(network.apply(variables, images, train=True)).sum()

            return jax.device_get(jax.jit(jax.grad(loss))(variables))

        chex.assert_trees_all_close(
            gradient(shared), gradient(network), rtol=1e-12, atol=1e-12
        )


def test_shared_blocks_are_one_function_of_the_program():
    def program(depth, *, share_blocks):
        network = shallow_vit(depth, share_blocks=share_blocks)
        images = jnp.zeros((2, 8, 8, 1))
        variables = jax.eval_shape(
            lambda: network.init(jax.random.key(0), images, train=False)
        )
        apply = functools.partial(network.apply, train=False)
        return jax.jit(apply).lower(variables, images)

    def products(program):
        return program.as_text().count("stablehlo.dot_general")

    assert products(program(5, share_blocks=True)) == products(
        program(1, share_blocks=False)
    )
    # And the compiler leaves it so.
    compiled = program(5, share_blocks=True).compile().as_text()
    assert len(re.findall(r" call\(.*inlineable", compiled)) == 5


def test_shared_blocks_drop_different_units():
    network = shallow_vit(2, share_blocks=True, dropout_rate=0.5)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    apply = functools.partial(
        network.apply,
        train=True,
        rngs={"dropout": jax.random.key(2)},
        capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        mutable="intermediates",
    )
    _, state = jax.jit(apply)(filled(network, images.shape), images)
    first, second = (
        state["intermediates"][f"block{i}"]["mlp"]["Dropout_0"]["__call__"][0]
        for i in range(2)
    )
    assert 0.3 < ((first == 0) != (second == 0)).mean() < 0.7


def test_blocks_are_shared_unless_amplification_tells_them_apart():
    strategy = "[(2, 0.05, 0, 1), (5, 0.05, 1, 2.0)]"
    amplified = {"model": "vit-tiny", "method": "amplify", "strategy": strategy}
    for propagate in (False, True):
        config = resolve(amplified | {"amplify_propagate": propagate})
        assert make_network(config, 10, axis_name=None).share_blocks != propagate


@pytest.mark.slow
def test_amplification_propagates_through_attention():
    """The query's gradient is doubled; of others, that of what it is computed from."""
    network = models.create("vit-tiny", 10, width=8, dtype=jnp.float64)
    network = network.clone(depth=1)
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1), jnp.float64)
        params = network.init(jax.random.key(1), images, train=False)["params"]

        @jax.jit
        def gradient(params, factor):
            def loss(params):
                with propagate_amplification({"block0/attention/query": factor}):
                    logits = network.apply({"params": params}, images, train=False)
                return jnp.sum(jnp.sin(logits))

            return jax.grad(loss)(params)

        gradients = gradient(params, 1.0), gradient(params, 2.0)
    plain, amplified = jax.device_get(gradients)
    flat = jax.tree_util.tree_leaves_with_path(plain)
    for (path, a), b in zip(flat, jax.tree.leaves(amplified), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Only the class token's query counts: patches are keys and values.
        if name in ("stem/class_token", "stem/positions") or "norm1" in name:
            assert not np.allclose(a, b, rtol=0.01)
        else:
            np.testing.assert_allclose(b, a * (1 + ("query" in name)), rtol=1e-9)


def test_the_flag_sets_the_dropout_rate():
    config = resolve({"model": "vit-tiny", "dropout": 0.3})
    assert make_network(config, 10, axis_name=None).dropout_rate == 0.3
