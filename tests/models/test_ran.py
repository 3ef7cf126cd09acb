"""The resource-allocating network against a literal twin, and the streams it sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate

from experiments.sequential import arms, learning, streams
from experiments.sequential.learning import Growth
from models import ran

RATE = 0.05
EKF = {"prior_variance": 0.5, "measurement_noise": 0.1, "process_noise": 1e-5}
RULES = {
    "lms": learning.gradient_rule(optax.sgd(RATE)),
    "ekf": learning.ekf_rule(**EKF),
}
GROWTH = Growth(epsilon=0.1, delta_max=0.6, delta_min=0.2, decay=30.0)


class Twin:
    """Platt's network as printed: units in lists, one sample at a time, float64.

    The filter's covariance gets three more blocks with each unit: its weight's among
    the weights, and its centre's at the end.
    """

    def __init__(self, kind, growth, capacity):
        self.kind, self.growth, self.capacity = kind, growth, capacity
        self.bias, self.weights, self.centers, self.widths = 0.0, [], [], []
        self.samples, self.refused = 0, 0
        self.p = EKF["prior_variance"] * np.eye(1)

    def activations(self, x):
        return [
            np.exp(-sum((c - x) ** 2) / w**2)
            for c, w in zip(self.centers, self.widths, strict=True)
        ]

    def predict(self, x):
        return self.bias + sum(
            a * f for a, f in zip(self.weights, self.activations(x), strict=True)
        )

    def learn(self, x, y):
        g = self.growth
        error = y - self.predict(x)
        delta = max(g.delta_max * np.exp(-self.samples / g.decay), g.delta_min)
        distance = min([np.sqrt(sum((c - x) ** 2)) for c in self.centers] + [np.inf])
        novel = abs(error) > g.epsilon and distance > delta
        if self.samples == 0:
            self.bias = y
        elif novel and len(self.centers) < self.capacity:
            width = g.kappa * (distance if self.centers else delta)
            self.allocate(x, error, width)
        else:
            self.refused += novel
            (self.lms if self.kind == "lms" else self.ekf)(x, error)
        self.samples += 1
        return error

    def allocate(self, x, error, width):
        h, n = len(self.centers), len(x)
        self.weights.append(error)
        self.centers.append(x.copy())
        self.widths.append(width)
        old = [0, *range(1, 1 + h), *range(2 + h, 2 + h + h * n)]
        p = EKF["prior_variance"] * np.eye(1 + (h + 1) * (1 + n))
        p[np.ix_(old, old)] = self.p
        self.p = p

    def lms(self, x, error):
        f = self.activations(x)
        moves = [
            2 * a * fh * (x - c) / w**2
            for a, fh, c, w in zip(
                self.weights, f, self.centers, self.widths, strict=True
            )
        ]
        self.bias += RATE * error
        for h, move in enumerate(moves):
            self.weights[h] += RATE * error * f[h]
            self.centers[h] = self.centers[h] + RATE * error * move

    def ekf(self, x, error):
        f = self.activations(x)
        slopes = [
            2 * a * fh * (x - c) / w**2
            for a, fh, c, w in zip(
                self.weights, f, self.centers, self.widths, strict=True
            )
        ]
        a = np.concatenate([[1.0], f, *slopes])
        k = self.p @ a / (EKF["measurement_noise"] + a @ self.p @ a)
        self.p = self.p - np.outer(k, a) @ self.p
        self.p = (self.p + self.p.T) / 2 + EKF["process_noise"] * np.eye(len(a))
        step = k * error
        h, n = len(f), len(x)
        self.bias += step[0]
        for i in range(h):
            self.weights[i] += step[1 + i]
            self.centers[i] = (
                self.centers[i] + step[1 + h + i * n : 1 + h + (i + 1) * n]
            )


def wave(count, seed=0):
    """A smooth function of two inputs, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(count, 2))
    y = np.sin(3 * x[:, 0]) * np.cos(2 * x[:, 1]) + 0.05 * rng.normal(size=count)
    return x, y


