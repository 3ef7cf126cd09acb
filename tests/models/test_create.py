"""The networks: size, start, shapes, dtypes, options, batch statistics."""

import contextlib
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

import models
from models import efficientnet, vit
from models.blocks import BlockNetwork
from tests.support.networks import filled, paths, shapes_of
from training import recipe
from training.run import workdir
from training.settings.config import resolve

# One network of each kind of block; their deeper variants compile for long.
KINDS = (
    *("vgg16", "resnet18", "resnet50", "googlenet", "vit-tiny", "efficientnet-b0"),
    *("tiny", "plain"),
)


# -- size ------------------------------------------------------------------------------

# A basic block from i to o channels has 9(i + o)o weights and two norms of 2o; its
# projection, if i != o, io + 2o more.
#     stem 9*3*64 + 2*64 = 1,856        head 512*100 + 100 = 51,300
#     stage 1: 2 * 73,984               stage 2: 230,144 + 295,424
#     stage 3: 919,040 + 1,180,672      stage 4: 3,673,088 + 4,720,640
# ResNet-34 has 1, 2, 4, 1 more of the last number in each stage.
#
# A bottleneck from i to 4f channels: if + 9f^2 + 4f^2, norms of 2f, 2f and 8f; its
# projection 4fi + 8f.
#     stem 1,856                        head 2048*100 + 100 = 204,900
#     stage 1: 75,008 + 2*70,400        stage 2: 379,392 + 3*280,064
#     stage 3: 1,512,448 + 5*1,117,184  stage 4: 6,039,552 + 2*4,462,592
# ResNet-101 has 17 more in stage 3: 17 * 1,117,184 = 18,992,128.
#
# The 7x7 stem has 3*64*(49 - 9) = 7,680 weights more.
RESNET = [
    ("resnet18", "cifar", 11_220_132),
    ("resnet18", "imagenet", 11_227_812),
    ("resnet34", "cifar", 21_328_292),
    ("resnet34", "imagenet", 21_335_972),
    ("resnet50", "cifar", 23_705_252),
    ("resnet50", "imagenet", 23_712_932),
    ("resnet101", "cifar", 42_697_380),
    ("resnet101", "imagenet", 42_705_060),
]

# VGG-16: weights 9 * (3*64 + 64*64 + 64*128 + 128*128 + 128*256 + 2*256*256 + 256*512
# + 5*512*512) = 14,710,464, and 3 (bias, scale, shift) for each of 2*64 + 2*128 + 3*256
# + 6*512 = 4,224 channels: 14,723,136.
# VGG-19: 9 * (256*256 + 2*512*512) + 3 * (256 + 2*512) = 5,312,256 more.
# VGG-29: 9 * (2*64*64 + 2*128*128 + 3*256*256 + 6*512*512)
# + 3 * (2*64 + 2*128 + 3*256 + 6*512) = 16,306,560 more than VGG-16.
# Heads: linear 512*100 + 100 = 51,300; mlp (512*4096 + 4096) + (4096*4096 + 4096)
# + (4096*100 + 100) = 19,292,260.
VGG = [
    ("vgg16", "mlp", 34_015_396),
    ("vgg16", "linear", 14_774_436),
    ("vgg19", "mlp", 39_327_652),
    ("vgg19", "linear", 20_086_692),
    ("vgg29", "linear", 31_080_996),
]

# A module from i channels: i(c1 + r3 + r5 + p) + 9(r3 c3 + r5 c5 + c5^2) weights and
# 2(c1 + r3 + c3 + r5 + 2 c5 + p) in norms.
#     stem 9*(3*64 + 64*64 + 64*192) + 2*320 = 149,824    head 1024*100 + 100 = 102,500
#     3a to 3b: 165,152 + 423,360
#     4a to 4e: 385,344 + 462,224 + 523,184 + 610,304 + 951,552
#     5a to 5b: 1,126,656 + 1,494,752
# The ImageNet stem has 49*3*64 + 64*64 + 9*64*192 weights: 25,088 fewer.
GOOGLENET = [
    ("googlenet", "cifar", 6_394_852),
    ("googlenet", "imagenet", 6_369_764),
]

# Patches of p x p pixels and width d: (3p^2 + 1)d, positions and class token for n
# tokens (n + 1)d, final norm 2d, head 100d + 100. A block has 4d^2 + 4d in attention,
# 8d^2 + 5d in the MLP, 4d in its norms.
#     tiny (d = 192): 9,408 + 66*192 + 384 + 19,300 + 12 * 444,864
#     small (d = 384): 18,816 + 66*384 + 768 + 38,500 + 12 * 1,774,464
# The ImageNet stem of 32x32 images has 4 patches of 16: tiny 6*192 and 769*192.
VIT = [
    ("vit-tiny", "cifar", 5_380_132),
    ("vit-tiny", "imagenet", 5_506_852),
    ("vit-small", "cifar", 21_376_996),
]

