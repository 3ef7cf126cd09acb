"""Momentum over the slow trajectory: twins, drift, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import W0, jit, noisy_gradient, run

RATE = 0.07


def descend(*links):
    return optax.chain(optax.sgd(RATE), *links)


def steady(tx, steps, u=1.0):
    """What is emitted for equal updates."""
    with jax.enable_x64(True):
        update = jit(tx.update)
        state, emitted = tx.init(jnp.zeros(())), []
        for _ in range(steps):
            x, state = update(jnp.asarray(u), state)
            emitted.append(float(x))
    return np.array(emitted)


# -- ema_nesterov ----------------------------------------------------------------------


def ema_twin(beta, gamma, steps):
    """The slow parameters x and their average update m, as the docstring has them."""
    x, m, history = W0, np.zeros_like(W0), []
    for t in range(steps):
        ahead = x + beta(t - 1) * m if t else x
        following = ahead - RATE * noisy_gradient(ahead, t)
        m = gamma * m + (1 - gamma) * (following - x)
        x = following
        history.append(x + beta(t) * m)
    return np.stack(history)


@pytest.mark.parametrize(
    ("beta", "gamma"), [(0.6, 0.5), (0.6, 0.0), (lambda t: 0.8 / (1 + t), 0.9)]
)
def test_ema_nesterov_follows_the_slow_parameters(beta, gamma):
    actual = run(descend(plp_optax.ema_nesterov(beta, decay=gamma)), 15)
    schedule = beta if callable(beta) else lambda t: beta
    np.testing.assert_allclose(actual, ema_twin(schedule, gamma, 15), rtol=1e-10)


def test_ema_nesterov_drifts_by_1_over_1_minus_beta():
    emitted = steady(plp_optax.ema_nesterov(0.6, decay=0.8), 200)
    np.testing.assert_allclose(emitted[-1], 1 / (1 - 0.6), rtol=1e-6)
    np.testing.assert_allclose(emitted[0], 1 + 0.6 * (1 - 0.8), rtol=1e-12)


def test_ema_nesterov_without_decay_is_nesterovs_momentum():
    """With gamma = 0 the average is the last slow update: x + beta (x - x_before)."""
    actual = run(descend(plp_optax.ema_nesterov(0.9, decay=0.0)), 12)
    expected = run(optax.sgd(RATE, 0.9, nesterov=True), 12)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


# -- outer_nesterov --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eta", "mu", "period"), [(0.7, 0.9, 4), (1.0, 0.5, 1), (0.5, 0.3, 5)]
)
def test_outer_nesterov_follows_the_twin(eta, mu, period):
    w, start, b, expected = W0, W0, np.zeros_like(W0), []
    for t in range(17):
        w = w - RATE * noisy_gradient(w, t)
        if t % period == period - 1:
            s = start - w
            b = mu * b + s
            w = start = start - eta * (mu * b + s)
        expected.append(w)
    tx = plp_optax.outer_nesterov(eta, momentum=mu, period=period)
    np.testing.assert_allclose(run(descend(tx), 17), expected, rtol=1e-10)


def test_outer_nesterov_without_momentum_is_lookahead():
    tx = plp_optax.outer_nesterov(0.4, momentum=0.0, period=3)
    lookahead = plp_optax.affine_window(
        plp_optax.lookahead_coefficients(3, 0.4), period=3
    )
    expected = run(descend(lookahead), 13)
    np.testing.assert_allclose(run(descend(tx), 13), expected, rtol=1e-10)


def test_outer_nesterov_drifts_by_eta_over_1_minus_mu():
    tx = plp_optax.outer_nesterov(0.7, momentum=0.8, period=5)
    emitted = steady(tx, 5 * 100)
    np.testing.assert_allclose(emitted[-5:].sum(), 5 * 0.7 / (1 - 0.8), rtol=1e-6)


# -- Arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "kwargs", "message"),
    [
        ("ema_nesterov", {"extrapolation": 1.0}, "extrapolation must be at least 0"),
        ("ema_nesterov", {"decay": -0.1}, "decay must be at least 0 and below 1"),
        ("ema_nesterov", {"accumulator_dtype": int}, "accumulator_dtype must be"),
        ("outer_nesterov", {"outer_rate": 0.0}, "outer_rate must be above 0"),
        ("outer_nesterov", {"momentum": 1}, "momentum must be at least 0 and below 1"),
        ("outer_nesterov", {"period": 0}, "period must be an int of at least 1"),
    ],
)
def test_arguments_are_checked(factory, kwargs, message):
    with pytest.raises(ValueError, match=message):
        getattr(plp_optax, factory)(**kwargs)
