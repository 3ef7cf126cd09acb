"""PACE: a literal twin, and its weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plp_optax
from tests.support.problems import W0, noisy_gradient, read_out

STEPS = 25


def pace_twin(gradient, w, eta, c, kappa, b2=0.999, decay=1e-4, steps=STEPS):
    """AdamW, the pull and the average, line by line; the parts that are clipped."""
    average, m, v = w, np.zeros_like(w), np.zeros_like(w)
    params, averages, clipped = [], [], []
    for t in range(1, steps + 1):
        g = gradient(w, t - 1)
        m, v = 0.9 * m + 0.1 * g, b2 * v + (1 - b2) * g**2
        root = np.sqrt(v / (1 - b2**t)) + 1e-8
        beta = (1 + t) ** -kappa
        step = eta(t - 1) * (m / (1 - 0.9**t) / root + decay * w)
        gain = eta(t - 1) * c * beta / root
        w = w - step + np.minimum(1, gain) * (average - w)
        average = (1 - beta) * average + beta * w
        params.append(w)
        averages.append(average)
        clipped.append((gain > 1).mean())
    return np.stack(params), np.stack(averages), np.mean(clipped)


@pytest.mark.parametrize(
    ("c", "kappa", "eta"),
    [(20.0, 0.2, 0.1), (3.0, 0.7, lambda n: 0.1 / (1 + n))],
)
def test_pace_follows_the_twin(c, kappa, eta):
    schedule = eta if callable(eta) else lambda n: eta
    tx = plp_optax.pace(eta, c, power=kappa, b2=0.99, weight_decay=0.01)
    params, averages = read_out(tx, STEPS)
    *expected, clipped = pace_twin(noisy_gradient, W0, schedule, c, kappa, 0.99, 0.01)
    # optax corrects Adam's moments in float32.
    np.testing.assert_allclose(params, expected[0], rtol=1e-6)
    np.testing.assert_allclose(averages, expected[1], rtol=1e-6)
    assert 0.02 < clipped < 0.98 if c > 3 else clipped == 0


def test_paces_weight_decay_has_a_mask():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = plp_optax.pace(0.1, weight_decay=0.5, mask={"a": True, "b": False})
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0)
