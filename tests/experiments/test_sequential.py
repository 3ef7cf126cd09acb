"""The study of sequential learning: its arms, their tuning, records and report."""

import numpy as np
import pytest

from experiments import report, studies
from experiments.records import Header, Record
from experiments.reports.sequential import samples_to
from experiments.sequential import arms
from experiments.studies import sequential
from training.errors import ConfigError, DivergedError

SETUP = "mackey-glass-17"
SAMPLES = [10 * (i + 1) for i in range(50)]


def curve(error, units=5):
    samples = np.array(SAMPLES)
    error = np.broadcast_to(np.asarray(error, float), samples.shape)
    predictions = np.zeros((len(samples), 50))
    return arms.Curve(samples, error, np.full(50, units), predictions, 0, 0.1)


def tick(part, text):
    pass


@pytest.fixture
def one_candidate(monkeypatch):
    """Tuning in no time; and what it has cached is forgotten."""
    first = {n: a._replace(candidates=(0.1,)) for n, a in arms.ALGORITHMS.items()}
    monkeypatch.setattr(arms, "ALGORITHMS", first)
    monkeypatch.setattr(arms, "TUNING_SEEDS", (1000,))
    for cached in (arms.tune, arms._compile, arms._grown_units):
        cached.cache_clear()
    yield
    for cached in (arms.tune, arms._compile, arms._grown_units):
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

    algorithm = arms.Algorithm(learn, "rate", (1.0, 2.5, 3.0))
    monkeypatch.setitem(arms.ALGORITHMS, "made-up", algorithm)
    value, errors = arms.tune("made-up", "mackey-glass-17-public")
    assert value == 2.5
    assert errors == pytest.approx((2.001, 1.251, np.inf))
    assert len(asked) == 9
    assert arms.tune("made-up", "mackey-glass-17-noisy").errors is errors


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
    assert measures["fit"]["samples"] == list(sequential.FITS_AFTER)
    assert np.shape(measures["fit"]["predictions"]) == (3, 50)


def test_kernel_ridge_is_fitted_to_what_was_seen():
    """At the last point it is the closed form on all samples."""
    found = arms.ALGORITHMS["kernel-ridge"].learn(SETUP, 3, 0.1)
    stream = arms.streams.load(SETUP, 3)
    x = np.concatenate([stream.inputs, stream.test_inputs])
    squares = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    i, j = np.triu_indices(500, 1)
    kernel = np.exp(-squares / np.median(squares[i, j]))
    y = stream.targets - stream.targets[0]
    weights = np.linalg.solve(kernel[:500, :500] + 0.1 * np.eye(500), y)
    expected = stream.targets[0] + kernel[500:, :500] @ weights
    np.testing.assert_allclose(found.predictions[-1], expected, rtol=1e-9)
    error = np.mean((expected - stream.test_targets) ** 2) / stream.test_targets.var()
    assert found.error[-1] == pytest.approx(error)


def test_divergence_and_unknown_setups_are_reported(monkeypatch):
    config = {"algorithm": "ran-lms", "model": "lorenz", "seed": 1}
    with pytest.raises(ConfigError, match=r"lorenz.*diabetes"):
        sequential.execute(config, tick)
    tuned = arms.Tuned(0.4, (1.0,))
    monkeypatch.setattr(arms, "learn", lambda *_: (curve(np.nan), tuned))
    with pytest.raises(DivergedError, match=r"0\.4"):
        sequential.execute({**config, "model": SETUP}, tick)


# -- The report ------------------------------------------------------------------------


def record(arm, seed, error, units):
    history = [
        {"samples": n, "test_error": e} for n, e in zip(SAMPLES, error, strict=True)
    ]
    if arm.startswith("ran"):
        history = [{**point, "units": units} for point in history]
    fit = {"samples": [50, 150, 350], "predictions": [[1.0] * 50] * 3}
    return Record(
        arm,
        SETUP,
        seed,
        {"algorithm": arm, "model": SETUP, "seed": seed},
        {
            "test_error": float(np.mean(error[-5:])),
            "mean_error": float(np.mean(error)),
            **{"units": units, "refused": 0, "seconds": 0.5, "chosen": 0.1},
        },
        history,
        {"candidates": [0.1, 0.2], "errors": [0.5, -1], "fit": fit},
    )


def test_samples_to_a_target():
    run = record("ran-ekf", 0, np.linspace(1, 0.02, 50), 3)
    assert samples_to(run, 0.5) == 260  # 1 - 0.02 i at 10 (i + 1)
    assert samples_to(run, 0.01) == 510


def test_report_has_signs_and_verdicts_right(tmp_path, monkeypatch):
    """RAN-EKF has a quarter of the error and ten units fewer."""
    monkeypatch.setattr(report, "_save", lambda figure, path: path.touch())
    falling = np.geomspace(1, 0.1, 50)
    records = []
    for seed in range(6):
        e = falling * (1 + seed / 100)
        records.append(record("ran-lms", seed, e, 30 + seed))
        records.append(record("ran-ekf", seed, e / 4, 20 + seed))
    study = studies.load("sequential")
    text = report.write(
        study, Header("sequential", "quick", [SETUP], {}), records, tmp_path
    ).read_text()
    rows, header = [], []
    for line in text.splitlines():
        cells = line.strip("| ").split(" | ")
        header = cells if cells[0] == "stream" else header
        if cells[1:3] == ["RAN-EKF", "RAN-LMS"]:
            rows.append(dict(zip(header, cells, strict=True)))
    ratio, units, samples = rows
    for row in rows:
        assert row["verdict"] == "**better**"
        assert row["pairs"] == "6"
        assert row["better / tied / worse"] == "6 / 0 / 0"
    assert (ratio["ratio"], units["difference"]) == ("0.25", "-10.0")
    target = np.mean(falling[-5:])
    ours = SAMPLES[int(np.argmax(falling / 4 <= target))]
    theirs = SAMPLES[int(np.argmax(falling <= target))]
    assert samples["difference"] == f"{ours - theirs:+d}"
    assert "0.1: 0.5; 0.2: diverged" in text
    assert (tmp_path / "figures" / f"growth-{SETUP}.png").exists()
