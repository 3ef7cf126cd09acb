"""The study of vanishing gradients: arms, rates and the table of norms."""

import ast
from pathlib import Path

import pytest

from experiments import table
from experiments.reports.tried_rates import losses
from experiments.studies.vanishing import METHODS, STUDY
from experiments.tried_rates import TUNING_SEED, at_rate

TUNED = Path(__file__).parents[2] / "results" / "tune" / "vanishing"


def test_the_rates_are_those_that_tuning_found():
    tuned = table.load(TUNED)
    found = losses(tuned, METHODS).drop_nulls()
    lowest = found.sort("value").group_by("method").first()
    rates = dict(lowest.select("method", "rate").iter_rows())
    diverged = set(METHODS) - set(rates)
    assert rates == {n: m.rate for n, m in METHODS.items() if n not in diverged}
    # At every rate, each of which was tried.
    assert set(tuned.runs.filter(tuned.runs["diverged"])["arm"]) >= {
        at_rate(name, rate) for name in diverged for rate in METHODS[name].rates
    }
    assert set(tuned.runs["seed"]) == {TUNING_SEED}


@pytest.mark.parametrize("scale", ["quick", "small", "full"])
def test_all_arms_have_the_same_epochs(scale):
    """End to end, in all stages together, and in strategies."""
    scale = STUDY.scale(scale)
    total = {"quick": 39, "small": 26, "full": 130}[scale.name]
    for name in scale.arms:
        fields = STUDY.configure(scale.fields, "vgg16", STUDY.arm(name))
        if "cascade" in fields:
            spent = 13 * fields.get("cascade_epochs", 10)
        elif "strategy" in fields:
            ((spent, rate, _, factor),) = ast.literal_eval(fields["strategy"])
            assert rate == METHODS[name].rate
            assert factor == fields["amplify_factor"]
        else:
            spent = fields.get("epochs", 30)
        assert spent == total, name


def test_early_layers_are_the_first_half():
    fields = STUDY.configure(
        {"dataset": "digits"}, "vgg29", STUDY.arm("early-10-alone")
    )
    names = fields["amplify_select"].split(",")
    assert len(names) == 13
    assert (names[0], names[-1]) == ("stage1/conv1", "stage3/conv5")
