"""The study of predictors: descents against NumPy, counting, tuning, matched rates."""

import jax
import numpy as np
import optax
import pytest

import plp_optax
from experiments.predictors import descent
from experiments.predictors.problems import DECAY, PROBLEMS
from experiments.studies import predictors

STEPS = 12
MODEL = "logistic-cancer"


def numpy_descent(rate, momentum, steps):
    """Nesterov's descent of logistic regression; values at each gradient."""
    with jax.enable_x64(True):
        x, y = map(np.asarray, PROBLEMS[MODEL](3).data)
    w, velocity, values = np.zeros((x.shape[1], 2)), 0.0, []
    for _ in range(steps):
        logits = x @ w
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        values.append(-np.log((p * y).sum(axis=1)).mean() + DECAY / 2 * (w**2).sum())
        gradient = x.T @ (p - y) / len(x) + DECAY * w
        velocity = momentum * velocity + gradient
        w = w - rate * (gradient + momentum * velocity)
    return np.array(values)


def test_descends_as_numpy_does():
    settings = [(0.1, 0.9), (0.3, 0.95)]
    runs = descent.descend(MODEL, "nesterov", 3, *zip(*settings, strict=True), STEPS)
    for run, (rate, momentum) in zip(runs, settings, strict=True):
        expected = numpy_descent(rate, momentum, STEPS)
        np.testing.assert_allclose(
            run.gap - run.gap[0], expected - expected[0], rtol=1e-9, atol=1e-12
        )
        np.testing.assert_array_equal(run.gradients, np.arange(STEPS))
        np.testing.assert_allclose(run.drift, 1)


def test_counts_gradients_to_a_gap():
    run = descent.Descent(np.array([0, 2, 5, 6]), np.array([1.0, 0.2, 0.3, 0.01]), 1.0)
    assert [run.to(gap) for gap in (2.0, 0.2, 0.05, 1e-3)] == [0, 2, 6, None]


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("model", ["logistic-digits", "logistic-cancer"])
def test_the_default_regularization_is_measured(model, x64):
    """The sliding window's: of a grid, it is among the best in the gap that is left."""
    with jax.enable_x64(True):
        minimum = descent.problem_of(model, 0)[1]
        rate = 2 / descent.curvature(model)

    def lowest(strength):
        tx = optax.chain(
            optax.sgd(rate), plp_optax.anderson(11, regularization=strength)
        )

        def step(carry, _):
            w, state = carry
            value, gradient = jax.value_and_grad(problem.loss)(w, problem.data)
            updates, state = tx.update(gradient, state, w)
            return (optax.apply_updates(w, updates), state), value

        carry = (problem.start, tx.init(problem.start))
        return float(jax.lax.scan(step, carry, length=200)[1].min()) - minimum

    with jax.enable_x64(x64):
        problem = PROBLEMS[model](0)
        gaps = {strength: lowest(strength) for strength in (1e-10, 1e-7, 1e-3, 1e-2)}
        assert lowest(None) < 1.1 * min(gaps.values()) + 1e-6
        assert lowest(None) == lowest(1e-5)


def test_matched_arm_runs_the_base_at_rate_times_drift():
    config = {"model": MODEL, "seed": 3, "method": "ema", "steps": STEPS}
    tuned = descent.tune(MODEL, "ema", STEPS)
    outcome = predictors.execute({**config, "matched": True}, lambda part, text: None)
    rate = tuned.value / (1 - 0.5)
    np.testing.assert_allclose(outcome.result["learning_rate"], rate, rtol=1e-3)
    expected = numpy_descent(rate, 0.0, STEPS)
    gaps = [point["gap"] for point in outcome.history]
    np.testing.assert_allclose(
        gaps[0] - gaps[-1], expected[0] - expected.min(), rtol=1e-2
    )
