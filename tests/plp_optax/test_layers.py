"""Which layer a parameter belongs to, in linen, nnx, equinox and other trees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

import models
import plp_optax
from plp_optax import all_layers, stacked
from plp_optax._layers import assign_layers

KERNEL = jnp.ones((2, 2))
VECTOR = jnp.ones(2)


def linen_params(name):
    network = models.create(name)
    shape = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def init(images):
        return network.init(jax.random.key(0), images, train=False)

    return jax.eval_shape(init, shape)["params"]


# -- linen -----------------------------------------------------------------------------


# VGG-16: 13 convolutions and 3 linear layers, and 13 normalisations.
# ResNet-18: a stem, 4 stages of 2 blocks of 2 convolutions, 3 projections, a head:
# 1 + 16 + 3 + 1 = 21, all but the head with a normalisation.
@pytest.mark.parametrize(
    ("network", "kernels", "norms"), [("vgg16", 16, 13), ("resnet18", 21, 20)]
)
def test_linen_networks(network, kernels, norms):
    params = linen_params(network)
    names = plp_optax.layer_names(params)
    modules = plp_optax.layer_names(params, "modules")
    assert len(names) == len(set(names)) == kernels
    assert len(modules) == len(set(modules)) == kernels + norms
    assert set(names) < set(modules)
    flat = jax.tree_util.tree_leaves_with_path(params)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat}
    assert {f"{name}/kernel" for name in names} == {
        path for path in paths if path.endswith("/kernel")
    }


def test_a_module_of_its_own_and_boxed_parameters():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
            return nn.Dense(3, kernel_init=init, name="dense")(x)

    x = jnp.ones((1, 2))
    alone = nn.Dense(3).init(jax.random.key(0), x)["params"]
    assert plp_optax.layer_names(alone) == (".",)
    boxed = Boxed().init(jax.random.key(0), x)["params"]
    assert plp_optax.layer_names(boxed) == ("dense",)


# -- nnx and equinox -------------------------------------------------------------------


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(4, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.conv(x)).mean((1, 2))
        for block in self.blocks:
            x = nnx.relu(block(x))
        return self.head(x)[:, 0]


NNX_NAMES = ("blocks/0", "blocks/1", "conv", "head")


@pytest.mark.parametrize(
    "tree",
    [
        lambda model: nnx.state(model, nnx.Param),
        lambda model: nnx.split(model, nnx.Param, ...)[1],
        lambda model: nnx.to_pure_dict(nnx.state(model, nnx.Param)),
    ],
    ids=["state", "split", "dict"],
)
def test_nnx(tree):
    params = tree(NnxNetwork(nnx.Rngs(0)))
    assert plp_optax.layer_names(params) == NNX_NAMES
    modules = (*NNX_NAMES[:3], "head", "norm")
    assert plp_optax.layer_names(params, "modules") == modules
    pairs = [("norm/(scale|bias)", None), (r"(\w+)/.*", r"\1")]
    assert plp_optax.layer_names(params, pairs) == ("blocks", "conv", "head")


def test_equinox():
    def make(key):
        mlp = eqx.nn.MLP(4, "scalar", 4, 1, key=key)
        embedding = eqx.nn.Embedding(5, 2, key=key)
        return {"embed": embedding, "mlp": mlp, "norm": eqx.nn.LayerNorm(4)}

    params = eqx.filter(eqx.filter_eval_shape(make, jax.random.key(0)), is_shape)
    names = ("embed", "mlp/layers/0", "mlp/layers/1")  # a norm's weight is a vector
    assert plp_optax.layer_names(params) == names
    assert plp_optax.layer_names(params, "modules") == (*names, "norm")


def is_shape(x):
    return isinstance(x, jax.ShapeDtypeStruct)


def test_the_nnx_optimizer():
    """Its state holds ours in variables of its own."""
    model = NnxNetwork(nnx.Rngs(0))
    windows = [plp_optax.AmplificationWindow(0, 4, 2, 2.0)]
    tx = optax.chain(
        plp_optax.amplify_layers(windows, select=all_layers()), optax.sgd(0.1)
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jnp.ones((2, 6, 6, 1))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: (m(x) ** 2).mean())(model))

    for _ in range(2):
        step(model, optimizer)
    assert optimizer.opt_state[0].amplified[...].tolist() == [True] * len(NNX_NAMES)


# -- rules -----------------------------------------------------------------------------

TREE = {
    "stem": {"kernel": KERNEL, "bias": VECTOR},
    "block": [
        {"weight": KERNEL, "bias": VECTOR},
        {"weight": VECTOR, "bias": VECTOR},
        {"scale": VECTOR},
    ],
    "temperature": jnp.ones(()),
}


def assigned(tree, layers):
    names, places = assign_layers(tree, layers)
    return [None if place is None else names[place.start] for place in places]


def test_a_kernel_and_its_bias_are_one_layer():
    # Leaves: of block/0 bias, weight; of 1 likewise; of 2 scale; stem's two; the last.
    expected = ["block/0", "block/0", None, None, None, "stem", "stem", None]
    assert assigned(TREE, "kernels") == expected
    modules = ["block/0"] * 2 + ["block/1"] * 2 + ["block/2"] + ["stem"] * 2 + ["."]
    assert assigned(TREE, "modules") == modules


def test_the_first_pattern_that_matches_wins():
    pairs = [
        (r"block/(\d)/weight", r"w\1"),
        (r"block/(?P<n>[01])/.*", r"b\g<n>"),
        (r"block/.*", None),
        (r".*", "rest"),
    ]
    expected = ["b0", "w0", "b1", "w1", None, "rest", "rest", "rest"]
    assert assigned(TREE, pairs) == expected
    assert plp_optax.layer_names(TREE, pairs) == ("b0", "w0", "b1", "w1", "rest")
    # The other way round the catch-all takes everything.
    assert plp_optax.layer_names(TREE, pairs[::-1]) == ("rest",)


def test_a_pattern_must_match_the_whole_path():
    pairs = [("stem", "a"), ("stem/.*", "b"), (".*", None)]
    assert plp_optax.layer_names(TREE, pairs) == ("b",)


def test_a_function():
    def by_kind(path):
        return {"kernel": "k", "weight": "k", "bias": ""}.get(path.split("/")[-1])

    expected = [None, "k", None, "k", None, None, "k", None]
    assert assigned(TREE, by_kind) == expected
    assert plp_optax.layer_names(TREE, lambda path: "one") == ("one",)
    assert plp_optax.layer_names([KERNEL], lambda path: f"<{path}>") == ("<0>",)
    assert plp_optax.layer_names(KERNEL, lambda path: f"<{path}>") == ("<>",)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("kernel", "'kernels', 'modules', .* got 'kernel'"),
        ("", "got ''"),
        (None, "got None"),
        ([("a",)], r"got \[\('a',\)\]"),
        ([("[", "a")], r"got \[\('\[', 'a'\)\]"),
        ([("(.*)", r"\2")], r"'\\\\2' is no name for a match of '\(\.\*\)'"),
        ([("stem/.*", "a")], r"no pattern .* parameter 'block/0/bias'"),
        ([], r"no pattern .* parameter 'block/0/bias'"),
        ([(".*", None)], "finds no layer among 8 parameters such as 'block/0/bias'"),
        (lambda path: None, "finds no layer among 8"),
        (lambda path: 3, "got 3 for the parameter 'block/0/bias'"),
    ],
)
def test_bad_rules_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        plp_optax.layer_names(TREE, layers)


@pytest.mark.parametrize(
    "tree", [{"linear": {"w": KERNEL, "b": VECTOR}}, {"a": {"scale": VECTOR}}, KERNEL]
)
def test_trees_without_known_names_are_pointed_to_modules(tree):
    """Haiku's names, a normalisation, and a bare array."""
    with pytest.raises(ValueError, match=r"finds no layer .* layers='modules'"):
        plp_optax.layer_names(tree)
    assert len(plp_optax.layer_names(tree, "modules")) == 1


