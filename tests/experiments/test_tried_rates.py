"""Studies whose methods train at the best of a few rates: rates, controls, arms."""

import ast
from pathlib import Path

import jax
import numpy as np
import polars as pl
import pytest

import plp_optax
from experiments import table
from experiments.reports.tried_rates import losses
from experiments.studies import head_to_head, image_batches, vanishing
from experiments.study import TUNING_SEEDS
from experiments.tried_rates import RecipeMethod, at_rate, compared
from training.settings.config import resolve

TUNED = Path(__file__).parents[2] / "results" / "tune"


@pytest.mark.parametrize("study", [image_batches, vanishing])
def test_the_rates_are_those_that_tuning_found(study):
    tuned = table.load(TUNED / study.STUDY.name)
    found = losses(tuned, study.METHODS).drop_nulls()
    of_most = pl.col("seeds") == pl.col("seeds").max().over("method")
    lowest = found.filter(of_most).sort("value").group_by("method").first()
    rates = dict(lowest.select("method", "rate").iter_rows())
    diverged = set(study.METHODS) - set(rates)
    assert rates == {n: m.rate for n, m in study.METHODS.items() if n not in diverged}
    # At every rate, each of which was tried.
    assert set(tuned.runs.filter(tuned.runs["diverged"])["arm"]) >= {
        at_rate(name, rate) for name in diverged for rate in study.METHODS[name].rates
    }
    assert set(tuned.runs["seed"]) <= set(TUNING_SEEDS)


def test_the_base_is_the_control_where_its_rate_is_the_matched_one():
    methods = {
        "base": RecipeMethod("base", 0.1, (0.1, 0.2)),
        "even": RecipeMethod(
            "even", 0.1, (), {"method": "plp"}, base="base", drift=1.0
        ),
        "half": RecipeMethod(
            "half", 0.2, (), {"method": "plp"}, base="base", drift=0.5
        ),
        "more": RecipeMethod(
            "more", 0.2, (), {"method": "plp"}, base="base", drift=1.5
        ),
    }
    arms = {arm.name: arm for arm in compared(methods)}
    assert set(arms) == {"base", "even", "half", "more", "more-matched"}
    assert [arms[n].matched for n in ("even", "half", "more")] == [
        "base",
        "base",
        "more-matched",
    ]
    assert arms["more-matched"].derived(None) == {"learning_rate": 0.3}


# -- Predictors on images --------------------------------------------------------------


def emitted(link, steps, u=1.0):
    """The mean emitted update, over the last half of equal updates."""
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
        assert image_batches.METHODS[name].drift == pytest.approx(drift, rel=1e-3), name
    # The one that falls from 1 / (1 - 0.5) to 1 is above its mean, 2 log 2.
    assert 2 * np.log(2) < image_batches.METHODS["ema"].drift < 2


# -- Every method on one network -------------------------------------------------------

ARMS = {arm.name: arm for arm in head_to_head.STUDY.arms}


def configure(name, scale="converged"):
    fields = head_to_head.STUDY.scale(scale).fields
    return head_to_head.STUDY.configure(
        fields, head_to_head.STUDY.scale(scale).models[0], ARMS[name]
    )


def test_methods_differ_from_their_base_in_their_own_settings_alone():
    for name, method in head_to_head.METHODS.items():
        if method.base is None:
            continue
        ours, theirs = configure(name), configure(method.base)
        differing = {k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)}
        own = {*method.fields, *head_to_head.METHODS[method.base].fields, "method"}
        if name == "constant":  # has a rate of its own, and averages
            own |= {"learning_rate", "precise_bn"}
        assert differing <= own, name


def test_amplified_and_their_control_follow_the_papers_strategy():
    stages = ast.literal_eval(configure("noop")["strategy"])
    epochs = head_to_head.STUDY.scale("converged").fields["epochs"]
    rate = head_to_head.METHODS["noop"].rate
    assert [stage[0] for stage in stages] == [
        round(end * epochs / 150) for end in (50, 100, 130, 150)
    ]
    assert [stage[1] for stage in stages] == pytest.approx(
        [rate, rate, rate / 10, rate / 10]
    )
    assert [bool(stage[2]) for stage in stages] == [False, True, True, False]
    for name in ("g2-case1", "random", "all"):
        assert configure(name)["strategy"] == configure("noop")["strategy"]


def test_batch_statistics_are_computed_in_the_same_way_on_both_sides():
    assert {
        resolve(configure(arm.name)).precise_bn for arm in head_to_head.STUDY.arms
    } == {16}


# -- Vanishing gradients ---------------------------------------------------------------


@pytest.mark.parametrize("scale", ["quick", "small", "full"])
def test_all_arms_have_the_same_epochs(scale):
    """End to end, in all stages together, and in strategies."""
    scale = vanishing.STUDY.scale(scale)
    total = {"quick": 39, "small": 26, "full": 130}[scale.name]
    for name in scale.arms:
        fields = vanishing.STUDY.configure(
            scale.fields, "vgg16", vanishing.STUDY.arm(name)
        )
        if "cascade" in fields:
            spent = 13 * fields.get("cascade_epochs", 10)
        elif "strategy" in fields:
            ((spent, rate, _, factor),) = ast.literal_eval(fields["strategy"])
            assert rate == vanishing.METHODS[name].rate
            assert factor == fields["amplify_factor"]
        else:
            spent = fields.get("epochs", 30)
        assert spent == total, name


def test_early_layers_are_the_first_half():
    fields = vanishing.STUDY.configure(
        {"dataset": "digits"}, "vgg29", vanishing.STUDY.arm("early-10-alone")
    )
    names = fields["amplify_select"].split(",")
    assert len(names) == 13
    assert (names[0], names[-1]) == ("stage1/conv1", "stage3/conv5")
