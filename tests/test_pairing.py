"""From made-up runs to paired values."""

import math

import pytest

from experiments import pairing
from experiments.pairing import TEST_ACCURACY as ACCURACY
from experiments.pairing import VALIDATION_LOSS as LOSS
from experiments.sentences import target_conclusion
from tests.made_up import run, runs
from training.errors import RunError


def test_pairs_are_of_shared_seeds_that_finished():
    records = [
        run("plp", 8, test_accuracy=0.53),
        run("plp", 1, test_accuracy=0.51),
        run("plp", 2, diverged="loss is nan"),
        run("plp", 5, test_accuracy=0.55),  # the control was not run
        run("sgd", 1, test_accuracy=0.41),
        run("sgd", 2, test_accuracy=0.42),
        run("sgd", 8, test_accuracy=0.43),
        run("plp", 4, test_accuracy=0.54),
        run("sgd", 4, diverged="loss is nan"),
        run("sgd", 6, diverged="loss is nan"),  # nor here the arm
        run("sgd", 1, test_accuracy=0.1, model="vgg16"),
    ]
    found = pairing.paired(records, ACCURACY, "plp", "sgd", "resnet18")
    assert found.seeds == (1, 8)
    assert found.arm == pytest.approx((51, 53))
    assert found.control == pytest.approx((41, 43))
    assert found.diverged == (1, 1)
    compared = pairing.difference(records, ACCURACY, "plp", "sgd", "resnet18")
    assert compared.mean == pytest.approx(10)
    assert (compared.n, compared.diverged, compared.wins) == (2, (1, 1), 2)
    assert not pairing.paired(records, ACCURACY, "plp", "sgd", "googlenet").seeds


@pytest.mark.parametrize(
    ("metric", "entry", "better", "worse", "mean"),
    [
        (ACCURACY, "test_accuracy", 0.6, 0.5, 10),
        (LOSS, "validation_loss", 1.0, 1.5, -0.5),
    ],
)
def test_metrics_know_their_unit_and_direction(metric, entry, better, worse, mean):
    records = [
        run("plp", 0, **{entry: better}),
        run("sgd", 0, **{entry: worse}),
    ]
    found = pairing.difference(records, metric, "plp", "sgd", "resnet18")
    assert found.wins == 1
    assert found.mean == pytest.approx(mean)


def test_a_run_without_the_metric_is_an_error():
    records = [run("plp", 4, validation_loss=None), run("sgd", 4)]
    with pytest.raises(RunError, match=r"plp with seed 4 has no validation_loss"):
        pairing.paired(records, LOSS, "plp", "sgd", "resnet18")


def test_a_seed_that_ran_twice_is_an_error():
    records = [*runs("plp", [0.5, 0.6]), *runs("plp", [0.7]), *runs("sgd", [0.5])]
    with pytest.raises(RunError, match="two resnet18 runs of plp with seed 0"):
        pairing.paired(records, ACCURACY, "plp", "sgd", "resnet18")


# -- Epochs to a target --------------------------------------------------------------


def test_the_first_epoch_that_reaches_the_target():
    history = run("sgd", 0, curve=(0.1, None, 0.5, 0.4, 0.6)).history
    assert pairing.epochs_to_target(history, 0.5) == 3
    assert pairing.epochs_to_target(history, 0.1) == 1
    assert pairing.epochs_to_target(history, 0.55) == 5
    assert pairing.epochs_to_target(history, 0.7) is None
    assert pairing.epochs_to_target([], 0.7) is None


def test_the_target_is_the_controls():
    records = [
        run("sgd", 0, curve=(0.2, 0.6, 0.5)),
        run("sgd", 1, curve=(0.2, 0.4)),
        run("sgd", 2, curve=(0.9,), diverged="loss is nan"),
        run("plp", 0, curve=(0.9,)),
    ]
    assert pairing.target_accuracy(records, "sgd", "resnet18", 0.9) == (
        pytest.approx(0.45)
    )
    assert pairing.target_accuracy(records, "sgd", "vgg16") is None


def test_time_to_target_with_runs_that_never_reach_it():
    arm = [(0.5,), (0.1, 0.5), (0.1, 0.1), (0.1, 0.1), (0.1, 0.5)]
    control = [(0.1, 0.5), (0.1, 0.1), (0.5, 0.1), (0.1, 0.1), (0.1, 0.5)]
    records = [run("plp", s, curve=c) for s, c in enumerate(arm)]
    records += [run("sgd", s, curve=c) for s, c in enumerate(control)]
    found = pairing.time_to_target(records, "plp", "sgd", "resnet18", 0.5)
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)
    assert found.reached == (3, 3)
    assert found.median == (2, 2)
    assert found.p == 1  # two of three heads
    higher = pairing.time_to_target(records, "plp", "sgd", "resnet18", 0.6)
    assert (higher.reached, higher.ties, higher.p) == ((0, 0), 5, 1)
    assert higher.median == (math.inf, math.inf)
    nobody = pairing.time_to_target(records, "plp", "sgd", "vgg16", 0.5)
    assert (nobody.n, nobody.p) == (0, None)


def test_a_run_that_diverged_never_reaches_the_target():
    records = [run("sgd", s, curve=(0.1, 0.5)) for s in range(7)]
    records += [run("plp", s, curve=(0.3,), diverged="nan") for s in range(7)]
    found = pairing.time_to_target(records, "plp", "sgd", "resnet18", 0.5)
    assert (found.wins, found.losses, found.reached) == (0, 7, (0, 7))
    assert found.p == pytest.approx(2 / 2**7)
    told = target_conclusion("PLP", "SGD", found)
    assert "by PLP never (0 of 7 runs) and by SGD after 2 epochs (7 of 7 runs)" in told
    assert "later on 7 of 7 seeds (p = 0.016 in a sign test)" in told
