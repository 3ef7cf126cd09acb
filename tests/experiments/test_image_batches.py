"""The study of image batches: chosen rates, drifts, matched arms."""

from pathlib import Path

import jax
import numpy as np
import pytest

import plp_optax
from experiments import table
from experiments.reports.tried_rates import losses
from experiments.studies import image_batches
from experiments.studies.image_batches import METHODS
from experiments.tried_rates import TUNING_SEED

TUNED = Path(__file__).parents[2] / "results" / "tune" / "image_batches"


def test_the_rates_are_those_that_tuning_found():
    tuned = table.load(TUNED)
    found = losses(tuned, METHODS).drop_nulls()
    lowest = found.sort("value").group_by("method").first()
    rates = dict(lowest.select("method", "rate").iter_rows())
    assert rates == {name: method.rate for name, method in METHODS.items()}
    assert set(tuned.runs["seed"]) == {TUNING_SEED}


def emitted(link, steps, u=1.0):
    """What a transformation makes of equal updates, mean of the last half."""
    with jax.enable_x64(True):
        state, found, update = link.init(np.zeros(1)), [], jax.jit(link.update)
        for _ in range(steps):
            x, state = update(np.full(1, u), state)
            found.append(float(x[0]))
    return np.mean(found[steps // 2 :])


def test_drifts_are_those_of_steady_updates():
    lookahead = plp_optax.lookahead_coefficients(5, 0.5)
    links = {
        "lookahead": plp_optax.affine_window(lookahead, period=5),
        "outer": plp_optax.outer_nesterov(0.7, momentum=0.5, period=10),
        "adaptive": plp_optax.anderson(10, period=20),
    }
    for name, link in links.items():
        drift = emitted(link, 400 if name == "outer" else 80)
        assert METHODS[name].drift == pytest.approx(drift, rel=1e-3), name
    # The one that falls from 1 / (1 - 0.5) to 1 is above its mean, 2 log 2.
    assert 2 * np.log(2) < METHODS["ema"].drift < 2


def test_the_matched_arm_is_the_base_at_rate_times_drift():
    arms = {arm.name: arm for arm in image_batches.STUDY.arms}
    for name, method in METHODS.items():
        if method.base is not None:
            control = arms[arms[name].matched]
            rate = pytest.approx(method.rate * method.drift, abs=1e-4)
            assert control.derived(None) == {"learning_rate": rate}
            assert control.fields == METHODS[method.base].fields
            assert arms[name].baseline == method.base
