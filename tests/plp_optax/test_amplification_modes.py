"""Amplification of unusual trees, under sharding, and around optimizers."""

import dataclasses
import functools

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import plp_optax
from plp_optax import AmplificationWindow, all_layers, stacked
from tests.support import reference
from tests.support.amplification import (
    HALF,
    MEASURES,
    analyze,
    every_measure,
    feed,
    jit,
    kernels,
)

WINDOWS = [AmplificationWindow(0, 6, 3, factor=2.0)]

# -- types -----------------------------------------------------------------------------


def complex_score(measure, g):
    """The measures' definitions with magnitudes; g[i, j] of iteration i, weight j."""
    if measure == "g1":
        return abs(g.sum()) / abs(g).sum()
    if measure == "g1_per_weight":
        return abs(g.sum(0)).sum() / abs(g).sum()
    return (abs(g.sum(0)) / abs(g).sum(0)).mean()


@every_measure
def test_complex_gradients_keep_their_imaginary_part(measure):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 3, 5)) + 1j * rng.normal(size=(4, 3, 5))
    rows = noise + np.array([0.0, 2.0j, 9.0j]).reshape(3, 1)
    gradients = [kernels(row.astype(np.complex64)) for row in rows]
    state, _ = analyze(gradients, measure=measure)
    expected = [complex_score(measure, rows[:, layer]) for layer in range(3)]
    np.testing.assert_allclose(state.scores, expected, rtol=1e-5)
    steady, _ = analyze([kernels(np.full((2, 3), 1j, np.complex64))] * 3)
    np.testing.assert_allclose(steady.scores, 1, rtol=1e-6)


def test_complex_gradients_are_multiplied():
    gradients = [kernels(np.full((2, 3), 1 + 2j, np.complex64))] * 4
    tx = plp_optax.amplify_layers(WINDOWS, select=all_layers())
    outputs, _ = feed(tx, gradients)
    np.testing.assert_array_equal(outputs[3]["a"]["kernel"], np.full(3, 2 + 4j))


@every_measure
def test_an_epoch_of_a_thousand_bfloat16_gradients_keeps_its_score(measure):
    """Sums in bfloat16 would stop growing after 256 equal gradients."""
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(1000, 2, 8)) + [[[0.05]], [[0.5]]][0]).astype(jnp.bfloat16)
    windows = [AmplificationWindow(0, 2000, 1000, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure=measure, select=HALF)

    def step(state, row):
        return tx.update({"a": {"kernel": row[0]}, "b": {"kernel": row[1]}}, state)[
            1
        ], 0

    state = tx.init(kernels(rows[0]))
    state, _ = jit(functools.partial(jax.lax.scan, step))(state, jnp.asarray(rows))
    exact = rows.astype(np.float64)
    expected = [reference.MEASURE[measure](exact[:, layer]) for layer in range(2)]
    np.testing.assert_allclose(state.scores, expected, rtol=1e-4)


def test_a_state_of_numpy_arrays_becomes_one_of_jax_arrays():
    """As after ``jax.device_get`` or a restore, with updates that are not compiled."""
    gradient = kernels(np.ones((3, 2), np.float32))
    for tx in (
        plp_optax.amplify_layers(WINDOWS, select=HALF),
        plp_optax.plp(),
        plp_optax.plp(store="snapshots"),
    ):
        state = tx.init(gradient)
        _, new = tx.update(gradient, jax.device_get(state), gradient)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(new))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_many_windows_are_no_larger_a_program_than_one():
    params = kernels(np.zeros((3, 2), np.float32))

    def size(windows):
        tx = plp_optax.amplify_layers(windows, select=all_layers())
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params))
        return len(jaxpr.eqns)

    many = [AmplificationWindow(100 * i, 100 * i + 20, 10, 2.0) for i in range(16)]
    assert size(many) == size(many[:1])


# -- several devices -------------------------------------------------------------------


def split_problem():
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(5, 3, 8, 2)) + np.array([0.0, 0.4, 2.0]).reshape(3, 1, 1)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    return [kernels(row) for row in rows], mesh


@every_measure
def test_parameters_that_jit_shards_are_measured_as_if_they_were_not(measure):
    with jax.enable_x64(True):
        gradients, mesh = split_problem()
        tx = plp_optax.amplify_layers(WINDOWS, measure=measure, select=HALF)
        placed = jax.device_put(gradients, NamedSharding(mesh, P("model")))
        outputs, states = feed(tx, placed)
        expected = feed(tx, gradients)
        assert np.any(states[3].amplified)
        assert not np.all(states[3].amplified)
        chex.assert_trees_all_close((outputs, states), expected, rtol=1e-9)


