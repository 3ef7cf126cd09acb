"""The study of sequential learning: its arms, their tuning, records and report."""

import numpy as np
import pytest

from experiments import markdown, report, table
from experiments.records import Record
from experiments.reports import sequential as sequential_report
from experiments.sequential import arms
from experiments.studies import sequential
from tests.support import reports
from training.errors import DivergedError

SETUP = "mackey-glass-17"
SAMPLES = [10 * (i + 1) for i in range(50)]


def curve(error, units=5):
    samples = np.array(SAMPLES)
    error = np.broadcast_to(np.asarray(error, float), samples.shape)
    return arms.Curve(samples, error, np.full(50, units), 0)


def tick(part, text):
    pass


@pytest.fixture
def one_candidate(monkeypatch):
    """Tuning in no time; and what it has cached is forgotten."""
    first = {n: a._replace(candidates=(0.1,)) for n, a in arms.ALGORITHMS.items()}
    monkeypatch.setattr(arms, "ALGORITHMS", first)
    monkeypatch.setattr(arms, "TUNING_SEEDS", (1000,))
    for cached in (arms.tune, arms._grown_units):
        cached.cache_clear()
    yield
    for cached in (arms.tune, arms._grown_units):
        cached.cache_clear()


def test_final_error_is_of_the_last_tenth():
    error = np.where(np.arange(50) < 45, 9.0, np.arange(50))  # 460 to 500 samples
    assert curve(error).final_error == 47
    assert curve(np.nan).final_error == np.inf


def test_tuning_takes_the_lowest_error(monkeypatch):
    asked = []

    def learn(setup, seed, value):
        asked.append((seed, value))
        return curve(np.inf if value == 3 else (value - 2) ** 2 + seed / 1000)

    algorithm = arms.Algorithm("made up", learn, "rate", (1.0, 2.5, 3.0))
    monkeypatch.setitem(arms.ALGORITHMS, "made-up", algorithm)
    tuned = arms.tune("made-up", "mackey-glass-17-noisy")
    assert tuned.value == 2.5
    assert tuned.runs == pytest.approx([2.001, 1.251, np.inf])
    assert len(asked) == 9


def test_a_fixed_network_has_units_at_inputs():
    inputs = np.random.default_rng(0).normal(size=(40, 3))
    network = arms.fixed_network(inputs, units=5, capacity=8, seed=1)
    assert network.active.tolist() == 5 * [True] + 3 * [False]
    centers = np.asarray(network.params.centers[:5])
    distances = np.linalg.norm(centers[:, None] - inputs[None], axis=2)
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-6)
    assert len(set(distances.argmin(axis=1))) == 5
    i, j = np.triu_indices(40, 1)
    median = np.median(np.linalg.norm(inputs[i] - inputs[j], axis=1))
    np.testing.assert_allclose(network.widths, median / 2, rtol=1e-6)


@pytest.mark.usefixtures("one_candidate")
def test_a_run_leaves_its_record():
    config = {"algorithm": "ran-lms", "model": SETUP, "seed": 0}
    result, history, measures = sequential.execute(config, tick)
    assert [point["samples"] for point in history] == SAMPLES
    units = [point["units"] for point in history]
    assert units == sorted(units)
    assert result["units"] == units[-1] > 5
    last = [point["test_error"] for point in history[-5:]]
    assert result["test_error"] == pytest.approx(np.mean(last), rel=1e-3)
    assert result["test_error"] < 0.1
    assert measures["candidates"] == [0.1]


def test_kernel_ridge_is_fitted_to_what_was_seen():
    """At the last point it is the closed form on all samples."""
    found = arms.ALGORITHMS["kernel-ridge"].learn(SETUP, 3, 0.1)
    stream = arms.load(SETUP, 3)
    x = np.concatenate([stream.inputs, stream.test_inputs])
    squares = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    i, j = np.triu_indices(500, 1)
    kernel = np.exp(-squares / np.median(squares[i, j]))
    y = stream.targets - stream.targets[0]
    weights = np.linalg.solve(kernel[:500, :500] + 0.1 * np.eye(500), y)
    expected = stream.targets[0] + kernel[500:, :500] @ weights
    error = np.mean((expected - stream.test_targets) ** 2) / stream.test_targets.var()
    assert found.error[-1] == pytest.approx(error)


def test_divergence_is_reported(monkeypatch):
    config = {"algorithm": "ran-lms", "model": SETUP, "seed": 1}
    tuned = arms.Tuned(0.4, [0.4], [1.0])
    monkeypatch.setattr(arms, "learn", lambda *_: (curve(np.nan), tuned))
    with pytest.raises(DivergedError, match=r"0\.4"):
        sequential.execute(config, tick)


# -- The report ------------------------------------------------------------------------


def record(arm, seed, error, units):
    history = [
        {"samples": n, "test_error": e} for n, e in zip(SAMPLES, error, strict=True)
    ]
    if arm.startswith("ran"):
        history = [{**point, "units": units} for point in history]
    return Record(
        arm,
        SETUP,
        seed,
        {"algorithm": arm, "model": SETUP, "seed": seed},
        {
            "test_error": float(np.mean(error[-5:])),
            "mean_error": float(np.mean(error)),
            **{"units": units, "refused": 0, "chosen": 0.1},
        },
        history,
        {"candidates": [0.1, 0.2], "errors": [0.5, -1]},
    )


def test_report_has_signs_and_verdicts_right():
    """RAN-EKF has a quarter of the error and ten units fewer."""
    falling = np.geomspace(1, 0.1, 50)
    records = []
    for seed in range(6):
        e = falling * (1 + seed / 100)
        records.append(record("ran-lms", seed, e, 30 + seed))
        records.append(record("ran-ekf", seed, e / 4, 20 + seed))
    made = reports.table_of(records, sequential.STUDY, (SETUP,))
    metrics = report.own(sequential.STUDY).metrics
    found = table.compare(made, metrics)
    ratio, units, samples = found.rows(named=True)
    for row in (ratio, units, samples):
        assert (row["verdict"], row["n"], row["down"]) == ("better", 6, 6)
    assert np.exp(ratio["mean"]) == pytest.approx(0.25)
    assert units["mean"] == pytest.approx(-10)
    target = np.mean(falling[-5:])
    ours = SAMPLES[int(np.argmax(falling / 4 <= target))]
    theirs = SAMPLES[int(np.argmax(falling <= target))]
    assert samples["mean"] == pytest.approx(ours - theirs)
    text = "".join(markdown.comparisons(made, found, metrics))
    assert "Final test error: arm / control (lower is better)" in text
    assert "0.1: 0.5; 0.2: diverged" in sequential_report._tuning(made)


def test_a_run_that_never_gets_there_counts_as_one_point_more():
    records = [
        record("ran-lms", 0, np.linspace(1, 0.01, 50), 3),
        record("ran-ekf", 0, np.linspace(1, 0.5, 50), 3),
    ]
    values = sequential_report._samples(
        reports.table_of(records, sequential.STUDY, (SETUP,))
    )
    assert values.filter(arm="ran-ekf", control="ran-lms")["value"].item() == 510
