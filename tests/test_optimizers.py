"""Learning-rate schedules and chains, against their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import reference
from tests.problems import W0, noisy_gradient, run
from training.config import resolve
from training.optimizers import make_optimizer, make_schedule, triangular_schedule


def schedule(steps_per_epoch=10, total_steps=100, **fields):
    return make_schedule(
        resolve(fields), steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )


def test_triangular_schedule_goes_up_and_down():
    f = triangular_schedule(1.0, 3.0, 4)
    assert [float(f(i)) for i in range(10)] == [1, 1.5, 2, 2.5, 3, 2.5, 2, 1.5, 1, 1.5]


def test_the_papers_schedule():
    """One epoch of warm-up to 0.001, then up to 0.002 in 2,000 steps, and back."""
    config = resolve({"dataset": "cifar100", "schedule": "cyclic",
                      "learning_rate": 0.001, "max_learning_rate": 0.002})  # fmt: skip
    f = make_schedule(config, steps_per_epoch=312, total_steps=31200)
    warmup = np.array([f(i) for i in range(313)])
    np.testing.assert_allclose(np.diff(warmup), 0.001 / 313, rtol=1e-3)
    np.testing.assert_allclose(warmup[[0, -1]], [0.001 / 313, 0.001], rtol=1e-5)
    turning_points = [float(f(312 + i)) for i in (0, 1000, 2000, 3000, 4000, 6000)]
    np.testing.assert_allclose(
        turning_points, [0.001, 0.0015, 0.002, 0.0015, 0.001, 0.002], rtol=1e-5
    )


def test_constant_step_and_cosine():
    constant = schedule(schedule="constant", warmup_epochs=0, learning_rate=0.3)
    assert {float(constant(i)) for i in (0, 50, 99)} == {0.3}
    step = schedule(schedule="step", warmup_epochs=0, learning_rate=1.0)
    np.testing.assert_allclose(
        [step(i) for i in (29, 31, 59, 61, 79, 81)],
        [1, 0.2, 0.2, 0.04, 0.04, 0.008],
        rtol=1e-5,
    )
    cosine = schedule(schedule="cosine", warmup_epochs=2, learning_rate=0.4)
    np.testing.assert_allclose(
        [cosine(20 + i) for i in (0, 20, 40, 80)],
        [0.2 * (1 + math.cos(math.pi * i / 80)) for i in (0, 20, 40, 80)],
        atol=1e-6,
    )


def test_a_run_shorter_than_its_warm_up_stays_in_it():
    f = schedule(steps_per_epoch=10, total_steps=5, warmup_epochs=1, learning_rate=0.6)
    rates = [float(f(i)) for i in range(5)]
    np.testing.assert_allclose(rates, np.arange(1, 6) * 0.1, rtol=1e-6)


def chain(**fields):
    config = resolve({"learning_rate": 0.05, **fields})
    return make_optimizer(config, optax.constant_schedule(0.05), steps_per_epoch=3)


@pytest.mark.parametrize(
    ("fields", "jump", "k", "period"),
    [
        ({"method": "sgd"}, None, 1, 1),
        (
            {"method": "plp", "plp_step": 2.0, "plp_window": 4, "plp_period": 5},
            lambda w, _: reference.predict_midpoint(w, 2.0),
            4,
            5,
        ),
        (
            {"method": "plp", "plp_fit": "least_squares"},
            lambda w, _: reference.predict_least_squares(w, 1.0),
            3,
            4,
        ),
        (
            {"method": "lookahead", "lookahead_alpha": 0.25},
            lambda w, _: w[0] + 0.25 * (w[-1] - w[0]),
            5,
            5,
        ),
        ({"method": "average"}, lambda w, _: np.mean(w[1:], axis=0), 3, 4),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov"])
def test_methods_follow_their_definitions(fields, jump, k, period, optimizer):
    """L2 decay into the gradient, momentum, rate, and the method last."""
    expected = reference.train(
        W0,
        noisy_gradient,
        reference.MomentumSGD(0.05, 0.8, optimizer == "nesterov", 0.01),
        12,
        jump=jump,
        k=k,
        period=period,
    )
    tx = chain(optimizer=optimizer, momentum=0.8, weight_decay=0.01, **fields)
    np.testing.assert_allclose(run(tx, 12), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "optimizer", ["adam", "adamw", "rmsprop", "adagrad", "adadelta"]
)
def test_other_optimizers_lower_a_loss_and_decay_weights(optimizer):
    tx = chain(optimizer=optimizer, method="plp")
    w = jnp.array([1.0, -1.0])
    state = tx.init(w)
    for _ in range(20):
        updates, state = tx.update(2 * w, state, w)
        w = optax.apply_updates(w, updates)
    assert jnp.sum(w**2) < 2.0
    # Without a gradient only decay is left to move the weights.
    tx = chain(optimizer=optimizer, method="sgd", weight_decay=0.1)
    w = jnp.ones(2)
    updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
    assert jnp.all(updates < 0)
    tx = chain(optimizer=optimizer, method="sgd", weight_decay=0.0)
    updates, _ = tx.update(jnp.zeros(2), tx.init(w), w)
    assert not jnp.any(updates)


def test_the_chain_holds_one_window():
    state = chain(method="plp").init(jnp.zeros(3))
    (window,) = optax.tree.get(state, "window")
    assert jax.tree.map(jnp.shape, window) == (3,)
