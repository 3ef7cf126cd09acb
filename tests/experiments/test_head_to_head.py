"""The study of all methods on one network: controls, strategies, evaluation."""

import ast

import pytest

from experiments.studies.head_to_head import METHODS, STUDY
from experiments.tried_rates import Method, compared
from training.settings.config import resolve

ARMS = {arm.name: arm for arm in STUDY.arms}


def configure(name, scale="converged"):
    fields = STUDY.scale(scale).fields
    return STUDY.configure(fields, STUDY.scale(scale).models[0], ARMS[name])


def test_methods_differ_from_their_base_in_their_own_settings_alone():
    for name, method in METHODS.items():
        if method.base is None:
            continue
        ours, theirs = configure(name), configure(method.base)
        differing = {k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k)}
        own = {*method.fields, *METHODS[method.base].fields, "method"}
        if name == "constant":  # has a rate of its own, and averages
            own |= {"learning_rate", "precise_bn"}
        assert differing <= own, name


def test_amplified_and_their_control_follow_the_papers_strategy():
    stages = ast.literal_eval(configure("noop")["strategy"])
    epochs = STUDY.scale("converged").fields["epochs"]
    rate = METHODS["noop"].rate
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
    assert {resolve(configure(arm.name)).precise_bn for arm in STUDY.arms} == {16}


def test_the_base_is_the_control_where_its_rate_is_the_matched_one():
    methods = {
        "base": Method("base", 0.1, (0.1, 0.2)),
        "even": Method("even", 0.1, (), {"method": "plp"}, base="base", drift=1.0),
        "half": Method("half", 0.2, (), {"method": "plp"}, base="base", drift=0.5),
        "more": Method("more", 0.2, (), {"method": "plp"}, base="base", drift=1.5),
    }
    arms = {arm.name: arm for arm in compared(methods)}
    assert set(arms) == {"base", "even", "half", "more", "more-matched"}
    assert [arms[n].matched for n in ("even", "half", "more")] == [
        "base",
        "base",
        "more-matched",
    ]
    assert arms["more-matched"].derived(None) == {"learning_rate": 0.3}
