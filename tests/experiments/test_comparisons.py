"""From made-up runs to comparisons: which runs are paired, and every metric's sign."""

import math

import pytest

from experiments.comparisons import METRICS, compare_all, epochs_to, target_accuracy
from experiments.statistics import BETTER, TOO_FEW, WORSE
from tests.support.reports import make, run, runs_of, without_validation
from training.errors import RunError

METRIC = {metric.name: metric for metric in METRICS}


def found_in(records, name):
    return [c for c in compare_all(runs_of(records)) if c.metric.name == name]


def test_pairs_are_of_shared_seeds_that_finished():
    records = [
        run("new", 8, test_accuracy=0.53),
        run("new", 1, test_accuracy=0.51),
        run("new", 2, diverged="loss is nan"),
        run("new", 5, test_accuracy=0.55),  # the control was not run
        run("old", 1, test_accuracy=0.41),
        run("old", 2, test_accuracy=0.42),
        run("old", 8, test_accuracy=0.43),
        run("new", 4, test_accuracy=0.54),
        run("old", 4, diverged="loss is nan"),
        run("old", 6, diverged="loss is nan"),  # the arm was not run
        run("old", 1, test_accuracy=0.1, model="vgg16"),
    ]
    (found,) = found_in(records, "test_accuracy")
    assert (found.model, found.arm, found.control) == ("tiny", "new", "old")
    d = found.difference
    assert (d.n, d.wins, found.diverged) == (2, 2, (1, 1))
    assert d.mean == pytest.approx(10)
    assert d.verdict == TOO_FEW


# A run that is good in one metric, and one that is not; the difference good - bad.
TWO_RUNS = {
    "test_accuracy": ({"test_accuracy": 0.6}, {"test_accuracy": 0.5}, 10.0),
    "validation_loss": ({"validation_loss": 1.0}, {"validation_loss": 1.5}, -0.5),
    "best_epoch": (
        {"validation_loss": 1.0, "best_epoch": 3},
        {"validation_loss": 1.0, "best_epoch": 7},
        -4.0,
    ),
    "epochs_to_target": (
        {"curve": (0.1, 0.9, 0.9, 0.9)},
        {"curve": (0.1, 0.1, 0.1, 0.9)},
        -2.0,
    ),
}


@pytest.mark.parametrize("name", TWO_RUNS)
@pytest.mark.parametrize("is_better", [True, False])
def test_every_metric_has_its_sign_and_direction(name, is_better):
    good, bad, mean = TWO_RUNS[name]
    new, old = (good, bad) if is_better else (bad, good)
    entries = {"best_epoch": 1}
    records = [run("new", s, **{**entries, **new}) for s in range(6)]
    records += [run("old", s, **{**entries, **old}) for s in range(6)]
    (found,) = found_in(records, name)
    d = found.difference
    assert d.mean == pytest.approx(mean if is_better else -mean)
    assert (d.wins, d.losses) == ((6, 0) if is_better else (0, 6))
    assert d.verdict == (BETTER if is_better else WORSE)
    assert set(TWO_RUNS) == set(METRIC)


def test_without_a_validation_part_the_test_set_is_compared_alone():
    study, _, records = make("plp", arms=("sgd", "plp-4"))
    runs = runs_of([without_validation(r) for r in records], study)
    assert {c.metric.name for c in compare_all(runs)} == {"test_accuracy"}
    assert len({c.metric for c in compare_all(runs_of(records, study))}) == 4


def test_where_all_runs_diverge_the_comparison_still_appears():
    records = [run("new", s, diverged="nan") for s in range(3)]
    records += [run("old", s, test_accuracy=0.5) for s in range(3)]
    (found,) = compare_all(runs_of(records))
    assert (found.difference.n, found.diverged) == (0, (3, 0))


def test_p_is_corrected_within_a_metric():
    study, _, records = make("plp", seeds=6)
    found = compare_all(runs_of(records, study))
    for metric in METRICS:
        tested = [c.difference for c in found if c.metric is metric]
        largest = max(tested, key=lambda d: d.p)
        assert largest.corrected_p == pytest.approx(largest.p)
        assert all(d.corrected_p >= d.p for d in tested)


def test_a_seed_that_ran_twice_is_an_error():
    records = [run("new", 0), run("new", 1), run("new", 0)]
    with pytest.raises(RunError, match="two tiny runs of new with seed 0"):
        runs_of(records)


# -- Epochs to a target ----------------------------------------------------------------


@pytest.mark.parametrize(("target", "epoch"), [(0.5, 3), (0.1, 1), (0.55, 5), (0.7, 6)])
def test_the_first_epoch_that_reaches_the_target(target, epoch):
    assert epochs_to(run("old", 0, curve=(0.1, math.nan, 0.5, 0.4, 0.6)), target) == (
        epoch
    )


def test_the_target_is_95_percent_of_the_mean_best_accuracy():
    controls = [run("old", 0, curve=(0.2, 0.6, 0.5)), run("old", 1, curve=(0.2, 0.4))]
    assert target_accuracy(controls) == pytest.approx(0.95 * 0.5)
    assert target_accuracy([]) is None
    assert target_accuracy([run("old", 0, curve=())]) is None


def test_the_arms_own_accuracy_does_not_move_the_target():
    slow = [run("old", s, curve=(0.1, 0.2, 0.4)) for s in range(5)]
    fast = [run("new", s, curve=(0.39, 0.5, 0.9)) for s in range(5)]
    (found,) = found_in([*slow, *fast], "epochs_to_target")
    assert found.difference.mean == pytest.approx(-2)
