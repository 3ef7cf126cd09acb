"""The study of small batches: courses against NumPy, tuning, matched rates, text."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from experiments.predictors import batches, characters
from experiments.tuning import tune

STEPS = 20
CURVATURES = np.array([1.0, 4.0])


def quadratic():
    """A noisy quadratic in two dimensions, whose start and noise the seed sets."""

    def loss(params, noise):
        return (CURVATURES * params**2 / 2 + noise * params).sum()

    part = SimpleNamespace(
        init=lambda key: 1 + jax.random.uniform(key, (2,)),
        batch=lambda data, key: data * jax.random.normal(key, (2,)),
        loss=loss,
        evaluate=lambda params, data: loss(params, 0.0),
        data=lambda: jnp.asarray(0.1),
    )
    return batches.BatchSetup(part, optax.trace(0.5), (0.1, 0.2, 0.4), 2, lanes=3)


@pytest.fixture
def setups(monkeypatch):
    monkeypatch.setattr(batches, "SETUPS", {"quadratic": quadratic()})
    yield
    for cached in ("_compiled", "_data", "tune", "_group"):
        getattr(batches, cached).cache_clear()


def numpy_course(rate, seed, factors):
    """Heavy ball on the quadratic; the loss after every second step."""
    w = 1 + np.asarray(jax.random.uniform(jax.random.key(seed), (2,)), float)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), STEPS)
    velocity, losses = 0.0, []
    for step, (key, factor) in enumerate(zip(keys, factors, strict=True)):
        warm = min(1.0, (step + 1) * 1.0)  # one step of twenty
        down = 0.1 + 0.9 * (1 + np.cos(np.pi * step / (STEPS - 1))) / 2
        noise = 0.1 * np.asarray(jax.random.normal(key, (2,)))
        velocity = 0.5 * velocity + CURVATURES * w + noise
        w = w - rate * warm * down * factor * velocity
        losses.append((CURVATURES * w**2 / 2).sum())
    return np.array(losses)[1::2]


def test_courses_are_numpys(setups):
    rates, seeds = (0.1, 0.2, 0.1, 0.3), (0, 0, 5, 6)
    runs = batches.courses("quadratic", "base", rates, seeds, STEPS)
    for run, rate, seed in zip(runs, rates, seeds, strict=True):
        expected = numpy_course(rate, seed, np.ones(STEPS))
        np.testing.assert_allclose(run.losses, expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(run.drift, 1)


def test_tuning_continues_the_grid_and_matches_each_steps_drift(setups):
    tuned = batches.tune("quadratic", "ema", STEPS)
    means = [np.mean([course.last for course in courses]) for courses in tuned.runs]
    place = tuned.tried.index(tuned.value)
    assert place == np.argmin(means)
    assert 0 < place < len(tuned.tried) - 1
    matched = batches.train("quadratic", "ema", True, 4, STEPS)
    factors = 1 / (1 - 0.5 * (1 - np.arange(STEPS) / STEPS))
    expected = numpy_course(tuned.value, 4, factors)
    np.testing.assert_allclose(matched.losses, expected, rtol=1e-3, atol=1e-6)


def test_an_optimizer_takes_the_place_of_the_base(setups):
    """At the rate of each step, on gradients at its own parameters; its average."""
    rate, seed = 0.1, 3
    rates = np.float32(rate) * batches.multipliers("pace", 1.0, STEPS)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), STEPS)
    w = 1 + jax.random.uniform(jax.random.key(seed), (2,))
    state, losses = batches._pace(rate, STEPS).init(w), []
    for key, of_step in zip(keys, rates, strict=True):
        gradient = CURVATURES * w + 0.1 * jax.random.normal(key, (2,))
        tx = plp_optax.pace(of_step, b2=0.99, weight_decay=0.01)
        updates, state = tx.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        average = plp_optax.averaged_params(state, w)
        losses.append(float((CURVATURES * average**2 / 2).sum()))
    course, *_ = batches.courses("quadratic", "pace", [rate] * 3, [seed] * 3, STEPS)
    np.testing.assert_allclose(course.losses, losses[1::2], rtol=1e-4)


def test_a_grid_is_continued_until_the_best_is_within():
    for target, expected in ((50.0, [1, 10, 100, 1000]), (0.2, [0.01, 0.1, 1, 10])):
        tuned = tune(
            [1.0, 10.0],
            lambda rates, target=target: np.abs(np.log(np.array(rates) / target)),
            lambda cost: cost,
            is_continued=True,
        )
        np.testing.assert_allclose(tuned.tried, expected)


def test_a_constant_rate_does_not_fall():
    rates = batches.multipliers("tail-constant", 1.0, STEPS)
    np.testing.assert_allclose(rates, 1)  # one step of warm-up, which ends at the peak
    assert batches.multipliers("tail", 1.0, STEPS)[-1] < 0.2


def test_the_published_extrapolation_follows_the_learning_rate():
    rates = batches.multipliers("base", 1.0, 400)
    part = np.arange(1, 401) / 400  # the first step has the rate of the schedule's 1
    beta = np.asarray(batches._published(part))
    active = (part >= 0.16) & (part < 0.76)
    np.testing.assert_allclose(beta[active], 0.6 * rates[active], rtol=1e-4)
    assert not beta[~active].any()


@pytest.fixture
def promoting():
    with jax.numpy_rank_promotion("allow"):
        yield


def test_no_character_is_predicted_from_a_later_one(promoting):
    params = characters.init(jax.random.key(0))
    windows = characters.batch(characters.data(), jax.random.key(1))[:2, :-1]
    logits = characters.predict(params, windows)
    changed = characters.predict(params, windows.at[:, 20:].add(1))
    np.testing.assert_allclose(changed[:, :20], logits[:, :20], atol=1e-6)
    assert (abs(changed[:, 20:] - logits[:, 20:]).max(axis=-1) > 1e-4).all()