def learn(rule, x, y, capacity=32, dtype=jnp.float32, **options):
    network = ran.create(capacity, x.shape[1], dtype)
    state = learning.start(network, rule)
    options = {"growth": GROWTH} | options
    return learning.learn(
        state, jnp.asarray(x, dtype), jnp.asarray(y, dtype), rule, **options
    )


# -- the network -----------------------------------------------------------------------


def test_linearize_gives_the_derivatives():
    rng = np.random.default_rng(0)
    c, a, w = rng.normal(size=(3, 2)), rng.normal(size=3), np.array([0.9, 1.1, 1.3])
    network = ran.create(4, 2)
    for unit in zip(c, a, w, strict=True):
        network = ran.allocate(network, *map(jnp.asarray, unit))
    x = rng.normal(size=2)
    prediction, jacobian = jax.jit(ran.linearize)(network, jnp.asarray(x))
    f = np.exp(-np.sum((c - x) ** 2, axis=1) / w**2)
    np.testing.assert_allclose(prediction, a @ f, rtol=1e-5)
    assert jacobian.bias == 1
    np.testing.assert_allclose(jacobian.weights, [*f, 0], rtol=1e-5)
    moves = (2 * a * f / w**2)[:, None] * (x - c)
    np.testing.assert_allclose(jacobian.centers, [*moves, [0, 0]], rtol=1e-5)


def test_allocation_leaves_a_full_network_alone():
    network = ran.create(1, 2)
    assert ran.nearest(network, jnp.ones(2)) == np.inf
    full = ran.allocate(network, jnp.asarray([3.0, 4.0]), 1.0, 2.0)
    assert ran.nearest(full, jnp.zeros(2)) == 5
    assert full.units == 1
    chex.assert_trees_all_equal(full, ran.allocate(full, jnp.ones(2), 9.0, 9.0))


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0), (2.0, 2)])
def test_refuses_sizes(sizes):
    with pytest.raises(ValueError, match="positive integer"):
        ran.create(*sizes)


def test_refuses_integers():
    with pytest.raises(ValueError, match="floating"):
        ran.create(2, 2, jnp.int32)


