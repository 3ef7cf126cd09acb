"""Momentum over the slow trajectory: twins, drift, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import W0, noisy_gradient, run

RATE = 0.07


def descend(*links):
    return optax.chain(optax.sgd(RATE), *links)


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


# -- Precision -------------------------------------------------------------------------


def test_schedules_are_read_in_float64():
    with jax.enable_x64(True):
        tx = plp_optax.ema_nesterov(optax.linear_schedule(0.6, 0.0, 30), decay=0.8)
        state = tx.init(jnp.zeros(()))
        for t in range(1, 31):
            _, state = tx.update(jnp.ones(()), state)
            assert float(state.extrapolation) == pytest.approx(
                0.6 * (1 - t / 30), abs=1e-15
            )


def test_a_slow_average_in_half_precision_does_not_stick():
    tx = plp_optax.ema_nesterov(0.0, decay=0.999)
    update = jnp.asarray(1e-3, jnp.bfloat16)
    step = lambda state, _: (tx.update(update, state)[1], None)  # noqa: E731
    state, _ = jax.lax.scan(step, tx.init(update), length=3000)
    expected = float(update) * (1 - 0.999**3000)
    np.testing.assert_allclose(state.slow_update, expected, rtol=1e-4)


def test_outer_momentum_follows_rounded_parameters():
    """Updates of 1e-3 do not move a bfloat16 parameter of 1."""
    tx = plp_optax.outer_nesterov(0.7, momentum=0.9, period=2)
    w = jnp.ones((), jnp.bfloat16)
    state = tx.init(w)
    for _ in range(10):
        updates, state = tx.update(jnp.asarray(-1e-3, jnp.bfloat16), state, w)
        w = optax.apply_updates(w, updates)
    assert w == 1
    assert state.outer_velocity == 0
    with pytest.raises(ValueError, match="in half precision parameters round"):
        tx.update(jnp.asarray(-1e-3, jnp.bfloat16), state)


def test_narrow_buffers_leave_the_updates_exact():
    """Without extrapolation or momentum, in float64 with float32 buffers."""
    narrow = {"accumulator_dtype": jnp.float32}
    with jax.enable_x64(True):
        for tx in (
            plp_optax.ema_nesterov(0.0, **narrow),
            plp_optax.outer_nesterov(1.0, momentum=0.0, period=2, **narrow),
        ):
            state = tx.init(jnp.zeros(()))
            for u in (np.pi, np.e, 1 / 3):
                emitted, state = tx.update(jnp.asarray(u), state)
                assert float(emitted) == u
