"""The propagated form: the cotangent's identity, and modules that amplify it."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import plp_optax
from plp_optax import by_score
from plp_optax.linen import amplify_cotangent, propagate_amplification

# -- amplify_cotangent -----------------------------------------------------------------


def test_forward_is_the_identity():
    tree = {"a": jnp.arange(3.0), "b": (jnp.arange(2), jnp.ones(2, jnp.bfloat16))}
    chex.assert_trees_all_equal(amplify_cotangent(tree, 3.0), tree)
    out = jax.jit(amplify_cotangent)(tree, 3.0)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, tree)
    chex.assert_trees_all_equal(out, tree)


@pytest.mark.parametrize("factor", [0.5, 2, np.float32(4), jnp.asarray(5)])
def test_the_cotangent_is_multiplied(factor):
    x = jnp.array([1.0, -2.0])
    out, vjp = jax.vjp(lambda x: amplify_cotangent(x, factor), x)
    np.testing.assert_array_equal(out, x)
    (cotangent,) = vjp(jnp.array([0.25, 8.0]))
    np.testing.assert_allclose(cotangent, [0.25 * factor, 8.0 * factor])
    traced = jax.jit(jax.grad(lambda x, f: (amplify_cotangent(x, f) ** 2).sum()))
    np.testing.assert_allclose(traced(x, factor), 2 * factor * x)


def test_factors_compound_and_get_no_gradient():
    def chain(x, factor):
        return amplify_cotangent(2 * amplify_cotangent(3 * x, 5.0), factor)

    gradients = jax.grad(chain, argnums=(0, 1))(1.0, 7.0)
    assert [float(g) for g in gradients] == [2 * 3 * 5 * 7, 0]


def test_integer_outputs_and_trees():
    def loss(x):
        out = amplify_cotangent({"x": 2 * x, "index": jnp.arange(3)}, 4.0)
        return (out["x"] * out["index"]).sum()

    gradient = jax.grad(loss)(jnp.ones(3))
    np.testing.assert_array_equal(gradient, [0.0, 8.0, 16.0])
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(jnp.ones(3)), gradient)


# -- propagate_amplification -----------------------------------------------------------


class Chain(nn.Module):
    """Three layers, one behind the other."""

    @nn.compact
    def __call__(self, x):
        for name in ("one", "three", "two"):  # their names are not in the chain's order
            x = jnp.tanh(nn.Dense(4, name=name)(x))
        return x.sum()


CHAIN = Chain()
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32)
PARAMS = CHAIN.init(jax.random.key(0), X)["params"]
RAW = jax.grad(lambda params: CHAIN.apply({"params": params}, X))(PARAMS)


def chain_gradient(params, factors, x=X):
    def loss_fn(params):
        with propagate_amplification(factors):
            return CHAIN.apply({"params": params}, x)

    return jax.grad(loss_fn)(params)


def multiplied(multipliers):
    return {
        name: jax.tree.map(lambda g, m=m: m * g, RAW[name])
        for name, m in multipliers.items()
    }


def test_factors_compound_towards_the_input():
    """A layer's gradient is multiplied by the factors of all layers from it on."""
    gradient = chain_gradient(PARAMS, {"one": 2.0, "three": 4.0, "two": 16.0})
    expected = multiplied({"one": 2 * 4 * 16, "three": 4 * 16, "two": 16})
    chex.assert_trees_all_equal(gradient, expected)  # powers of 2 do not round
    # Layers without a factor pass on what comes from behind.
    gradient = chain_gradient(PARAMS, {"three": 4.0})
    expected = multiplied({"one": 4, "three": 4, "two": 1})
    chex.assert_trees_all_equal(gradient, expected)


def test_changing_factors_does_not_compile_again():
    windows = [plp_optax.AmplificationWindow(1, 5, 2, factor=2.0)]
    tx = optax.chain(
        plp_optax.amplify_layers(windows, select=by_score(0.3), apply=False),
        optax.sgd(0.1),
    )
    names = plp_optax.layer_names(PARAMS)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state):
        factors = optax.tree.get(state, "factors")
        gradient = chain_gradient(params, dict(zip(names, factors, strict=True)))
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, factors

    chex.clear_trace_counter()
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for _ in range(7):
        params, state, factors = step(params, state)
        seen.append(float(jnp.max(factors)))
    assert seen == [1, 1, 1, 2, 2, 1, 1]
    assert step._cache_size() == 1


