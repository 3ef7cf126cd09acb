"""Coefficients from the updates: twin, exactness, limits, safeguards, devices."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import plp_optax
from tests.support.problems import W0, jitted, noisy_gradient, run

RATE = 0.07


def coefficients(updates, strength):
    """Minimises |sum c_i u_i|^2 + strength |G|_2 |c|^2 with sum c = 1, by its
    optimality conditions with a multiplier."""
    u = np.stack(updates)
    gram = u @ u.T
    n = len(u)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = gram + strength * np.linalg.norm(gram, 2) * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    return np.linalg.solve(system, np.eye(n + 1)[n])[:n]


def twin(steps, window, period, strength, mixing=1.0, gradient=noisy_gradient):
    """Gradient descent that keeps all points and updates, and combines the points."""
    w, history, points, updates = W0, [], [], []
    for count in range(steps):
        place = None if period is None else count % period
        if place == 0:
            points, updates = [], []
        u = -RATE * gradient(w, count)
        points.append(w + mixing * u)
        updates.append(u)
        w = w + u
        if len(updates) > 1 and place in (None, window - 1):
            c = coefficients(updates[-window:], strength)
            w = c @ np.stack(points[-window:])
        history.append(w)
    return np.stack(history)


def descent(*args, rate=RATE, **kwargs):
    return optax.chain(optax.sgd(rate), plp_optax.anderson(*args, **kwargs))


def quadratic(dimension, condition):
    """Curvatures from 1 to ``condition`` in a rotated basis, and a start."""
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(dimension, dimension)))
    curvatures = np.geomspace(1, condition, dimension)
    return basis * curvatures @ basis.T, rng.normal(size=dimension)


def follow(tx, hessian, w, steps, **extra):
    """Half of w' H w after each step, in float64."""
    with jax.enable_x64(True):
        hessian, w = jnp.asarray(hessian), jnp.asarray(w)
        update = jitted(tx).update
        state, values = tx.init(w), []
        for _ in range(steps):
            updates, state = update(hessian @ w, state, w, value=w @ hessian @ w / 2)
            w = optax.apply_updates(w, updates)
            values.append(float(w @ hessian @ w / 2))
    return np.array(values)


@pytest.mark.parametrize(
    ("history", "period", "strength", "mixing"),
    [
        (2, None, 0.5, 1.0),
        (4, None, 1e-4, 0.6),
        (3, 3, 0.5, 1.0),
        (4, 6, 1e-4, 0.6),
        (2, 2, 1e-4, 1.0),
    ],
)
def test_follows_the_twin(history, period, strength, mixing):
    tx = descent(history, period=period, regularization=strength, mixing=mixing)
    actual = run(tx, 14)
    expected = twin(14, history, period, strength, mixing)
    np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-10)


def test_restarted_window_of_n_plus_1_minimises_a_quadratic_in_one_cycle():
    for dimension in (1, 6):
        hessian, w = quadratic(dimension, 10)
        tx = descent(
            dimension + 1, period=dimension + 1, regularization=1e-20, rate=0.15
        )
        values = follow(tx, hessian, w, dimension + 1)
        assert values[-2] > 1e-6
        assert values[-1] < 1e-16 * values[-2]


def test_large_regularization_is_the_average():
    average = plp_optax.affine_window(plp_optax.average_coefficients(4), period=5)
    expected = run(optax.chain(optax.sgd(RATE), average), 15)
    actual = run(descent(4, period=5, regularization=1e12), 15)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


def test_saves_a_third_of_nesterovs_steps_on_an_ill_conditioned_quadratic():
    hessian, w = quadratic(30, 1000)
    nesterov = optax.sgd(1e-3, 0.95, nesterov=True)
    runs = [follow(tx, hessian, w, 300) for tx in (nesterov, descent(10, rate=1e-3))]
    steps = [np.argmax(values < 1e-6) or len(values) for values in runs]
    assert steps[1] < steps[0] * 2 / 3


def test_harms_heavy_ball():
    """Why the docstring warns: a jump leaves the velocity as it was."""
    hessian, w = quadratic(30, 1000)
    ball = optax.sgd(2e-3, 0.9)
    window = plp_optax.anderson(10, period=10)
    alone = follow(ball, hessian, w, 300)[-1]
    assert follow(optax.chain(ball, window), hessian, w, 300)[-1] > 10 * alone


# -- Safeguards ------------------------------------------------------------------------


def three_updates(updates=((1.0, 0.0), (0.9, 0.1), (0.85, 0.3)), **kwargs):
    """The jump at the end of a cycle, in float64."""
    with jax.enable_x64(True):
        tx = jitted(plp_optax.anderson(3, period=3, regularization=1e-6, **kwargs))
        w = jnp.array([3.0, 4.0])
        state = tx.init(w)
        for u in jnp.asarray(updates):
            emitted, state = tx.update(u, state, w)
        return np.asarray(emitted - u)


