"""Networks of blocks: cut, frozen, in order, without normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from tests.support.networks import filled, paths, shapes_of

# One network of each kind whose blocks come in every shape; and the outputs of each
# block for an image of 16x16 pixels: side * side * channels.
BLOCKS = {
    "vgg16": ({"depths": (1, 2)}, [8 * 8 * 2, 8 * 8 * 4, 4 * 4 * 4]),
    "resnet18": (
        {"depths": (1, 1), "stem": "imagenet"},
        [4 * 4 * 2, 4 * 4 * 2, 2 * 2 * 4],
    ),
    "tiny": ({}, [16 * 16 * 2, 8 * 8 * 4]),
}


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50", "tiny"])
def test_without_normalisation_every_convolution_has_a_bias(name):
    plain = models.create(name, width=4).clone(normalization="none")
    variables = shapes_of(plain)
    assert set(variables) == {"params"}
    layers_of = {path.rpartition("/")[0] for path in paths(variables["params"])}
    for layer in layers_of:
        assert {f"{layer}/kernel", f"{layer}/bias"} <= set(paths(variables["params"]))
    assert not any("norm" in layer for layer in layers_of)


@pytest.mark.parametrize("name", BLOCKS)
def test_cut_after_a_block(name):
    """With a head on its output, and the same names as in the network."""
    attributes, outputs = BLOCKS[name]
    network = models.create(name, head="dense", width=2).clone(**attributes)
    assert len(network.blocks()) == len(outputs)
    whole = paths(shapes_of(network, (1, 16, 16, 3)))
    for number, count in enumerate(outputs, 1):
        variables = shapes_of(network.clone(cut=number), (1, 16, 16, 3))
        own = {path for path in paths(variables) if "/head/" not in path}
        assert own <= whole.keys()
        assert (number == len(outputs)) == (paths(variables).keys() == whole.keys())
        assert variables["params"]["head"]["hidden1"]["kernel"].shape[0] == count


@pytest.mark.parametrize("name", BLOCKS)
def test_frozen_blocks(name):
    """They have no gradient, and their statistics stay; the others' do not."""
    attributes, outputs = BLOCKS[name]
    network = models.create(name, head="linear", width=2).clone(**attributes)
    images = np.random.default_rng(1).standard_normal((4, 8, 8, 3), np.float32)
    variables = filled(network, images.shape)
    for frozen in range(len(outputs) + 1):

        @jax.jit
        def step(params, frozen=frozen):
            def loss_fn(params):
                logits, updates = network.clone(frozen=frozen).apply(
                    variables | {"params": params},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                )
                return jnp.sum(jnp.sin(logits)), updates["batch_stats"]

            return jax.grad(loss_fn, has_aux=True)(params)

        gradients, stats = map(paths, step(variables["params"]))
        inside = set()
        if frozen:
            part = paths(shapes_of(network.clone(cut=frozen), images.shape))
            inside = {path.partition("/")[2] for path in part if "/head/" not in path}
        for path, gradient in gradients.items():
            if path.endswith("kernel"):
                assert bool(gradient.any()) == (path not in inside), (frozen, path)
        before = paths(variables["batch_stats"])
        for path, value in stats.items():
            same = np.array_equal(value, before[path])
            assert same == (path in inside), (frozen, path)


def test_blocks_are_in_order():
    assert list(models.create("vgg16").blocks())[:3] == [
        *("stage1/conv1", "stage1/conv2", "stage2/conv1"),
    ]
    assert list(models.create("resnet50").blocks())[:2] == ["stem", "stage1/block0"]
