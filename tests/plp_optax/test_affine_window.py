"""The affine family: any window on any tree, Lookahead, latching, gating, arguments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import plp_optax
from plp_optax import effective_rate_multiplier
from tests.support import reference
from tests.support.problems import W0, jitted, noisy_gradient, run, run_tree

STORES = ("folded", "snapshots")
SHAPES = st.sampled_from([(), (1,), (3,), (0,), (2, 0), (2, 3), (1, 2, 2)])
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


@given(window(), st.integers(0, 2**31), st.sampled_from(STORES))
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


@given(TREES, window(), st.sampled_from(STORES))
def test_any_tree_keeps_its_structure_and_types(tree, cycle, store):
    params = {"tree": tree}  # the tree itself may be None
    coefficients, period = cycle
    tx = plp_optax.affine_window(coefficients, period=period, store=store)
    state = tx.init(params)
    before = jax.tree.map(jax.typeof, state)
    for _ in range(period):
        updates, state = tx.update(params, state, params)
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, params)
        assert jax.tree.map(jax.typeof, state) == before


@given(
    st.integers(2, 7),
    st.sampled_from(["midpoint", "least_squares"]),
    st.floats(-4, 4),
    st.floats(-4, 4),
)
def test_plps_coefficients_are_affine_and_exact_on_lines(k, fit, step, slope):
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


def test_is_lookahead():
    k, alpha = 5, 0.8
    ours = optax.chain(optax.sgd(0.1, momentum=0.9), plp_optax.lookahead(k, alpha))
    theirs = optax.lookahead(optax.sgd(0.1, momentum=0.9), k, alpha)
    with jax.enable_x64(True):
        w = jnp.asarray(W0)
        pair = optax.LookaheadParams.init_synced(w)
        state, pair_state = ours.init(w), theirs.init(pair)
        for count in range(3 * k):
            updates, state = ours.update(noisy_gradient(w, count), state, w)
            w = optax.apply_updates(w, updates)
            updates, pair_state = theirs.update(
                noisy_gradient(pair.fast, count), pair_state, pair
            )
            pair = optax.apply_updates(pair, updates)
            np.testing.assert_allclose(w, pair.fast, rtol=1e-12)


def test_snapshots_hold_the_parameters_of_the_cycle():
    tx = plp_optax.plp(store="snapshots", period=4)
    w = jnp.array([1.0, 2.0])
    state, seen = tx.init(w), [w]
    for count in range(3):
        update = jnp.array([0.1, -0.2]) * (count + 1)
        emitted, state = tx.update(update, state, w)
        seen.append(w + update)
        w = optax.apply_updates(w, emitted)
    chex.assert_trees_all_close(state.window, tuple(seen))


@pytest.mark.parametrize("store", STORES)
def test_coefficients_are_latched_for_a_cycle(store):
    def schedule(count):  # a different combination at every step
        return jnp.stack([0.0, -0.1 * count, 1.0 + 0.1 * count])

    tx = plp_optax.affine_window(schedule, period=3, store=store)
    expected = reference.train(
        W0,
        noisy_gradient,
        reference.MomentumSGD(0.1),
        12,
        jump=lambda w, start: reference.combine(
            w, [0.0, -0.1 * start, 1 + 0.1 * start]
        ),
        k=2,
        period=3,
    )
    actual = run(optax.chain(optax.sgd(0.1), tx), 12)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("store", STORES)
def test_active_is_read_at_the_start_of_a_cycle(store):
    # True on steps 3..5 only: the cycle 3..5 jumps, that of 0..2 and 6..8 do not.
    tx = plp_optax.plp(
        period=3, active=lambda count: (count >= 2) & (count <= 5), store=store
    )
    expected = reference.train(
        W0,
        noisy_gradient,
        reference.MomentumSGD(0.1),
        9,
        jump=lambda w, start: (
            reference.predict_midpoint(w, 1.0) if start == 3 else w[-1]
        ),
        k=3,
        period=3,
    )
    actual = run(optax.chain(optax.sgd(0.1), tx), 9)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("store", STORES)
def test_an_inactive_cycle_neither_stops_nor_keeps_a_nan(store):
    tx = jitted(plp_optax.plp(period=3, active=lambda n: n >= 3, store=store))
    w = jnp.ones(2)
    state = tx.init(w)
    updates = [1.0, jnp.nan, 2.0, 1.0, 2.0, 4.0]
    emitted = []
    for u in updates:
        update, state = tx.update(jnp.full(2, u), state, w)
        w = w + jnp.nan_to_num(update)  # the user's guard
        emitted.append(np.asarray(update)[0])
    np.testing.assert_array_equal(emitted, [1.0, np.nan, 2.0, 1.0, 2.0, 5.0])


@pytest.mark.parametrize("store", STORES)
def test_a_cycle_forgets_a_nan_of_the_one_before(store):
    tx = jitted(plp_optax.affine_window([0.2, 0.3, 0.5], period=3, store=store))
    state, w = tx.init(jnp.zeros(2)), jnp.ones(2)
    for _ in range(3):
        _, state = tx.update(jnp.full(2, jnp.nan), state, w)
    fresh = tx.init(jnp.zeros(2))
    for u in (1.0, 2.0, 4.0):
        updates, state = tx.update(jnp.full(2, u), state, w)
        expected, fresh = tx.update(jnp.full(2, u), fresh, w)
        np.testing.assert_array_equal(updates, expected)


@pytest.mark.parametrize("store", STORES)
def test_bfloat16_parameters_with_float32_window(store):
    """The window's sums are those of float32, not of bfloat16."""
    params = jnp.full(4, 256.0, jnp.bfloat16)
    tx = plp_optax.affine_window(
        [0.0, 0.5, 0.5], period=2, accumulator_dtype=jnp.float32, store=store
    )
    state = tx.init(params)
    assert {x.dtype for x in jax.tree.leaves(state.window)} == {jnp.dtype("float32")}
    history, state = run_tree(tx, params, [jnp.full(4, 4.0, jnp.bfloat16)] * 2)
    assert history[-1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(history[-1].astype(np.float32), 262.0)


def test_the_folded_sum_does_not_round_to_the_updates_dtype():
    tx = plp_optax.affine_window(
        [-1.0, -1.0, 3.0], period=2, accumulator_dtype=jnp.float32
    )
    state = tx.init(jnp.zeros((), jnp.bfloat16))
    for u in (1.0, 2.0**-10):  # their sum does not fit into bfloat16's 8 bits
        _, state = tx.update(jnp.asarray(u, jnp.bfloat16), state)
    assert float(state.window[0]) == 1.0 + 2 * 2.0**-10


def test_complex_parameters_keep_their_dtype():
    tx = plp_optax.plp(accumulator_dtype=jnp.float32)
    w = jnp.array([1.0 + 2.0j])
    history, _ = run_tree(tx, w, [w, 2 * w, 4 * w])
    # w_0 = w, w_1 = 2w, w_2 = 4w, w_3 = 8w; the jump adds half of 2w.
    np.testing.assert_allclose(history[-1], 9 * w, rtol=1e-6)


def test_the_rate_multiplier_is_what_steady_updates_do():
    for coefficients, period in [
        (plp_optax.plp_coefficients(2.0, window=4, fit="least_squares"), 5),
        (plp_optax.average_coefficients(3), 4),
        (plp_optax.lookahead_coefficients(5, 0.3), 5),
    ]:
        tx = plp_optax.affine_window(coefficients, period=period)
        with jax.enable_x64(True):
            history, _ = run_tree(jitted(tx), jnp.zeros(()), [jnp.ones(())] * period)
            np.testing.assert_allclose(
                float(history[-1]) / period,
                effective_rate_multiplier(coefficients, period=period),
                rtol=1e-12,
            )


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "coefficients",
    [
        plp_optax.plp_coefficients(0.3, window=5, fit="least_squares"),
        [0.5, 0.5000009],  # within the tolerance of sums in float32
    ],
)
def test_updates_of_zero_change_nothing(coefficients, store):
    """Also where the coefficients' sum rounds away from 1."""
    tx = plp_optax.affine_window(coefficients, period=5, store=store)
    params = jnp.asarray(np.random.default_rng(0).normal(size=100), jnp.float32)

    def step(carry, _):
        updates, state = tx.update(jnp.zeros(100), carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=500)
    np.testing.assert_array_equal(after, params)


NARROW = {"accumulator_dtype": jnp.float32}


@pytest.mark.parametrize(
    ("tx", "jumps"),
    [
        (plp_optax.plp(**NARROW), [2, 6]),
        (plp_optax.plp(active=lambda count: jnp.asarray(False), **NARROW), []),
        (plp_optax.ema_nesterov(0.0, **NARROW), []),
        (plp_optax.outer_nesterov(1.0, momentum=0.0, period=2, **NARROW), []),
    ],
)
def test_narrow_buffers_leave_the_rest_exact(tx, jumps):
    """In float64 with float32 buffers, steps without a jump pass as they are."""
    with jax.enable_x64(True):
        state = tx.init(jnp.zeros(()))
        for count in range(8):
            update = jnp.asarray(np.pi + count)
            emitted, state = tx.update(update, state)
            assert emitted.dtype == jnp.float64
            assert bool(emitted == update) == (count not in jumps)