# The paper's networks have the same parameters with either stem. 1,281,000 of the
# published 5,288,548 are a head of 1000 classes; one of 100 has 128,100.
EFFICIENTNET = [
    ("efficientnet-b0", "cifar", 4_135_648),
    ("efficientnet-b0", "imagenet", 5_288_548 - 1_281_000 + 128_100),
]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (name, {"stem": stem}, n)
        for name, stem, n in RESNET + GOOGLENET + VIT + EFFICIENTNET
    ]
    + [(name, {"head": head}, n) for name, head, n in VGG],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else None,
)
def test_parameter_count(name, options, expected):
    params = shapes_of(models.create(name, num_classes=100, **options))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("name", [n for n in KINDS if n != "efficientnet-b0"])
def test_width_scales_all_channels(name):
    # One quarter of the papers' width divides all their channel counts.
    small = paths(shapes_of(models.create(name, width=16))["params"])
    large = paths(shapes_of(models.create(name, width=64))["params"])
    assert small.keys() == large.keys()
    for path, leaf in small.items():
        if path.startswith("head") and leaf.shape[-1] == 100:  # the logits
            assert large[path].shape[-1] == 100
        else:
            assert 4 * leaf.shape[-1] == large[path].shape[-1], path


# -- use -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_any_side_will_do(name):
    shape = (2, 1, 1, 3)
    network = models.create(name, width=4)
    logits, state = jax.eval_shape(
        lambda: network.init_with_output(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            jnp.zeros(shape),
            train=True,
            capture_intermediates=True,
            mutable=True,
        )
    )
    assert logits.shape == (shape[0], 100)
    # An empty array on the way would make NaN of its mean.
    assert all(leaf.size for leaf in jax.tree.leaves(state["intermediates"]))


@pytest.mark.parametrize(
    ("name", "stem", "sides"),
    [
        ("resnet18", "cifar", [32, 32, 16, 8, 4]),
        ("resnet18", "imagenet", [16, 8, 4, 2, 1]),
        ("googlenet", "cifar", [16, 16, 8, 4]),  # stem pools at its end
        ("googlenet", "imagenet", [4, 4, 2, 1]),
        ("vgg16", "cifar", [32, 16, 8, 4, 2]),
        ("efficientnet-b0", "cifar", [32, 32, 16, 8, 4, 4, 2, 2]),
        ("efficientnet-b0", "imagenet", [16, 16, 8, 4, 2, 2, 1, 1]),
    ],
)
def test_sides_of_the_stages(name, stem, sides):
    network = models.create(name, stem=stem, width=4)
    _, state = jax.eval_shape(
        lambda: network.init_with_output(
            jax.random.key(0),
            jnp.zeros((1, 32, 32, 3)),
            train=False,
            capture_intermediates=True,
            mutable=True,
        )
    )
    found = [
        value["__call__"][0].shape[1:3]
        for key, value in sorted(state["intermediates"].items())
        if key.startswith("stage")
    ]
    if name != "vgg16":
        found.insert(0, state["intermediates"]["stem"]["__call__"][0].shape[1:3])
    assert found == [(side, side) for side in sides]


@pytest.mark.parametrize("name", [n for n in KINDS if n != "resnet50"])
def test_dropout_only_in_training(name):
    """Networks that have it need its random stream."""
    rates = {"vgg16": 0.5, "googlenet": 0.4, "vit-tiny": 0.0, "efficientnet-b0": 0.2}
    assert models.NETWORKS[name].has_dropout == (name in rates)
    network = models.create(name, width=4)
    if name in rates:
        assert network.dropout_rate == rates[name]
        network = network.clone(dropout_rate=0.3)
    images = jnp.ones((2, 8, 8, 1))
    apply = functools.partial(network.apply, filled(network, images.shape), images)
    jax.eval_shape(lambda: apply(train=False))
    expectation = contextlib.nullcontext()
    if name in rates:
        expectation = pytest.raises(errors.InvalidRngError, match="dropout")
    with expectation:
        jax.eval_shape(lambda: apply(train=True, mutable=["batch_stats"]))


