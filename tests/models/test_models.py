"""The networks: size, start, shapes, dtypes, options, batch statistics."""

import contextlib
import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, traverse_util

import models
from models import layers
from models.blocks import BlockNetwork


@functools.cache
def shapes_of(network, shape=(1, 32, 32, 3)):
    """The variables as shapes and dtypes, without computing them."""
    images = jnp.zeros(shape)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))


# One network of each kind of block; their deeper variants compile for long.
KINDS = (
    *("vgg16", "resnet18", "resnet50", "googlenet", "vit-tiny", "efficientnet-b0"),
    *("tiny", "plain"),
)


def filled(network, shape):
    """Variables with seeded values of a sensible size; quicker than `init`."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1] == "kernel":
            bound = math.prod(leaf.shape[:-1]) ** -0.5
            return rng.uniform(-bound, bound, leaf.shape).astype(leaf.dtype)
        if path[-1] == "positions":
            return rng.uniform(-1, 1, leaf.shape).astype(leaf.dtype)
        return np.full(leaf.shape, path[-1] in ("scale", "var"), leaf.dtype)

    flat = traverse_util.flatten_dict(shapes_of(network, shape))
    return traverse_util.unflatten_dict({k: fill(k, v) for k, v in flat.items()})


def paths(tree):
    return traverse_util.flatten_dict(tree, sep="/")


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


def test_googlenet_rounds_its_channels():
    def widths(width):
        params = shapes_of(models.create("googlenet", width=width))["params"]
        block = params["stage3"]["block0"]  # 64, 96, 128, 16, 32, 32 in the paper
        names = ("conv1", "reduce3", "conv3", "reduce5", "conv5a", "pool")
        return [block[name]["conv"]["kernel"].shape[-1] for name in names]

    assert widths(64) == [64, 96, 128, 16, 32, 32]
    assert widths(10) == [10, 15, 20, 3, 5, 5]  # 16 * 10 / 64 = 2.5
    assert widths(1) == [1, 2, 2, 1, 1, 1]  # 1.5; 0.25 would be none


def test_efficientnet_rounds_its_channels():
    def widths(width):
        params = shapes_of(models.create("efficientnet-b0", width=width))["params"]
        convs = [params["stem"]]
        convs += [params[f"stage{i}"]["block0"]["project"] for i in range(1, 8)]
        convs += [params["last"], params["stage6"]["block0"]["expand"]]
        return [conv["conv"]["kernel"].shape[-1] for conv in convs]

    assert widths(64) == [32, 16, 24, 40, 80, 112, 192, 320, 1280, 6 * 112]
    # A quarter is 8, 4, 6, 10, 20, 28, 48, 80: 10 becomes 16, since 8 is below 9.
    assert widths(16) == [8, 8, 8, 16, 24, 32, 48, 80, 320, 6 * 32]
    squeeze = shapes_of(models.create("efficientnet-b0"))["params"]["stage3"]["block0"]
    assert squeeze["squeeze"]["reduce"]["kernel"].shape == (1, 1, 6 * 24, 24 // 4)


# -- without normalisation -------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet50", "tiny"])
def test_without_normalisation_every_convolution_has_a_bias(name):
    plain = models.create(name, width=4).clone(normalization="none")
    variables = shapes_of(plain)
    assert set(variables) == {"params"}
    layers_of = {path.rpartition("/")[0] for path in paths(variables["params"])}
    for layer in layers_of:
        assert {f"{layer}/kernel", f"{layer}/bias"} <= set(paths(variables["params"]))
    assert not any("norm" in layer for layer in layers_of)


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
    squares, _ = Deep().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(squares[1:] / squares[:-1], factor, rtol=0.1)
    # Convolutions have the same bounds with their own fan-in, and groups.
    conv = layers.Layers(True, x.dtype, None, "none", kernel_init).conv

    class Conv(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv(x, "conv", 64, 5, groups=64)

    kernel = Conv().init(jax.random.key(0), jnp.ones((1, 5, 5, 64)))["params"]["conv"]
    expected = factor * 2 / 25
    np.testing.assert_allclose(kernel["kernel"].var(), expected, rtol=0.15)
    assert kernel["bias"].any() == (kernel_init == "pytorch")


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


def test_max_pool_leaves_a_side_of_one_alone():
    x = jnp.array([[[[3.0], [1.0], [2.0], [5.0]]]])  # 1 x 4 pixels
    np.testing.assert_array_equal(layers.max_pool(x, 2, 2).ravel(), [3, 5])
    np.testing.assert_array_equal(layers.max_pool(x, 3, 2).ravel(), [3, 5])


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


def test_stochastic_depth_rises_linearly():
    """16 blocks; the rates of those without a shortcut have no meaning."""
    network = models.create("efficientnet-b0", width=4)
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and "stage" in context.module.path[0]:
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of(network, (1, 8, 8, 1))
    shortcuts = [2, 4, 6, 7, 9, 10, 12, 13, 14]
    # At this width neighbouring stages have the same channels, and stage 1 and 5 too.
    expected = {0.2 * i / 16 for i in shortcuts}
    assert expected <= set(rates)
    assert rates == sorted(rates)


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


# -- blocks ----------------------------------------------------------------------------

# One network of each kind whose blocks come in every shape; and the outputs of each
# block for an image of 16x16 pixels: side * side * channels.
BLOCKS = {
    "vgg16": ({"depths": (1, 2)}, [8 * 8 * 2, 8 * 8 * 4, 4 * 4 * 4]),
    "resnet18": (
        {"depths": (1, 2), "stem": "imagenet"},
        [4 * 4 * 2, 4 * 4 * 2, 2 * 2 * 4, 2 * 2 * 4],
    ),
    "tiny": ({}, [16 * 16 * 2, 8 * 8 * 4]),
}


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


def test_families_say_what_their_networks_have():
    for name, family in models.NETWORKS.items():
        network = models.create(name)
        assert family.has_blocks == isinstance(network, BlockNetwork)
        assert family.has_mlp_head == ("mlp" in network.heads)
        assert family.has_imagenet_stem == ("imagenet" in network.stems)


def test_blocks_are_in_order():
    assert list(models.create("vgg16").blocks())[:3] == [
        *("stage1/conv1", "stage1/conv2", "stage2/conv1"),
    ]
    assert list(models.create("resnet50").blocks())[:2] == ["stem", "stage1/block0"]
