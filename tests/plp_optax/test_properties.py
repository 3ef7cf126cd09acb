"""Properties over generated trees, updates and windows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

import plp_optax
from tests.support import reference
from tests.support.problems import run_tree

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("default")

SHAPES = st.sampled_from([(), (1,), (3,), (0,), (2, 0), (2, 3), (1, 2, 2)])
STORES = st.sampled_from(["folded", "parameters", "snapshots"])
NOTHING = st.sampled_from([None, optax.MaskedNode(), (), {}])


@st.composite
def array(draw):
    dtype = draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return jnp.asarray(rng.normal(size=draw(SHAPES)), dtype)


TREES = st.recursive(
    array() | NOTHING,
    lambda child: (
        st.lists(child, max_size=3)
        | st.tuples(child, child)
        | st.dictionaries(st.sampled_from("abc"), child, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def window(draw):
    k = draw(st.integers(1, 5))
    free = draw(st.lists(st.floats(-2, 2, width=32), min_size=k, max_size=k))
    return [*free, 1 - sum(free)], draw(st.integers(k, k + 3))


def gradients_like(params, steps, seed):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        for _ in range(steps)
    ]


@given(TREES, window(), STORES)
def test_any_tree_keeps_its_structure_and_types(tree, cycle, store):
    params = {"tree": tree}  # the tree itself may be None
    coefficients, period = cycle
    tx = plp_optax.affine_window(coefficients, period=period, store=store)
    state = tx.init(params)
    before = jax.tree.map(jax.typeof, state)
    for gradient in gradients_like(params, period, 0):
        updates, state = tx.update(gradient, state, params)
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)
        assert jax.tree.map(jax.typeof, state) == before


@given(window(), st.integers(0, 2**31), STORES)
def test_any_window_follows_its_definition(cycle, seed, store):
    coefficients, period = cycle
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(2 * period + 1, 3))
    w0 = rng.normal(size=3)
    expected = reference.train(
        w0,
        lambda w, count: gradients[count],
        reference.MomentumSGD(-1.0),
        len(gradients),
        jump=lambda w, _: reference.combine(w, coefficients),
        k=len(coefficients) - 1,
        period=period,
    )
    tx = plp_optax.affine_window(coefficients, period=period, store=store)
    with jax.enable_x64(True):
        history, _ = run_tree(tx, jnp.asarray(w0), [jnp.asarray(g) for g in gradients])
        np.testing.assert_allclose(history, expected, rtol=1e-9, atol=1e-9)


@given(
    st.integers(2, 7),
    st.sampled_from(["midpoint", "least_squares"]),
    st.floats(-4, 4),
    st.floats(-4, 4),
)
def test_prediction_is_affine_and_exact_on_lines(k, fit, step, slope):
    c = plp_optax.plp_coefficients(step, window=k, fit=fit)
    np.testing.assert_allclose(c.sum(), 1, atol=1e-12)
    # On w_i = i * slope the prediction is the line itself at k - 1/2 + step.
    line = slope * np.arange(k + 1)
    np.testing.assert_allclose(c @ line, slope * (k - 0.5 + step), atol=1e-9)
    rng = np.random.default_rng(k)
    w = rng.normal(size=k + 1)
    np.testing.assert_allclose(
        c @ w, reference.PREDICT[fit](list(w), step), rtol=1e-9, atol=1e-9
    )


@given(window(), st.floats(-8, 8, width=32), st.integers(0, 2**31))
def test_linear_in_the_updates(cycle, scale, seed):
    coefficients, period = cycle
    tx = plp_optax.affine_window(coefficients, period=period)
    with jax.enable_x64(True):
        params = jnp.zeros(4)
        gradients = gradients_like(params, period, seed)
        end = run_tree(tx, params, gradients)[0][-1]
        scaled = run_tree(tx, params, [scale * g for g in gradients])[0][-1]
        np.testing.assert_allclose(scaled, scale * end, rtol=1e-9, atol=1e-9)


@given(window(), st.integers(0, 7))
def test_a_cycle_forgets_everything_before_it(cycle, cycles):
    """Whatever happened before, NaN included, a new cycle starts from zero."""
    coefficients, period = cycle
    tx = plp_optax.affine_window(coefficients, period=period)
    state = tx.init(jnp.zeros(2))
    for _ in range(cycles * period):
        _, state = tx.update(jnp.full(2, jnp.nan), state)
    fresh = tx.init(jnp.zeros(2))
    for gradient in gradients_like(jnp.zeros(2), period, 5):
        updates, state = tx.update(gradient, state)
        expected, fresh = tx.update(gradient, fresh)
        np.testing.assert_array_equal(updates, expected)