# -- start -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "tiny"])  # with and without biases
def test_starts_as_pytorch_does(name):
    network = models.create(name, width=16)
    images = jnp.zeros((1, 8, 8, 3))
    variables = jax.jit(lambda key: network.init(key, images, train=False))(
        jax.random.key(0)
    )
    params = paths(variables["params"])
    biases = []
    for path, leaf in params.items():
        module, kind = path.rsplit("/", 1)
        if kind == "kernel" or f"{module}/kernel" in params:
            bound = math.prod(params[f"{module}/kernel"].shape[:-1]) ** -0.5
            assert np.abs(leaf).max() <= bound, path
            if kind == "bias":
                biases.append(np.ravel(leaf / bound))
                continue
            # Uniform: mean 0, deviation bound / sqrt(3), each within 5 of its errors.
            count = leaf.size
            assert abs(leaf.mean()) < 5 * bound / math.sqrt(3 * count), path
            spread = leaf.std() * math.sqrt(3) / bound
            assert abs(spread - 1) < 5 / math.sqrt(5 * count), path
        else:
            np.testing.assert_array_equal(leaf, float(kind == "scale"))
    biases = np.concatenate(biases)
    assert abs(biases.std() * math.sqrt(3) - 1) < 5 / math.sqrt(5 * biases.size)
    for path, leaf in paths(variables.get("batch_stats", {})).items():
        np.testing.assert_array_equal(leaf, float(path.endswith("var")))


# -- dtypes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in KINDS if n != "resnet50"])
def test_dtypes(name):
    dtype, wide = "bfloat16", "float32"
    with jax.enable_x64(True):
        network = models.create(name, dtype=dtype, width=4)
        images = jnp.zeros((2, 8, 8, 1), jnp.float32)
        variables = shapes_of(network, images.shape)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {wide}
        logits, updates = jax.eval_shape(
            lambda variables: network.apply(
                variables,
                images,
                train=True,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=True,
                rngs={"dropout": jax.random.key(0)},
            ),
            variables,
        )
    assert logits.dtype == wide
    if "batch_stats" in variables:
        stats = updates["batch_stats"]
        chex.assert_trees_all_equal_shapes_and_dtypes(stats, variables["batch_stats"])
    inner = updates["intermediates"]
    inner.pop("__call__")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(inner)} == {dtype}


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 8, 1), np.float32), r"shape .*\(8, 8, 1\)"),
        (np.zeros((2, 8, 8, 1), np.uint8), "floats, got uint8"),
    ],
)
def test_image_errors(images, message):
    with pytest.raises(ValueError, match=message):
        models.create("tiny").init(jax.random.key(0), images, train=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg11", {}, r"'vgg11'.*vgg16, vgg19, vgg29, resnet18.*googlenet.*tiny"),
        ("vgg16", {"stem": "imagenet"}, r"vgg16 .*stem 'imagenet'.*\('cifar',\)"),
        ("resnet18", {"head": "mlp"}, r"resnet18 .*head 'mlp'.*\('linear', 'dense', "),
        ("tiny", {"num_classes": 0}, "num_classes .*got 0"),
        ("tiny", {"num_classes": 2.5}, r"num_classes .*got 2\.5"),
        ("tiny", {"width": -3}, "width .*got -3"),
        ("tiny", {"dtype": jnp.int32}, "dtype .*int32"),
    ],
)
def test_option_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


def test_families_say_what_their_networks_have():
    for name, family in models.NETWORKS.items():
        network = models.create(name)
        assert family.has_blocks == isinstance(network, BlockNetwork)
        assert family.has_mlp_head == ("mlp" in network.heads)
        assert family.has_imagenet_stem == ("imagenet" in network.stems)


# -- training --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "precision"), [("plp", "float16"), ("amplify+plp", "bfloat16")]
)
@pytest.mark.parametrize("name", ["vit-tiny", "efficientnet-b0"])
def test_methods_train_in_half_precision(
    name, method, precision, tmp_path, monkeypatch
):
    monkeypatch.setattr(efficientnet, "STAGES", efficientnet.STAGES[:2])
    shallow = (vit.ViT, {"num_heads": 3, "depth": 1})
    monkeypatch.setitem(vit.VARIANTS, "vit-tiny", shallow)
    config = resolve(
        {
            **{"model": name, "width": 8, "method": method, "precision": precision},
            "strategy": "[(2, 0.05, 0, 1), (5, 0.05, 1, 2.0)]",
            "workdir": str(tmp_path / "run"),
            **({"amplify_threshold": 0.1} if "amplify" in method else {}),
        }
    )
    (result,) = recipe.train([config])
    first, *_, last = workdir.read_metrics(config.workdir)
    assert result["skipped_steps"] <= 3  # until the loss scale of float16 fits
    assert last["train_loss"] < 0.8 * first["train_loss"]
    assert bool(last.get("amplified")) == method.startswith("amplify")