@pytest.mark.parametrize("check_vma", [False, True])
@every_measure
def test_parameters_that_shard_map_splits_are_measured_over_the_axis(
    measure, check_vma
):
    with jax.enable_x64(True):
        gradients, mesh = split_problem()
        make = functools.partial(
            plp_optax.amplify_layers, WINDOWS, measure=measure, select=HALF
        )
        expected_outputs, expected = feed(make(), gradients)
        tx = make(axis_name="model")

        def specs(state):
            return jax.tree.map(lambda x: P("model") if x.ndim == 2 else P(), state)

        def run(gradients):
            state = tx.init(gradients[0])
            for gradient in gradients:
                updates, state = tx.update(gradient, state)
            return updates, state

        out = specs((expected_outputs[-1], expected[-1]))
        split = jax.shard_map(
            run, mesh=mesh, in_specs=P("model"), out_specs=out, check_vma=check_vma
        )
        updates, state = jit(split)(gradients)
        assert not np.all(expected[-1].amplified)
        chex.assert_trees_all_close(state, expected[-1], rtol=1e-9)
        chex.assert_trees_all_close(updates, expected_outputs[-1], rtol=1e-9)


# -- around optimizers -----------------------------------------------------------------


def path_length(tx, gradients):
    """The sum of the norms of the amplified steps."""
    state, update, length = tx.init(gradients[0]), jit(tx.update), 0.0
    for count, gradient in enumerate(gradients):
        updates, state = update(gradient, state, gradients[0])
        length += float(optax.tree.norm(updates)) if count >= 3 else 0.0
    return length


OPTIMIZERS = {
    "sgd": (optax.sgd(0.1), 5.0),
    "adam": (optax.adam(0.1), 1.0),
    "lion": (optax.lion(0.1), 1.0),
    "clipped": (optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(1.0)), 1.0),
}


@pytest.mark.parametrize(
    ("optimizer", "before"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)
def test_inner_amplifies_what_scale_invariant_optimizers_return(optimizer, before):
    """Placed before such an optimizer, a factor of 5 nearly vanishes."""
    rows = np.random.default_rng(8).normal(size=(12, 2, 5)).astype(np.float32)
    gradients = [kernels(row) for row in rows]
    windows = [AmplificationWindow(0, 12, 3, factor=5.0)]
    make = functools.partial(plp_optax.amplify_layers, windows, select=all_layers())
    plain = path_length(optimizer, gradients)
    first = path_length(optax.chain(make(), optimizer), gradients) / plain
    inner = path_length(make(inner=optimizer), gradients) / plain
    np.testing.assert_allclose(inner, 5, rtol=1e-5)
    assert before - 0.1 < first < before + 0.9


def test_inner_measures_raw_gradients_and_changes_no_optimizer_state():
    rows = np.random.default_rng(9).normal(size=(8, 3, 4)).astype(np.float32) + 0.5
    gradients = [kernels(row) for row in rows]
    adam = optax.scale_by_adam()
    _, measured = feed(plp_optax.amplify_layers(WINDOWS, select=HALF), gradients)
    outputs, states = feed(
        plp_optax.amplify_layers(WINDOWS, select=HALF, inner=adam), gradients
    )
    plain, adam_states = feed(adam, gradients)
    for step, state in enumerate(states[:-1]):
        np.testing.assert_array_equal(state.scores, measured[step].scores)
        chex.assert_trees_all_close(state.inner_state, adam_states[step], rtol=1e-6)
        for i, name in enumerate("abc"):
            expected = state.factors[i] * plain[step][name]["kernel"]
            actual = outputs[step][name]["kernel"]
            np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert any(np.any(s.factors != 1) for s in states)


# -- trees -----------------------------------------------------------------------------


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(3, name="dense")(x)), None


class Scanned(nn.Module):
    """Four blocks whose parameters are stacked, and a head."""

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
        )
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(1, name="head")(x)


def unstack(params):
    """The same parameters, a module for each block."""
    dense = params["blocks"]["dense"]
    blocks = {f"block{i}": jax.tree.map(lambda x, i=i: x[i], dense) for i in range(4)}
    return blocks | {"head": params["head"]}


