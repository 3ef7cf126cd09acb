"""The study of image batches: chosen rates, drifts, matched arms."""

from pathlib import Path

import jax
import numpy as np
import pytest

import plp_optax
from experiments.comparisons import METRICS
from experiments.records import RecordFile
from experiments.reports import image_batches as report
from experiments.runs import Runs
from experiments.studies import image_batches
from experiments.studies.image_batches import METHODS, RATES, at_rate

TUNED = Path(__file__).parents[2] / "results" / "tune" / "image_batches"


@pytest.fixture(scope="module")
def tuned():
    file = RecordFile(TUNED)
    return Runs(image_batches.STUDY, file.read_header(), file.read())


def test_the_rates_are_those_that_tuning_found(tuned):
    for name, method in METHODS.items():
        losses = {
            rate: METRICS[1].read(run, ())
            for rate in RATES
            for run in tuned.finished("resnet18", at_rate(name, rate))
        }
        assert min(losses, key=losses.get) == method.rate, name
    assert {record.seed for record in tuned.records} == {image_batches.TUNING_SEED}


def test_the_table_of_rates_marks_a_rate_that_was_not_tried(tuned):
    file = RecordFile(TUNED)
    records = [r for r in file.read() if r.arm != at_rate("tail", RATES[0])]
    runs = Runs(image_batches.STUDY, file.read_header(), records)
    *_, table = report.sections(runs, [])
    cells = {r.split(" | ")[0]: r.split(" | ")[1:] for r in table.splitlines()}
    assert cells["| tail average"][0] == "-"
    assert cells["| tail average, constant rate"][0] != "-"


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
        "tail": plp_optax.tail_average(),
        "adaptive": plp_optax.adaptive_window(10, period=20),
    }
    for name, link in links.items():
        drift = emitted(link, 400 if name == "outer" else 80)
        assert METHODS[name].drift == pytest.approx(drift, rel=1e-3), name
    # The one that falls from 1 / (1 - 0.5) to 1 is above its mean, 2 log 2.
    assert 2 * np.log(2) < METHODS["ema"].drift < 2


def test_the_matched_arm_is_the_base_at_rate_times_drift():
    arms = {arm.name: arm for arm in image_batches.STUDY.arms}
    for name, method in METHODS.items():
        if name != method.base:
            control = arms[arms[name].matched]
            rate = pytest.approx(method.rate * method.drift, abs=1e-4)
            fields = METHODS[method.base].fields
            assert control.fields == {**fields, "learning_rate": rate}
            assert arms[name].baseline == method.base
