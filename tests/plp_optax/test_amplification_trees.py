"""Amplification: memory and types, split parameters, unusual trees."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import plp_optax
from plp_optax import (
    AmplificationWindow,
    all_layers,
    at_random,
    stacked,
)
from tests.support.amplification import (
    HALF,
    IDENTITY_WINDOWS,
    analyze,
    every_measure,
    feed,
    kernels,
)

WINDOWS = [AmplificationWindow(0, 6, 3, factor=2.0)]


# -- memory and types ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bfloat16", "float32"), ("float64", "float64")]
)
def test_accumulators_are_float32_at_least(dtype, expected):
    with jax.enable_x64(True):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, select=all_layers())
        state = tx.init(kernels(np.zeros((3, 4), jnp.dtype(dtype))))
        sums = jax.tree.leaves((state.signed_sums, state.absolute_sums))
        assert {x.dtype for x in sums} == {jnp.dtype(expected)}


@pytest.mark.parametrize(
    ("measure", "signed", "absolute", "score"),
    [
        ("g1", 257 + 1.5 - 0.5, 257 + 1.5 + 0.5, 258 / 259),
        ("g1_per_weight", 256.5, 257 + 1.5 + 0.5, 258 / 259),
        ("g2", 256.5, 257.5, (256.5 / 257.5 + 1 + 1) / 3),
    ],
)
def test_bfloat16_gradients_are_summed_in_float32(measure, signed, absolute, score):
    """256 + 1 does not fit into bfloat16's 8 bits, over iterations or weights."""
    rows = [[256.0, 1.0, 0.0], [1.0, 0.0, 0.5], [-0.5, 0.0, 0.0]]
    gradients = [kernels(jnp.asarray([row, row], jnp.bfloat16)) for row in rows]
    state, _ = analyze(gradients, measure=measure)
    sums = (state.signed_sums, state.absolute_sums)
    first = [np.asarray(jax.tree.leaves(s)[0]).ravel()[0] for s in sums]
    assert first == [signed, absolute]
    np.testing.assert_allclose(state.scores, score, rtol=1e-6)


def test_empty_leaves_none_and_masked_nodes():
    gradient = {
        "a": {"kernel": jnp.ones((2, 2)), "bias": None},
        "b": {"kernel": jnp.zeros((0, 3)), "bias": optax.MaskedNode()},
        "c": {"kernel": jnp.asarray(1.0)},
    }
    windows = [AmplificationWindow(0, 4, 2, factor=2.0)]
    for measure in ("g1", "g2"):
        tx = plp_optax.amplify_layers(windows, measure=measure, select=all_layers())
        outputs, states = feed(tx, [gradient] * 3)
        np.testing.assert_array_equal(states[2].scores, [1, 0, 1])
        expected = jax.tree.map(lambda g: 2 * g, gradient)
        chex.assert_trees_all_equal(outputs[2], expected)


@pytest.mark.parametrize("empty", [{}, None, {"a": {"kernel": None}}], ids=str)
def test_an_empty_tree(empty):
    for kwargs in ({"measure": "g1"}, {"select": at_random(0.5)}):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, **kwargs)
        state = tx.init(empty)
        updates, after = jax.eval_shape(tx.update, empty, state)
        assert jax.tree.structure(updates) == jax.tree.structure(empty)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


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
    state, tx = analyze(gradients, measure=measure)
    expected = [complex_score(measure, rows[:, layer]) for layer in range(3)]
    np.testing.assert_allclose(state.scores, expected, rtol=1e-5)
    assert state.amplified[2]
    updates, _ = tx.update(gradients[0], state)
    last = gradients[0]["c"]["kernel"]
    np.testing.assert_array_equal(updates["c"]["kernel"], 2 * last)
    steady, _ = analyze([kernels(np.full((2, 3), 1j, np.complex64))] * 3)
    np.testing.assert_allclose(steady.scores, 1, rtol=1e-6)


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


@pytest.mark.parametrize(("measure", "check_vma"), [("g1", True), ("g2", False)])
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
        updates, state = jax.jit(split)(gradients)
        assert not np.all(expected[-1].amplified)
        chex.assert_trees_all_close(state, expected[-1], rtol=1e-9)
        chex.assert_trees_all_close(updates, expected_outputs[-1], rtol=1e-9)


# -- around optimizers -----------------------------------------------------------------


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


def test_every_slice_of_a_scanned_block_is_a_layer():
    shape = jnp.ones((2, 3))
    params = jax.eval_shape(Scanned().init, jax.random.key(0), shape)["params"]
    rng = np.random.default_rng(1)
    offsets = np.array([0.0, 3.0, 0.2, 0.5], np.float32)  # of the blocks

    def random(x):
        offset = offsets.reshape(4, *[1] * (x.ndim - 1)) if x.shape[0] == 4 else 0.1
        return jnp.asarray(rng.normal(size=x.shape) + offset, jnp.float32)

    gradients = [jax.tree.map(random, params) for _ in range(6)]
    make = functools.partial(plp_optax.amplify_layers, WINDOWS, select=HALF)
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


def test_gradients_of_none_do_not_shift_the_other_layers():
    rows = np.random.default_rng(5).normal(size=(4, 4, 6)).astype(np.float32)
    rows += np.array([5.0, 0.0, 0.7, 3.0], np.float32).reshape(4, 1)
    params = kernels(rows[0])
    none = [kernels(row) | {"a": {"kernel": None}} for row in rows]
    tx = plp_optax.amplify_layers(WINDOWS, select=HALF)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in none:
        updates, state = update(gradient, state, params)
    assert updates["a"]["kernel"] is None
    _, expected = feed(tx, [{n: k for n, k in g.items() if n != "a"} for g in none])
    np.testing.assert_array_equal(state.scores[1:], expected[-1].scores)
    np.testing.assert_array_equal(state.z_scores[1:], expected[-1].z_scores)
    assert state.amplified.tolist() == [False, *expected[-1].amplified.tolist()]
    with pytest.raises(ValueError, match="finds 3 layers, and init found 4"):
        tx.update(none[0], state)
