"""GPA: a literal twin, and its members."""

import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import RATE, W0, descend, noisy_gradient, read_out, run

STEPS = 25


def gpa_twin(mu_y, mu_x, steps=STEPS):
    """The three sequences of the paper: y and x after each step."""
    x = z = W0
    ys, xs = [], []
    for t in range(steps):
        y = mu_y * x + (1 - mu_y) * z
        z = z - RATE * noisy_gradient(y, t)
        mu = mu_x(t + 1)
        x = mu * x + (1 - mu) * z
        ys.append(mu_y * x + (1 - mu_y) * z)
        xs.append(x)
    return np.stack(ys), np.stack(xs)


@pytest.mark.parametrize(
    ("mu_y", "kwargs", "mu_x"),
    [
        (0.7, {"decay": 0.9}, lambda t: 0.9),
        (0.7, {}, lambda t: 0.9967),
        (0.0, {"power": 0.0}, lambda t: 1 - 1 / t),
        (1.0, {"power": 3.0}, lambda t: 1 - 4 / (t + 3)),
    ],
)
def test_gpa_follows_the_three_sequences(mu_y, kwargs, mu_x):
    actual = read_out(descend(plp_optax.gpa(mu_y, **kwargs)), STEPS)
    for ours, expected in zip(actual, gpa_twin(mu_y, mu_x), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-13)


def test_the_uniform_gpa_is_schedule_free():
    free = optax.contrib.schedule_free(optax.sgd(RATE), RATE, b1=0.9)
    expected = read_out(free, STEPS)
    actual = read_out(descend(plp_optax.gpa(0.9, power=0.0)), STEPS)
    for ours, optaxs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, optaxs, rtol=1e-6)  # its b1 is in float32


def test_gpa_with_equal_weights_is_nesterovs_momentum():
    mu = 0.8
    tx = optax.chain(optax.sgd(RATE / (1 - mu)), plp_optax.gpa(mu, decay=mu))
    expected = run(optax.sgd(RATE, mu, nesterov=True), STEPS)
    np.testing.assert_allclose(run(tx, STEPS), expected, rtol=1e-10, atol=1e-13)
