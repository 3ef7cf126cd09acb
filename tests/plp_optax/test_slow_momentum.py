"""Momentum over the slow trajectory: twins, drift, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import RATE, W0, descend, noisy_gradient, run

# -- ema_nesterov ----------------------------------------------------------------------


def ema_twin(beta, gamma, steps):
    """The slow parameters x and their average update m, as the docstring has them."""
    x, m, history = W0, np.zeros_like(W0), []
    for t in range(steps):
        ahead = x + beta(t) * m
        following = ahead - RATE * noisy_gradient(ahead, t)
        m = gamma * m + (1 - gamma) * (following - x)
        x = following
        history.append(x + beta(t + 1) * m)
    return np.stack(history)


@pytest.mark.parametrize(
    ("beta", "gamma"), [(0.6, 0.0), (lambda t: 0.8 / (1 + t), 0.9)]
)
def test_ema_nesterov_follows_the_slow_parameters(beta, gamma):
    actual = run(descend(plp_optax.ema_nesterov(beta, decay=gamma)), 15)
    schedule = beta if callable(beta) else lambda t: beta
    np.testing.assert_allclose(actual, ema_twin(schedule, gamma, 15), rtol=1e-10)


def test_ema_nesterov_without_decay_is_nesterovs_momentum():
    """With gamma = 0 the average is the last slow update: x + beta (x - x_before)."""
    actual = run(descend(plp_optax.ema_nesterov(0.9, decay=0.0)), 12)
    expected = run(optax.sgd(RATE, 0.9, nesterov=True), 12)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


# -- outer_nesterov --------------------------------------------------------------------


@pytest.mark.parametrize(("eta", "mu", "period"), [(0.7, 0.9, 4), (1.0, 0.5, 1)])
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


# -- Precision -------------------------------------------------------------------------


def test_a_slow_average_in_half_precision_does_not_stick():
    tx = plp_optax.ema_nesterov(0.0, decay=0.999)
    update = jnp.asarray(1e-3, jnp.bfloat16)
    step = lambda state, _: (tx.update(update, state)[1], None)  # noqa: E731
    state, _ = jax.lax.scan(step, tx.init(update), length=3000)
    expected = float(update) * (1 - 0.999**3000)
    np.testing.assert_allclose(state.slow_update, expected, rtol=1e-4)
