"""From made-up runs to comparisons: which runs are paired, and every metric's sign."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest

from experiments import markdown, table
from experiments.reports.plp import METRICS
from experiments.statistics import BETTER, NOT_SHOWN, TOO_FEW, UNCORRECTED, WORSE
from tests.support.reports import (
    diverge,
    make,
    run,
    table_of,
    tables_of,
)


def found_in(records, name):
    found = table.compare(table_of(records), METRICS)
    return found.filter(metric=name).rows(named=True)


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
    assert (found["model"], found["arm"], found["control"]) == ("tiny", "new", "old")
    assert (found["n"], found["up"], found["verdict"]) == (2, 2, TOO_FEW)
    assert (found["diverged"], found["control_diverged"]) == (1, 1)
    assert found["mean"] == pytest.approx(10)


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
    assert found["mean"] == pytest.approx(mean if is_better else -mean)
    assert found["verdict"] == (BETTER if is_better else WORSE)
    assert set(TWO_RUNS) == {metric.name for metric in METRICS}


def test_an_average_is_compared_in_place_of_the_parameters():
    averaged = {"test_accuracy": 0.5, "average_test_accuracy": 0.7}
    records = [run("new", 0, **averaged), run("old", 0, test_accuracy=0.5)]
    (found,) = found_in(records, "test_accuracy")
    assert found["mean"] == pytest.approx(20)


def test_an_interval_that_excludes_0_may_not_survive_the_correction():
    rng = np.random.default_rng(0)
    study, _, records = make("plp", seeds=8)
    for record in records:  # about p = 0.03 for period 4, nothing for the others
        record.result["test_accuracy"] = 0.5 + 1e-3 * rng.normal()
        if record.arm == "plp-4":
            record.result["test_accuracy"] += 1.15e-3
    found = table.compare(table_of(records, study))
    accuracy = found.filter(metric="test_accuracy")
    by_verdict = accuracy.filter(pl.col("p") <= 0.05, pl.col("corrected") > 0.05)
    assert len(by_verdict)
    assert set(by_verdict["verdict"]) == {UNCORRECTED}
    assert (by_verdict["low"] * by_verdict["high"] > 0).all()
    assert set(accuracy.filter(pl.col("p") > 0.05)["verdict"]) == {NOT_SHOWN}


def test_p_is_corrected_within_a_metric():
    study, _, records = make("plp", seeds=6)
    found = table.compare(table_of(records, study), METRICS)
    for _, tested in found.group_by("metric"):
        largest = tested.sort("p").row(-1, named=True)
        assert largest["corrected"] == pytest.approx(largest["p"])
        assert (tested["corrected"] >= tested["p"]).all()


# -- Epochs to a target ----------------------------------------------------------------


@pytest.mark.parametrize(("target", "epoch"), [(0.5, 3), (0.1, 1), (0.55, 5), (0.7, 6)])
def test_the_first_epoch_that_reaches_the_target_of_the_control(target, epoch):
    # The target is 95 % of the mean best accuracy of the control's runs.
    best = (target - 1e-9) / table.TARGET
    records = [
        run("new", 0, curve=(0.1, math.nan, 0.5, 0.4, 0.6)),
        run("old", 0, curve=(0.0, best + 0.1, best)),
        run("old", 1, curve=(0.0, best - 0.1)),
    ]
    metric = next(m for m in METRICS if m.name == "epochs_to_target")
    values = metric.values(table_of(records))
    (found,) = values.filter(arm="new", control="old")["value"]
    assert found == epoch


# -- Measures --------------------------------------------------------------------------


def test_measures_have_a_row_an_entry():
    measures = [{"step": [0, 8], "loss": [1, 0.5]}, {"step": [], "loss": []}, {}]
    records = [
        dataclasses.replace(run("new", seed), measures=of_run)
        for seed, of_run in enumerate(measures)
    ]
    records.append(dataclasses.replace(diverge(run("old", 0)), measures=measures[0]))
    loaded = table_of(records)
    kinds = {"step": pl.Int64, "loss": pl.Float64}
    found = loaded.long(**kinds)
    assert found.select("arm", "seed", *kinds).rows() == [
        ("new", 0, 0, 1.0),
        ("new", 0, 8, 0.5),
    ]
    assert len(loaded.long(finished=False, **kinds)) == 4
    assert found.schema == loaded.long(absent=pl.Int64, **kinds).drop("absent").schema


def test_a_network_that_is_asked_for_twice_is_one():
    records = [run(arm, 0, test_accuracy=0.5) for arm in ("new", "old")]
    loaded = table_of(records, models=("tiny", "vgg16", "tiny"))
    assert loaded.models == ("tiny",)
    assert len(table.compare(loaded)) == 1


# -- Markdown --------------------------------------------------------------------------


def test_a_metric_without_any_difference_becomes_a_sentence():
    records = [run(a, s, test_accuracy=0.5) for a in ("new", "old") for s in range(6)]
    records += [run(a, 0, test_accuracy=0.5, model="vgg16") for a in ("new", "old")]
    loaded = table_of(records)
    first, rule = markdown.comparisons(loaded, table.compare(loaded))
    assert first == "**Test accuracy**: all differences are 0, in all 2 comparisons."
    assert "not after correction" in rule
    found = table.compare(loaded).filter(model="tiny")
    first, _ = markdown.comparisons(loaded, found)
    assert first == "**Test accuracy**: all differences are 0, in one comparison."


def test_tables_leave_out_empty_columns_and_align_numbers():
    frame = pl.DataFrame({"a": ["x", "y"], "b": [None, None], "c": [0.12345, None]})
    text = markdown.write("Title", frame, {"a": "A", "b": "B", "c": ("C", 2)}, note="n")
    assert (
        text == "**Title**\n\n| A | C |\n| :-- | --: |\n| x | 0.12 |\n| y | - |\n\n*n*"
    )


def test_results_are_numpys_and_say_what_was_not_run():
    study, _, records = make("plp", arms=("sgd", "plp-4"), seeds=4)
    records[-1] = diverge(records[-1])
    (text,) = markdown.results(table_of(records, study))
    _, *rows = tables_of(text)["Results"]
    for row, arm in zip(rows, ("sgd", "plp-4"), strict=True):
        of_arm = [r.result for r in records if r.arm == arm and not r.diverged]
        values = [100 * result["test_accuracy"] for result in of_arm]
        assert row[1] == study.arm(arm).label
        assert row[2] == ("4" if arm == "sgd" else "3, 1 diverged")
        numbers = [float(part) for part in row[3].split(" ± ")]
        expected = [np.mean(values), np.std(values, ddof=1)]
        np.testing.assert_allclose(numbers, expected, atol=0.0051)
    assert "Not run on tiny: PLP, period 3; " in text