def test_a_network_with_batch_normalisation_and_rematerialisation():
    """The names of ``layer_names`` are those of the modules; the loss is unchanged."""
    network = models.create("tiny", num_classes=3, width=2)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 3)), "float32")
    variables = network.init(jax.random.key(0), images, train=False)
    names = plp_optax.layer_names(variables["params"])

    def loss_fn(params, factors):
        with propagate_amplification(factors):
            logits, new = network.apply(
                variables | {"params": params},
                images,
                train=True,
                mutable="batch_stats",
            )
        return (logits**2).mean(), new

    @jax.jit
    def run(params, factors):
        return jax.value_and_grad(loss_fn, has_aux=True)(params, factors)

    ones = dict.fromkeys(names, 1.0)
    plain = run(variables["params"], ones)
    amplified = run(variables["params"], ones | {"head": 2.0, "stage1/conv": 4.0})
    chex.assert_trees_all_close(amplified[0], plain[0])
    expected = {
        "head": jax.tree.map(lambda g: 2 * g, plain[1]["head"]),
        "stage1": {
            "conv": jax.tree.map(lambda g: 8 * g, plain[1]["stage1"]["conv"]),
            "norm": jax.tree.map(lambda g: 2 * g, plain[1]["stage1"]["norm"]),
        },
        "stage2": jax.tree.map(lambda g: 2 * g, plain[1]["stage2"]),
    }
    chex.assert_trees_all_close(amplified[1], expected, rtol=2e-4, atol=1e-6)

    remat = nn.remat(Chain)()
    with propagate_amplification({"one": 3.0, "two": 2.0}):
        gradient = jax.grad(lambda p: remat.apply({"params": p}, X))(PARAMS)
    expected = multiplied({"one": 6, "three": 2, "two": 2})
    chex.assert_trees_all_close(gradient, expected, rtol=1e-6)


def test_a_module_that_is_called_twice_amplifies_each_call():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(1, use_bias=False, name="layer")
            return layer(layer(x)).sum()

    params = {"layer": {"kernel": jnp.full((1, 1), 3.0)}}

    def loss_fn(params):
        with propagate_amplification({"layer": 2.0}):
            return Twice().apply({"params": params}, jnp.ones((1, 1)))

    # y = w (w x): the outer call's share, w x = 3, is doubled, the inner's twice so.
    gradient = jax.grad(loss_fn)(params)["layer"]["kernel"]
    np.testing.assert_allclose(gradient, 2 * 3 + 4 * 3)


def test_a_call_counts_once_whatever_methods_it_goes_through():
    class Indirect(nn.Module):
        def setup(self):
            self.dense = nn.Dense(1, use_bias=False)

        def project(self, x):
            return self.dense(x)

        def __call__(self, x):
            return self.project(x)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Indirect(name="inner")(x).sum()

    params = {"inner": {"dense": {"kernel": jnp.ones((4, 1))}}}

    def loss_fn(params):
        with propagate_amplification({"inner": 2.0}):
            return Outer().apply({"params": params}, X)

    kernel = jax.grad(loss_fn)(params)["inner"]["dense"]["kernel"]
    np.testing.assert_allclose(kernel[:, 0], 2 * X.sum(0), rtol=1e-6)


# -- recurrent cells, attention and tied embeddings, against the same network by hand --


def times(x, factor):
    """The identity, whose gradient is multiplied; without a rule of its own."""
    return x + (factor - 1) * (x - jax.lax.stop_gradient(x))


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def lstm(p, x, f):
    """The last hidden state's squares of an LSTM; ``f`` amplifies hi."""
    sigmoid = jax.nn.sigmoid
    x = dense(p["before"], x)
    c = h = jnp.zeros((2, 4))
    cell, total = p["cell"], 0.0
    for t in range(x.shape[1]):
        pre = {
            gate: dense(cell[f"i{gate}"], x[:, t])
            + times(dense(cell[f"h{gate}"], h), f if gate == "i" else 1.0)
            for gate in "ifgo"
        }
        c = sigmoid(pre["f"]) * c + sigmoid(pre["i"]) * jnp.tanh(pre["g"])
        h = sigmoid(pre["o"]) * jnp.tanh(c)
        total += (h**2).sum()
    return total


class Recurrent(nn.Module):
    cell: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, name="before")(x)
        cell = self.cell(4, name="cell", parent=self, param_dtype=x.dtype)
        return (nn.RNN(cell)(x) ** 2).sum()


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="before")(x)
        attention = nn.MultiHeadDotProductAttention(2, name="attention")
        return (attention(x) ** 2).sum()


def attention(p, x, f):
    """``f`` amplifies the keys."""
    x, own = dense(p["before"], x), p["attention"]

    def project(name):
        kernel, bias = own[name]["kernel"], own[name]["bias"]
        return jnp.einsum("btc,chd->bthd", x, kernel) + bias

    q, k, v = project("query"), times(project("key"), f), project("value")
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2**0.5)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    out = jnp.einsum("bqhd,hdc->bqc", mixed, own["out"]["kernel"])
    return ((out + own["out"]["bias"]) ** 2).sum()


class Tied(nn.Module):
    """A language model whose last layer is its embedding, transposed."""

    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(7, 3, name="embed")
        x = nn.Dense(3, name="before")(embed(ids))
        return (jnp.tanh(embed.attend(x)) ** 2).sum()


