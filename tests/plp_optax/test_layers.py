"""Which layer a parameter belongs to, in linen, nnx, equinox and other trees."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import models
import plp_optax
from plp_optax import all_layers, by_score
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


def test_linen_tiny():
    params = linen_params("tiny")
    convolutions = ("stage1/conv", "stage2/conv")
    assert plp_optax.layer_names(params) == ("head", *convolutions)
    assert plp_optax.layer_names(params, "modules") == (
        "head",
        *("stage1/conv", "stage1/norm", "stage2/conv", "stage2/norm"),
    )


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
        x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
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


class EquinoxNetwork(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0])
        self.norm = eqx.nn.LayerNorm(4)
        self.mlp = eqx.nn.MLP(4, "scalar", 4, 1, key=keys[1])

    def __call__(self, x):
        x = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))
        return self.mlp(self.norm(x.mean((1, 2))))


def test_equinox():
    mlp = eqx.nn.MLP(2, 3, 4, depth=2, key=jax.random.key(0))
    names = ("layers/0", "layers/1", "layers/2")
    assert plp_optax.layer_names(eqx.filter(mlp, eqx.is_array)) == names

    params = eqx.filter(EquinoxNetwork(jax.random.key(0)), eqx.is_array)
    names = ("conv", "mlp/layers/0", "mlp/layers/1")  # a norm's weight is a vector
    assert plp_optax.layer_names(params) == names
    modules = ("conv", "norm", "mlp/layers/0", "mlp/layers/1")  # as the fields are
    assert plp_optax.layer_names(params, "modules") == modules


def chained():
    strategy = plp_optax.TrainingStrategy(
        [(1, 0.05, 0, 1), (7, 0.05, 1, 2.0), (8, 0.01, 0, 1)], steps_per_epoch=5
    )
    return optax.chain(
        plp_optax.amplify_layers(strategy, select=by_score(0.5), reselect_every=2),
        optax.add_decayed_weights(1e-4),
        optax.sgd(strategy.learning_rate, momentum=0.5),
        plp_optax.plp(),
    )


def images():
    """Bright or dark images, and which."""
    rng = np.random.default_rng(0)
    label = rng.choice([-1.0, 1.0], size=32)
    x = rng.normal(size=(32, 6, 6, 1)) + 0.5 * label[:, None, None, None]
    return jnp.asarray(x, jnp.float32), jnp.asarray(label, jnp.float32)


def assert_trained(losses, state):
    amplified = optax.tree.get(state, "amplified")
    assert losses[-1] < 0.5 * losses[0]
    assert np.all(np.isfinite(losses))
    assert np.any(amplified)
    assert not np.all(amplified)


def test_training_an_nnx_model():
    x, y = images()
    graph, params = nnx.split(NnxNetwork(nnx.Rngs(0)))
    tx = chained()

    @jax.jit
    def step(params, state):
        def loss_fn(params):
            return ((nnx.merge(graph, params)(x) - y) ** 2).mean()

        loss, gradient = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(40):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert_trained(losses, state)
    assert step._cache_size() == 1
    table = plp_optax.amplification_table(state[0], params).splitlines()
    assert [line.split()[0] for line in table[1:]] == list(NNX_NAMES)


def test_training_with_the_nnx_optimizer():
    x, y = images()
    model = NnxNetwork(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, chained(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda m: ((m(x) - y) ** 2).mean())(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    amplified = optimizer.opt_state[0].amplified[...]
    assert amplified.shape == (len(NNX_NAMES),)
    assert np.any(amplified)


def test_training_an_equinox_model():
    x, y = images()
    model = EquinoxNetwork(jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    tx = chained()

    @eqx.filter_jit
    def step(model, state):
        def loss_fn(model):
            return ((jax.vmap(model)(x) - y) ** 2).mean()

        loss, gradient = eqx.filter_value_and_grad(loss_fn)(model)
        updates, state = tx.update(
            gradient, state, eqx.filter(model, eqx.is_inexact_array)
        )
        return eqx.apply_updates(model, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(40):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert_trained(losses, state)


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


def test_kernels_and_modules():
    assert plp_optax.layer_names(TREE) == ("block/0", "stem")
    assert plp_optax.layer_names(TREE, "modules") == (
        *("block/0", "block/1", "block/2"),
        *("stem", "."),  # the temperature is the root's own
    )


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


@pytest.mark.parametrize("pairs", [[("stem/.*", "a")], [], [("block", None)]], ids=str)
def test_an_uncovered_parameter_is_an_error(pairs):
    with pytest.raises(ValueError, match=r"no pattern .* parameter 'block/0/bias'"):
        plp_optax.layer_names(TREE, pairs)
    windows = [plp_optax.AmplificationWindow(0, 4, 2, 2.0)]
    with pytest.raises(ValueError, match=r"no pattern .* parameter 'block/0/bias'"):
        plp_optax.amplify_layers(windows, layers=pairs).init(TREE)


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
        (3, "got 3"),
        ([("a",)], r"got \[\('a',\)\]"),
        ([("a", 3)], r"got \[\('a', 3\)\]"),
        ([(3, "a")], r"got \[\(3, 'a'\)\]"),
        ([("[", "a")], r"got \[\('\[', 'a'\)\]"),
        ([("(.*)", r"\2")], r"'\\\\2' is no name for a match of '\(\.\*\)'"),
        ([(".*", None)], "finds no layer among 8 parameters such as 'block/0/bias'"),
        (lambda path: None, "finds no layer among 8"),
        (lambda path: 3, "got 3 for the parameter 'block/0/bias'"),
    ],
)
def test_bad_rules_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        plp_optax.layer_names(TREE, layers)


def test_a_tree_without_kernels_is_an_error_that_shows_a_path():
    with pytest.raises(ValueError, match=r"'kernels' finds no layer .* 'a/scale'"):
        plp_optax.layer_names({"a": {"scale": VECTOR}})


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


def test_masked_trees():
    """Under ``optax.masked`` and ``optax.partition`` only what is theirs counts."""
    windows = [plp_optax.AmplificationWindow(0, 4, 2, 2.0)]
    tx = plp_optax.amplify_layers(windows, select=all_layers())
    tree = {name: {"kernel": KERNEL} for name in "abc"}
    mask = {"a": {"kernel": True}, "b": {"kernel": False}, "c": {"kernel": True}}
    masked = optax.masked(tx, mask)
    state = masked.init(tree)
    assert state.inner_state.scores.shape == (2,)
    for _ in range(3):
        updates, state = masked.update(tree, state, tree)
    factors = {name: float(updates[name]["kernel"][0, 0]) for name in "abc"}
    assert factors == {"a": 2.0, "b": 1.0, "c": 2.0}
    np.testing.assert_array_equal(state.inner_state.scores, 1.0)
