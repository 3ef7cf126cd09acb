"""Every example runs, and what it trains works."""

import runpy
import unittest
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


def run(name, **arguments):
    return runpy.run_path(str(FOLDER / f"{name}.py"))["main"](**arguments)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("linen_loop", "flax"),
        pytest.param("nnx_loop", "flax", marks=pytest.mark.slow),
        pytest.param("equinox_loop", "equinox", marks=pytest.mark.slow),
    ],
)
def test_the_loops_learn_the_digits(name, package):
    pytest.importorskip(package)
    assert run(name) > 0.95


@pytest.mark.parametrize(
    "name", ["average_linen", pytest.param("average_nnx", marks=pytest.mark.slow)]
)
def test_averages_with_batch_norm_learn_the_digits(name):
    assert min(run(name)) > 0.95


def test_merged_checkpoints_are_better_than_the_last():
    losses = run("orbax_merge")
    assert min(losses, key=losses.get) != 0.05
    path = FOLDER / "orbax_merge.py"
    assert len(path.read_text().splitlines()) < 60


@pytest.mark.slow
def test_the_transformer_learns_to_sort():
    assert run("transformer", steps=80) > 0.4  # chance is about 0.15


def test_the_anderson_ends_closest_to_the_minimum():
    norms = run("full_batch")
    assert norms["Anderson"] < norms["Nesterov momentum"] / 10
    assert norms["Nesterov momentum"] < norms["gradient descent"]


def test_on_a_stream_the_filter_and_a_growing_network_learn_fastest():
    errors = run("stream")
    assert max(errors["EKF"], errors["growing network"]) < errors["SGD"] / 2
    assert max(errors["EKF"], errors["growing network"]) < errors["Adam"] / 2
    assert 10 < errors["units"] < 60  # it stops below its capacity


def test_amplification_selects_layers_by_their_scores():
    analyses = run("amplification")
    assert [a.layer for a in analyses] == ["head", "hidden0", "hidden1", "hidden2"]
    assert [a.amplified for a in analyses] == [a.z_score > 1 for a in analyses]
    assert any(a.amplified for a in analyses)


@pytest.mark.slow
def test_every_member_of_the_ensemble_learns():
    accuracies, together = run("ensemble")
    assert min(accuracies) > 0.93
    assert together > 0.95


@pytest.mark.slow
def test_the_chain_of_the_guide_passes_its_tests():
    case = runpy.run_path(str(FOLDER / "chain_test.py"))["ChainTest"]
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == 8
    assert not result.errors + result.failures


def test_examples_are_short():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text().splitlines()) < 100