def tied(p, ids, f):
    """Each use of the embedding is amplified."""
    table = p["embed"]["embedding"]
    x = dense(p["before"], times(table[ids], f))
    return (jnp.tanh(times(x @ table.T, f)) ** 2).sum()


SEQUENCE = jnp.asarray(np.random.default_rng(5).normal(size=(2, 5, 3)), jnp.float32)
BY_HAND = {
    "lstm": (Recurrent(nn.LSTMCell), lstm, "cell/hi", SEQUENCE),
    "attention": (Attention(), attention, "attention/key", SEQUENCE),
    "tied": (Tied(), tied, "embed", jnp.array([[1, 2, 2], [6, 0, 3]])),
}


@pytest.mark.parametrize("name", BY_HAND)
@jax.numpy_rank_promotion("allow")
@jax.enable_x64(True)
def test_networks_by_hand(name):
    network, by_hand, layer, x = BY_HAND[name]
    params = network.init(jax.random.key(1), x)["params"]
    assert layer in plp_optax.layer_names(params)
    # In float64, as the gradient of the keys' bias is 0 but for rounding.
    params, x = jax.tree.map(
        lambda a: a.astype(float) if a.dtype == jnp.float32 else a, (params, x)
    )

    def loss_fn(params, factor):
        with propagate_amplification({layer: factor}):
            return network.apply({"params": params}, x)

    expect, gradient = jax.jit(jax.grad(by_hand)), jax.jit(jax.grad(loss_fn))
    raw = expect(params, x, 1.0)
    for factor in (1.0, 3.0, 0.0):
        expected, actual = expect(params, x, factor), gradient(params, factor)
        chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-12)
    assert optax.tree.norm(optax.tree.sub(raw, expected)) > 0.1


def test_modules_that_return_their_parameters_are_named():
    """The cotangent at their output is that of the kernel, and goes no further."""
    network = Recurrent(nn.OptimizedLSTMCell)
    params = network.init(jax.random.key(1), SEQUENCE)["params"]

    def gradient(factors):
        def loss_fn(params):
            with propagate_amplification(factors):
                return network.apply({"params": params}, SEQUENCE)

        return jax.grad(loss_fn)(params)

    with pytest.raises(ValueError, match=r"cell/hi is a DenseParams, .* nn\.LSTMCell"):
        gradient({"cell/hi": 2.0})
    raw, amplified = gradient({}), gradient({"cell": 2.0})  # the entire cell has one
    chex.assert_trees_all_equal_shapes(raw, amplified)
    assert optax.tree.norm(amplified["before"]) > 2 * optax.tree.norm(raw["before"])


def test_a_module_alone_goes_by_the_name_that_layer_names_gives():
    dense = nn.Dense(3)
    params = dense.init(jax.random.key(0), X)["params"]
    (name,) = plp_optax.layer_names(params)

    def loss_fn(params, factor):
        with propagate_amplification({name: factor}):
            return dense.apply({"params": params}, X).sum()

    once, thrice = (jax.grad(loss_fn)(params, factor) for factor in (1.0, 3.0))
    chex.assert_trees_all_close(thrice, jax.tree.map(lambda g: 3 * g, once))


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="under the names four, one/kernel: "):
        chain_gradient(PARAMS, {"four": 2.0, "one": 2.0, "one/kernel": 2.0})
    # An error of the model's own is not replaced by it.
    with (
        pytest.raises(ZeroDivisionError),
        propagate_amplification({"four": 2.0}),
    ):
        _ = 1 / 0


def test_a_cached_trace_is_an_error_not_a_silent_nothing():
    """The context has to be open while the loss is traced, so inside of jit."""
    apply = jax.jit(lambda params: CHAIN.apply({"params": params}, X))
    apply(PARAMS)
    with (
        pytest.raises(ValueError, match="no module was called under the names one"),
        propagate_amplification({"one": 2.0}),
    ):
        apply(PARAMS)


def of_class(dense):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i in range(3):
                x = dense(4, name=f"d{i}")(x)
            return x.sum()

    return Network()


class JittedMethod(nn.Module):
    features: int

    @nn.jit
    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features, name="dense")(x)


@pytest.mark.parametrize(
    ("dense", "traced_before"), [(nn.jit(nn.Dense), True), (JittedMethod, False)]
)
def test_nn_jit_is_refused(dense, traced_before):
    """Its cache ignores names: d1 and d2 would be amplified like d0."""
    network = of_class(dense)
    params = of_class(dense).init(jax.random.key(0), X)

    def loss_fn(params):
        with propagate_amplification({"d0": 2.0}):
            return network.apply(params, X)

    if traced_before:
        network.apply(params, X)
    with pytest.raises(ValueError, match=r"under nn\.jit"):
        jax.grad(loss_fn)(params)


def test_forward_mode_raises():
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jacfwd(lambda x: amplify_cotangent(x, 2.0))(jnp.ones(2))