def test_a_tree_without_leaves_has_no_layers():
    for tree in ({}, None, {"a": {"kernel": None}}, {"a": optax.MaskedNode()}):
        assert plp_optax.layer_names(tree) == ()


def test_names_come_in_the_order_of_the_tree():
    tree = {"b": {"kernel": KERNEL}, "a": {"kernel": KERNEL}, "c10": {"kernel": KERNEL}}
    assert plp_optax.layer_names(tree) == ("a", "b", "c10")  # as dicts flatten
    assert plp_optax.layer_names([tree["b"], tree["a"]]) == ("0", "1")


def test_a_parameter_named_value_keeps_its_name():
    tree = {
        "attention": {"value": KERNEL, "query": KERNEL},
        "value": {"kernel": KERNEL},
    }
    paths = []
    plp_optax.layer_names(tree, lambda path: paths.append(path) or "one")
    assert paths == ["attention/query", "attention/value", "value/kernel"]
    assert plp_optax.layer_names(tree) == ("value",)


def test_stacked_nnx_modules_and_other_axes():
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key):
        return nnx.Linear(2, 3, rngs=nnx.Rngs(key))

    params = nnx.state(make(jax.random.split(jax.random.key(0), 3)), nnx.Param)
    assert plp_optax.layer_names(params, stacked(".*")) == (".[0]", ".[1]", ".[2]")
    tree = {"m": {"weight": jnp.ones((2, 5)), "bias": jnp.ones((7, 5))}}
    # A vector a slice, so that no slice has a kernel.
    with pytest.raises(ValueError, match="finds no layer"):
        plp_optax.layer_names(tree, stacked("m/.*", axis=1))
    rule = stacked("m/.*", axis=1, layers="modules")
    assert len(plp_optax.layer_names(tree, rule)) == 5


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: stacked("("), r"regular expression, got '\('"),
        (lambda: stacked(3), "regular expression, got 3"),
        (lambda: stacked("a", axis=-1), "axis .* got -1"),
        (lambda: stacked("a", layers="kernel"), "got 'kernel'"),
        (lambda: stacked("x"), r"stacked\('x'\) matches no parameter"),
        (lambda: stacked(".*", axis=2), r"shape \(4, 2\) has no such axis"),
        (lambda: stacked("a/bias"), "others hold"),
        (lambda: stacked(".*", layers=stacked("a/.*")), "stacked twice"),
    ],
)
def test_bad_stacks_are_named(rule, message):
    tree = {"a": {"kernel": jnp.ones((4, 2, 2)), "bias": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=message):
        plp_optax.layer_names(tree, rule())