@every_measure
def test_every_slice_of_a_scanned_block_is_a_layer(measure):
    shape = jnp.ones((2, 3))
    params = jax.eval_shape(Scanned().init, jax.random.key(0), shape)["params"]
    rng = np.random.default_rng(1)
    offsets = np.array([0.0, 3.0, 0.2, 0.5], np.float32)  # of the blocks

    def random(x):
        offset = offsets.reshape(4, *[1] * (x.ndim - 1)) if x.shape[0] == 4 else 0.1
        return jnp.asarray(rng.normal(size=x.shape) + offset, jnp.float32)

    gradients = [jax.tree.map(random, params) for _ in range(6)]
    make = functools.partial(
        plp_optax.amplify_layers, WINDOWS, measure=measure, select=HALF
    )
    outputs, states = feed(make(layers=stacked("blocks/.*")), gradients)
    expected, other = feed(make(), [unstack(g) for g in gradients])
    names = plp_optax.layer_names(params, stacked("blocks/.*"))
    assert names == (*(f"blocks/dense[{i}]" for i in range(4)), "head")
    np.testing.assert_allclose(states[-1].z_scores, other[-1].z_scores, rtol=1e-4)
    assert states[-1].amplified.tolist() == [False, True, False, False, False]
    np.testing.assert_array_equal(states[-1].amplified, other[-1].amplified)
    chex.assert_trees_all_close(unstack(outputs[-1]), expected[-1], rtol=1e-6)
    # Without the rule the blocks are one layer.
    assert plp_optax.layer_names(params) == ("blocks/dense", "head")


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


def test_embeddings_are_layers_in_flax_and_in_equinox():
    linen = {
        "embed": nn.Embed(5, 2).init(jax.random.key(0), jnp.zeros(1, int))["params"],
        "head": {"kernel": jnp.ones((2, 1))},
    }
    equinox = {"embed": eqx.nn.Embedding(5, 2, key=jax.random.key(0)), "head": {}}
    equinox["head"] = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    names = [
        plp_optax.layer_names(tree)
        for tree in (linen, eqx.filter(equinox, eqx.is_array))
    ]
    assert names == [("embed", "head")] * 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    query: jax.Array
    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Values:
    value: jax.Array


def test_attributes_named_value_keep_their_name():
    tree = {"a": Attention(jnp.ones(2), jnp.ones(2)), "b": Values(jnp.ones(2))}
    paths = []
    plp_optax.layer_names(tree, lambda path: paths.append(path) or "one")
    assert paths == ["a/query", "a/value", "b/value"]


@pytest.mark.parametrize(
    "tree", [{"linear": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}, jnp.ones((2, 2))]
)
def test_trees_without_known_names_are_pointed_to_modules(tree):
    """Haiku's names, and a bare array."""
    with pytest.raises(ValueError, match="layers='modules'"):
        plp_optax.layer_names(tree)
    assert len(plp_optax.layer_names(tree, "modules")) == 1


@every_measure
def test_gradients_of_none_do_not_shift_the_other_layers(measure):
    rows = np.random.default_rng(5).normal(size=(4, 4, 6)).astype(np.float32)
    rows += np.array([5.0, 0.0, 0.7, 3.0], np.float32).reshape(4, 1)
    params = kernels(rows[0])
    none = [kernels(row) | {"a": {"kernel": None}} for row in rows]
    tx = plp_optax.amplify_layers(WINDOWS, measure=measure, select=HALF)
    state, update = tx.init(params), jit(tx.update)
    for gradient in none:
        updates, state = update(gradient, state, params)
    assert updates["a"]["kernel"] is None
    _, expected = feed(tx, [{n: k for n, k in g.items() if n != "a"} for g in none])
    np.testing.assert_array_equal(state.scores[1:], expected[-1].scores)
    np.testing.assert_array_equal(state.z_scores[1:], expected[-1].z_scores)
    assert state.amplified.tolist() == [False, *expected[-1].amplified.tolist()]
    with pytest.raises(ValueError, match="finds 3 layers, and init found 4"):
        tx.update(none[0], state)


def test_the_papers_tuples_with_steps_per_epoch():
    stages = [(1, 0.1, 0, 1), (4, 0.1, 1, 3.0)]
    gradients = [kernels(np.ones((2, 1), np.float32))] * 8
    strategy = plp_optax.TrainingStrategy(stages, steps_per_epoch=2)
    expected = feed(plp_optax.amplify_layers(strategy, select=all_layers()), gradients)
    tx = plp_optax.amplify_layers(stages, steps_per_epoch=2, select=all_layers())
    chex.assert_trees_all_equal(feed(tx, gradients), expected)


def test_measures_are_those_that_the_library_has():
    assert plp_optax._measures.MEASURES == MEASURES