# -- learning --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("capacity", [64, 8])
def test_equals_the_literal_twin_along_a_stream(kind, capacity):
    x, y = wave(300)
    twin = Twin(kind, GROWTH, capacity)
    probes = x[:3] + 0.1
    errors, units, watched = [], [], []
    for sample in zip(x, y, strict=True):
        errors.append(twin.learn(*sample))
        units.append(len(twin.centers))
        watched.append([twin.predict(p) for p in probes])
    with jax.enable_x64(True):
        state, trace = learn(
            RULES[kind],
            x,
            y,
            capacity,
            float,
            watched=jnp.asarray(probes),
        )
    assert 8 <= units[-1] < 64
    assert np.mean(np.square(errors[-100:])) < np.var(y) / 5
    np.testing.assert_allclose(trace.error, errors, rtol=0, atol=1e-9)
    np.testing.assert_allclose(trace.watched, watched, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(trace.units, units)
    assert state.refused == twin.refused
    assert (twin.refused > 0) == (capacity == 8)

    bias, weights, centers = state.network.params
    h = units[-1]
    np.testing.assert_allclose(bias, twin.bias, atol=1e-9)
    np.testing.assert_allclose(weights[:h], twin.weights, atol=1e-9)
    np.testing.assert_allclose(centers[:h], twin.centers, atol=1e-9)
    np.testing.assert_allclose(state.network.widths[:h], twin.widths, atol=1e-9)
    np.testing.assert_array_equal(weights[h:], 0)
    np.testing.assert_array_equal(centers[h:], 0)
    if kind == "ekf":
        mask = ran.parameters_of(state.network.active, state.network.params)
        mask = np.concatenate([[True], *(np.ravel(m) for m in mask[1:])])
        p = np.asarray(state.opt_state.covariance)
        np.testing.assert_allclose(p[np.ix_(mask, mask)], twin.p, atol=1e-9)
        np.testing.assert_array_equal(p[np.ix_(mask, ~mask)], 0)


def test_a_stream_in_two_parts_is_the_stream_and_compiles_once_a_length():
    x, y = wave(60)
    rule = RULES["ekf"]
    whole, trace = learn(rule, x, y)
    before = learning.learn._cache_size()
    half, first = learn(rule, x[:30], y[:30])
    rest = (jnp.asarray(array[30:], jnp.float32) for array in (x, y))
    after, second = learning.learn(half, *rest, rule, growth=GROWTH)
    assert learning.learn._cache_size() == before + 1
    chex.assert_trees_all_close(after, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(
        np.concatenate([first.units, second.units]), trace.units
    )
    learn(rule, x, y, growth=GROWTH._replace(epsilon=0.5))
    assert learning.learn._cache_size() == before + 1


def test_without_growth_no_unit_is_added():
    state, trace = learn(RULES["lms"], *wave(20), growth=None)
    assert state.network.units == 0
    np.testing.assert_array_equal(trace.units, 0)
    assert state.network.params.bias != 0


# -- streams ---------------------------------------------------------------------------


def test_mackey_glass_follows_the_equation():
    """Against an adaptive method, delay by delay, with exact delayed values."""
    tau, start, step = 4.0, 1.2, 0.1
    found = streams.mackey_glass(120, tau=tau, start=start, step=step)
    pieces = [lambda t: start]
    for _ in range(3):
        past = pieces[-1]

        def slope(t, s, past=past):
            return 0.2 * past(t) / (1 + past(t) ** 10) - 0.1 * s

        solution = scipy.integrate.solve_ivp(
            slope,
            (0, tau),
            [pieces[-1](tau)],
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
            dense_output=True,
        ).sol
        pieces.append(lambda t, solution=solution: solution(t)[0])
    for i, value in enumerate(found[:-1]):
        piece, offset = divmod(i, 40)
        assert value == pytest.approx(pieces[piece + 1](offset * step), abs=1e-6)


def test_mackey_glass_is_of_order_four():
    ends = [streams.mackey_glass(40 * n, tau=4.0, step=1 / n)[-1] for n in (4, 8, 32)]
    assert 10 < (ends[0] - ends[2]) / (ends[1] - ends[2]) < 25


@pytest.mark.parametrize("tau", [0.0, -1.0, 0.05])
def test_mackey_glass_refuses_delays_between_steps(tau):
    with pytest.raises(ValueError, match="tau"):
        streams.mackey_glass(2, tau=tau)


def test_streams():
    name = "mackey-glass-17"
    stream = arms.load(name, seed=1)
    assert stream.inputs.shape == (500, 7)
    assert stream.targets.shape == (500,)
    assert stream.test_inputs.shape == (50, 7)
    assert stream.test_targets.shape == (50,)
    chex.assert_trees_all_equal(stream, arms.load(name, seed=1))
    assert not np.array_equal(stream.targets, arms.load(name, seed=2).targets)


def test_lags_and_noise():
    clean = arms.load("mackey-glass-17", seed=0)
    stream = arms.load("mackey-glass-17-noisy", seed=0)
    np.testing.assert_array_equal(stream.test_targets, clean.test_targets)
    np.testing.assert_array_equal(clean.test_inputs[1:, -1], clean.test_targets[:-1])
    np.testing.assert_array_equal(stream.inputs[1:, -1], stream.targets[:-1])
    np.testing.assert_array_equal(stream.inputs[1:, 0], stream.inputs[:-1, 1])
    noise = stream.targets - clean.targets
    # The variance of the variance of 500 values is 2 / 500 of its square.
    assert noise.var() == pytest.approx(0.004, rel=4 * (2 / 500) ** 0.5)
