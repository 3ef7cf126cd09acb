"""Measures of layers against their definitions; standardising and selecting."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import plp_optax
from plp_optax import AmplificationWindow, all_layers, by_score
from plp_optax._measures import standardize
from tests.support import reference
from tests.support.amplification import (
    MEASURES,
    PARTS,
    analyze,
    every_measure,
    feed,
    kernels,
)

# -- measures --------------------------------------------------------------------------

MEASURED = [[(2, 3), (3,)], [(4,)], [(1, 1), (1,)]]  # kernel and bias of three layers
WEIGHTS = [9, 4, 2]


def measured_tree(row):
    """A step's gradients from its 15 numbers."""
    tree, at = {}, 0
    for name, shapes in zip("abc", MEASURED, strict=True):
        tree[name] = {}
        for part, shape in zip(PARTS, shapes, strict=False):
            size = math.prod(shape)
            tree[name][part] = row[at : at + size].reshape(shape)
            at += size
    return tree


@functools.cache
def analysis(measure, n):
    """A compiled analysis epoch of n rows."""
    windows = [AmplificationWindow(0, 2 * n, n, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure=measure, select=by_score(0.5))

    @jax.jit
    def states(rows):
        def step(state, row):
            return tx.update(measured_tree(row), state)[1], None

        return jax.lax.scan(step, tx.init(measured_tree(rows[0])), rows)[0]

    return states


def scores_of(measure, rows, dtype=np.float64):
    with jax.enable_x64(dtype == np.float64):
        return np.asarray(analysis(measure, len(rows))(rows.astype(dtype)).scores)


# Small integers, so that exact cancellation and weights that never move are common.
ROWS = st.sampled_from([1, 4]).flatmap(
    lambda n: arrays(np.float64, (n, 15), elements=st.integers(-2, 2).map(float))
)


@given(ROWS, st.sampled_from(MEASURES))
def test_measures_follow_their_definitions(rows, measure):
    layers = np.split(rows, np.cumsum(WEIGHTS)[:-1], axis=1)
    expected = [reference.MEASURE[measure](layer) for layer in layers]
    scores = scores_of(measure, rows)
    np.testing.assert_allclose(scores, expected, rtol=1e-13, atol=1e-15)
    assert np.all((scores >= 0) & (scores <= 1))


@given(
    st.integers(0, 2**31),
    st.floats(2.0**-60, 2.0**60),
    st.sampled_from(MEASURES),
    st.sampled_from([np.float32, np.float64]),
)
def test_measures_do_not_depend_on_the_size_of_gradients(seed, scale, measure, dtype):
    rows = np.random.default_rng(seed).normal(size=(4, 15))
    scaled = scores_of(measure, scale * rows, dtype)
    assert scaled.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(scores_of(measure, rows, dtype), scaled, atol=tolerance)
    assert np.all((scaled >= 0) & (scaled <= 1))


def test_weights_without_gradients_are_left_out_in_every_accumulator():
    """One weight of the first layer has no gradient; one of the second turns."""
    rows = [
        kernels(np.array([[1e-5, 0.0], [1e-5, sign * 1e-5]])) for sign in (1, -1, 1)
    ]
    state, _ = analyze(rows)
    np.testing.assert_allclose(state.scores, [1.0, 2 / 3], rtol=1e-6)
    with jax.enable_x64(True):  # from gradients wider than the accumulators
        state, _ = analyze(rows, accumulator_dtype=jnp.float32)
        np.testing.assert_allclose(state.scores, [1.0, 2 / 3], rtol=1e-6)


@every_measure
def test_noise_scores_its_floor(measure):
    """The mean over 400 layers, as "g1" is one draw a layer."""
    n, layers, weights = 50, 400, 16
    rows = np.random.default_rng(n).normal(size=(n, layers, weights))
    windows = [AmplificationWindow(0, 2 * n, n, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure=measure, select=all_layers())

    def one_layer(gradients):
        def step(state, gradient):
            return tx.update({"kernel": gradient}, state)[1], None

        return jax.lax.scan(step, tx.init({"kernel": gradients[0]}), gradients)[0]

    state = jax.jit(jax.vmap(one_layer, in_axes=1))(rows.astype(np.float32))
    one = jax.tree.map(lambda x: x[0], state)
    analysis = plp_optax.layer_analyses(one, {"kernel": rows[0, 0]})[0]
    floor = (n * weights if measure == "g1" else n) ** -0.5
    np.testing.assert_allclose(analysis.noise_floor, floor, rtol=1e-6)
    assert 0.8 * floor < float(state.scores.mean()) < 1.2 * floor


# -- standardising and selecting -------------------------------------------------------


@given(
    arrays(np.float64, st.sampled_from([3, 8]), elements=st.floats(0, 1, width=32)),
)
def test_standardising(scores):
    expected = reference.standardize(scores.tolist())
    if np.ptp(scores) and scores.std() <= 1e-5:
        return  # neither equal nor told apart
    with jax.enable_x64(True):
        z = jax.jit(standardize)(jnp.asarray(scores), jnp.ones(len(scores), bool))
    np.testing.assert_allclose(z, expected, atol=1e-6)
    assert np.all(np.abs(z) <= np.sqrt(len(scores) - 1) + 1e-9)


@given(
    arrays(np.float64, (4, 1), elements=st.integers(-3, 3).map(float)),
    arrays(np.float32, 3, elements=st.floats(2.0**-20, 2.0**20, width=32)),
    st.sampled_from(MEASURES),
)
def test_equal_scores_amplify_nothing(pattern, sizes, measure):
    """Layers of different sizes with the same score, up to float32 rounding."""
    rows = pattern * np.repeat(sizes, WEIGHTS)
    with jax.enable_x64(False):
        state = analysis(measure, 4)(rows.astype(np.float32))
        np.testing.assert_array_equal(state.z_scores, 0)
        assert not np.any(state.amplified)


def test_the_bound_on_z_is_attained():
    layers = 5
    first_alone = kernels(np.eye(layers, dtype=np.float32)[:, :1])
    state, _ = analyze([first_alone] * 2, select=by_score(math.sqrt(layers - 1) - 1e-3))
    assert state.amplified.tolist() == [True] + [False] * (layers - 1)
    np.testing.assert_allclose(state.z_scores[0], math.sqrt(layers - 1), rtol=1e-5)


@every_measure
def test_a_layer_leaves_out_the_steps_that_are_not_finite(measure):
    """Also of an infinity, as loss scaling gives."""
    rows = np.random.default_rng(3).normal(size=(4, 15)) + 0.5
    spoilt = rows.copy()
    spoilt[0, 4] = -np.inf  # layer a, the first step, where sums begin
    spoilt[2, 9:13] = np.nan  # layer b
    parts = np.split(rows, [9, 13], axis=1)
    kept = [parts[0][1:], parts[1][[0, 1, 3]], parts[2]]
    expected = [reference.MEASURE[measure](layer) for layer in kept]
    with jax.enable_x64(True):
        state = analysis(measure, 4)(spoilt)
        np.testing.assert_allclose(state.scores, expected, rtol=1e-13)
        z_scores = reference.standardize(expected)
        np.testing.assert_allclose(state.z_scores, z_scores, rtol=1e-9)
        assert state.gradients_analyzed.tolist() == [3, 3, 4]
        assert np.any(state.amplified)


@every_measure
def test_a_layer_that_is_never_finite_takes_no_part(measure):
    rows = np.random.default_rng(4).normal(size=(4, 15)) + 0.5
    rows[:, 10] = np.nan  # layer b
    parts = np.split(rows, [9, 13], axis=1)
    expected = [reference.MEASURE[measure](parts[i]) for i in (0, 2)]
    with jax.enable_x64(True):
        state = analysis(measure, 4)(rows)
        z_scores = reference.standardize(expected)
        np.testing.assert_allclose(state.z_scores[jnp.array([0, 2])], z_scores)
        assert state.z_scores[1] == 0
        table = plp_optax.layer_analyses(state, measured_tree(rows[0]))
        assert np.isnan(table[1].score)
        assert not table[1].amplified


def test_nan_outside_of_analysis_does_not_enter_the_sums():
    good = kernels(np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]], np.float32))
    nan = jax.tree.map(lambda g: g * jnp.nan, good)
    windows = [AmplificationWindow(1, 5, 2, 2.0), AmplificationWindow(6, 9, 2, 2.0)]
    tx = plp_optax.amplify_layers(windows, select=by_score(0.5))
    outputs, states = feed(tx, [nan, good, good, nan, nan, nan, good, good, nan, nan])
    _, clean = feed(tx, [good] * 10)
    chex.assert_trees_all_equal(states[3:], clean[3:])
    assert np.any(states[3].amplified)
    assert np.all(np.isnan(outputs[3]["a"]["kernel"]))  # nor are they hidden