def test_min_signal_leaves_noise_alone():
    opposed = ((1.0, 0.0), (-1.0, 0.1), (1.0, 0.2))
    u = np.array(opposed)
    gram = u @ u.T
    others = (gram.sum() - np.trace(gram)) / 6
    signal = others / (np.trace(gram) / 3)
    assert np.abs(three_updates(opposed, min_signal=signal - 0.01)).max() > 0.1
    np.testing.assert_array_equal(three_updates(opposed, min_signal=signal + 0.01), 0)
    assert np.abs(three_updates(min_signal=0.5)).max() > 0.1  # steady updates


@pytest.mark.parametrize("period", [None, 3])
def test_revert_goes_back_to_where_the_optimizer_would_have_been(period):
    # A loss that punishes every jump.
    tx = plp_optax.anderson(3, period=period, revert=True)
    with jax.enable_x64(True):
        w = jnp.array([3.0, 4.0])
        state, update = tx.init(w), jax.jit(tx.update)
        points, values = [w], []
        us = [jnp.array(u) for u in ([1.0, 0.0], [0.9, 0.1], [0.8, 0.3])]
        jumped_at = 1 if period is None else 2
        for u in us[: jumped_at + 1]:
            values.append(-float(len(points)))
            emitted, state = update(u, state, w, value=values[-1])
            w = w + emitted
            points.append(w)
        alone = points[-2] + us[jumped_at]
        assert np.abs(w - alone).max() > 0.1
        # A higher value: back, and the update at the bad point is dropped.
        emitted, back = update(jnp.array([7.0, 7.0]), state, w, value=values[-1] + 1e-9)
        np.testing.assert_allclose(w + emitted, alone, atol=1e-12)
        assert back.position == 0
        # NaN is worse than any value; an equal value is not.
        nan, _ = update(jnp.array([7.0, 7.0]), state, w, value=jnp.nan)
        np.testing.assert_array_equal(nan, emitted)
        kept, _ = update(jnp.array([7.0, 7.0]), state, w, value=values[-1])
        assert np.abs(kept - emitted).max() > 1
        # Only a jump is reverted.
        again, _ = update(us[0], back, alone, value=1e9)
        np.testing.assert_array_equal(again, us[0])


@pytest.mark.parametrize(("period", "bad"), [(None, jnp.nan), (3, jnp.inf)])
def test_an_update_that_is_not_finite_passes_and_is_forgotten(period, bad):
    tx = jitted(plp_optax.anderson(3, period=period))
    w = jnp.ones(2)
    state = tx.init(w)
    _, state = tx.update(jnp.array([0.5, 0.1]), state, w)
    emitted, state = tx.update(jnp.array([bad, 0.1]), state, w)
    np.testing.assert_array_equal(emitted, [bad, np.float32(0.1)])
    fresh = tx.init(w)
    for u in ([0.3, 0.1], [0.2, 0.2], [0.1, 0.2]):
        emitted, state = tx.update(jnp.array(u), state, w)
        expected, fresh = tx.update(jnp.array(u), fresh, w)
        np.testing.assert_array_equal(emitted, expected)


def test_steps_of_zero_stay_zero():
    tx = jitted(plp_optax.anderson(3))
    state = tx.init(jnp.ones(2))
    for _ in range(4):
        emitted, state = tx.update(jnp.zeros(2), state)
        np.testing.assert_array_equal(emitted, 0)


@pytest.mark.parametrize(
    ("dtype", "strength"), [(jnp.float32, 1e-7), (jnp.bfloat16, 1e-2)]
)
def test_default_regularization_bounds_the_coefficients(dtype, strength):
    """Parallel updates; |c|^2 is at most (1 + 1 / lambda) / n (Scieur et al. 2016)."""
    tx = plp_optax.anderson(6, period=6)
    u = jnp.asarray(np.random.default_rng(0).normal(size=50), dtype)
    state, update = tx.init(u), jax.jit(tx.update)
    for step in range(6):
        emitted, state = update(u * (1 + 1e-3 * step), state)
    length = float(jnp.linalg.norm(emitted.astype(float) / jnp.linalg.norm(u)))
    # The jump is a sum of five updates, each times a sum of at most six coefficients.
    bound = np.sqrt((1 + 1 / strength) / 6)
    assert 1.5 < length < 5 * np.sqrt(6) * bound + 1


# -- Devices, memory, dtypes -----------------------------------------------------------


def split_updates():
    rng = np.random.default_rng(5)
    return [
        {"a": 2.0**-i * rng.normal(size=(8, 3)), "b": rng.normal(size=4)}
        for i in range(6)
    ]


def emitted_in_turn(update, state, place):
    emitted = []
    for u in split_updates():
        x, state = update(place(u), state)
        emitted.append(jax.tree.map(np.asarray, x))
    return emitted


@pytest.mark.parametrize("how", ["jit", "pmap"])
@pytest.mark.parametrize("period", [None, 3])
def test_split_parameters_on_four_devices_equal_one(period, how):
    with jax.enable_x64(True):
        one = plp_optax.anderson(3, period=period)
        blank = jax.tree.map(jnp.zeros_like, split_updates()[0])
        expected = emitted_in_turn(
            jax.jit(one.update), one.init(blank), partial(jax.tree.map, jnp.asarray)
        )
        if how == "pmap":
            tx = plp_optax.anderson(3, period=period, axis_name="x")

            def place(u):
                return jax.tree.map(lambda x: x.reshape(4, -1), u)

            state = jax.pmap(tx.init, axis_name="x")(place(blank))
            update = jax.pmap(tx.update, axis_name="x")
            expected = [place(x) for x in expected]
        else:
            mesh = jax.sharding.Mesh(jax.devices(), ("x",))

            def place(u):
                return jax.device_put(u, NamedSharding(mesh, P("x")))

            state, update = one.init(place(blank)), jax.jit(one.update)
        actual = emitted_in_turn(update, state, place)
        chex.assert_trees_all_close(actual, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("period", "copies"), [(None, 12), (6, 5)])
def test_memory_is_the_window_and_not_a_copy_of_it(period, copies):
    """A complete step, in which XLA may fuse the jump with all that uses it."""
    params = {"w": jnp.zeros((256, 256)), "b": jnp.zeros(128)}
    tx = plp_optax.anderson(6, period=period)
    state = tx.init(params)
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    assert total == copies * size + 4 * (36 if period is None else 25) + 3 * 4 + 1

    def step(params, state, updates):
        updates, state = tx.update(updates, state)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    temporary = compiled.compile().memory_analysis().temp_size_in_bytes
    assert temporary < 1.05 * size  # the jump


def test_complex_parameters():
    """As the same problem in real and imaginary parts."""
    pair = W0[:4].reshape(2, 2)
    curvature = np.array([1.0, 5.0])
    tx = jitted(descent(4, regularization=1e-8))
    with jax.enable_x64(True):
        real, z = jnp.asarray(pair), jnp.asarray(pair[0] + 1j * pair[1])
        states = [tx.init(real), tx.init(z)]
        for _ in range(6):
            updates, states[0] = tx.update(curvature[None] * real, states[0])
            real = real + updates
            updates, states[1] = tx.update(curvature * z, states[1])
            z = z + updates
        np.testing.assert_allclose(np.stack([z.real, z.imag]), real, atol=1e-10)


# -- Arguments -------------------------------------------------------------------------


def test_asks_for_the_value():
    tx = plp_optax.anderson(revert=True)
    with pytest.raises(ValueError, match="value=loss"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


@pytest.mark.parametrize("period", [None, 4])
@pytest.mark.parametrize("exponent", [70, -60, -100])
def test_scale_of_the_updates_does_not_matter(period, exponent):
    """Norms whose squares float32 cannot hold: exact, as the factor is a power of 2."""
    tx = jitted(plp_optax.anderson(4, period=period))
    rng = np.random.default_rng(0)
    state, scaled = (tx.init(jnp.zeros(6)) for _ in range(2))
    for _ in range(9):
        u = jnp.asarray(rng.normal(size=6), jnp.float32)
        emitted, state = tx.update(u, state)
        of_scaled, scaled = tx.update(u * 2.0**exponent, scaled)
        np.testing.assert_array_equal(of_scaled, emitted * 2.0**exponent)


def test_derivative_with_equal_eigenvalues():
    """Orthogonal updates of one length, against a finite difference."""
    tx = plp_optax.anderson(3, period=3)

    def end(x):
        state, w = tx.init(jnp.zeros(3)), jnp.zeros(3)
        for i in range(3):
            updates, state = tx.update(jnp.eye(3)[i] * jnp.where(i == 1, x, 1.0), state)
            w = w + updates
        return (w * jnp.arange(1.0, 4.0)).sum()

    with jax.enable_x64(True):
        before, after = jax.jit(jax.vmap(end))(1 + 1e-6 * jnp.array([-1, 1]))
        expected = (after - before) / 2e-6
        np.testing.assert_allclose(jax.jit(jax.grad(end))(1.0), expected, rtol=1e-6)


def test_value_must_be_a_scalar():
    tx = plp_optax.anderson(2, revert=True)
    with pytest.raises(ValueError, match=r"value must be a scalar, got shape \(1,\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=jnp.ones(1))
