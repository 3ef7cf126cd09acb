"""Studies as declared: the runs they plan, their controls, and what is compared."""

import dataclasses
from itertools import combinations, groupby, pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import studies
from experiments.rates import stages
from experiments.records import Record
from experiments.study import Arm, Comparison, Scale, Study, missing
from training.errors import ConfigError
from training.settings import config as config_lib

TINY = {"width": 2, "epochs": 1, "batch_size": 128, "validation_fraction": 0.2}
SGD = Arm("sgd", "SGD", {})
PLP = Arm("plp", "PLP", {"method": "plp"}, baseline="sgd")
ALL_SCALES = [
    (name, scale.name) for name in studies.NAMES for scale in studies.load(name).scales
]


def study_of(*arms, **attributes):
    """A study of these arms on a tiny network."""
    scale = Scale("small", models=("tiny",), seeds=2, fields=TINY)
    attributes = {"fields": {"method": "sgd"}, "scales": (scale,), **attributes}
    return Study("made-up", "title", "question?", arms=arms, **attributes)


def complete(config):
    """The complete configuration that a record's stands for."""
    return config_lib.resolve(config)


def configure(study, scale, model, arm):
    config = study.configure(study.scale(scale).fields, model, study.arm(arm))
    return SimpleNamespace(**config_lib.fields(complete(config)))


# -- What is planned -------------------------------------------------------------------


def test_arms_that_are_compared_follow_each_other():
    late = dataclasses.replace(PLP, name="late", group="sweep")
    scale = Scale("small", models=("vgg16", "tiny"), seeds=3, fields=TINY)
    order = [
        (t.arm.group, t.model, t.seed, t.arm.name)
        for t in study_of(SGD, late, PLP).tasks(scale)
    ]
    assert order == [
        *(
            ("", model, seed, arm)
            for model in ("vgg16", "tiny")
            for seed in range(3)
            for arm in ("sgd", "plp")
        ),
        *(
            ("sweep", model, seed, "late")
            for model in ("vgg16", "tiny")
            for seed in range(3)
        ),
    ]


@pytest.mark.parametrize(("name", "size"), ALL_SCALES)
def test_studies_are_sound(name, size):
    study = studies.load(name)
    assert study.name == name
    scale = study.scale(size)
    tasks = study.tasks(dataclasses.replace(scale, seeds=2))
    blocks = [(key, list(b)) for key, b in groupby(tasks, lambda t: (*t.part, t.seed))]
    # Each occurs once: paired runs follow each other.
    assert len({key for key, _ in blocks}) == len(blocks)
    for _, block in blocks:
        # No two arms train alike, and all differ only in what the study asks about.
        assert all(a.config != b.config for a, b in combinations(block, 2))
        if study.execute is not None:
            continue
        trained = {
            task.arm.name: config_lib.identity(complete(task.config)) for task in block
        }
        for field in ("seed", "model", "batch_size", "width", "dataset"):
            assert len({config[field] for config in trained.values()}) == 1, field
        # What is compared is equally long; the stages of a cascade are not.
        whole = {n: c["epochs"] for n, c in trained.items() if c["cascade"] is None}
        for arm, control in study.comparisons:
            if {arm, control} <= whole.keys():
                assert whole[arm] == whole[control], arm
    assert len({task.folder for task in tasks}) == len(tasks)


@pytest.mark.parametrize("name", studies.NAMES)
def test_arms_refer_to_arms(name):
    study = studies.load(name)
    arms = {arm.name: arm for arm in study.arms}
    assert len(arms) == len(study.arms)
    assert len({arm.label for arm in study.arms}) == len(arms)
    for comparison in study.comparisons:
        assert set(comparison) <= set(arms)
        assert comparison.arm != comparison.control
    for scale in study.scales:
        assert all(study.find(name) for name in scale.arms or ())
        assert all(study.find(n) for names in scale.only.values() for n in names)
        for arm in study.including(scale.arms or ()).arms:
            for control in (arm.baseline, arm.matched):
                assert control is None or study.find(control)


def test_comparisons_follow_from_the_arms():
    study = study_of(
        SGD,
        dataclasses.replace(PLP, matched="matched"),
        Arm("matched", "matched", {}, rate=1.5),
        Arm("neutral", "neutral", {}, baseline="sgd", matched="sgd"),
        extra_comparisons=(Comparison("neutral", "plp"), Comparison("plp", "sgd")),
    )
    assert study.comparisons == (
        ("plp", "sgd"),
        ("plp", "matched"),
        ("neutral", "sgd"),
        ("neutral", "plp"),
    )


def test_an_arm_may_train_some_networks_only():
    some = dataclasses.replace(PLP, models=("tiny",))
    scale = Scale("small", models=("vgg16", "tiny"), seeds=2, fields=TINY)
    planned = {(t.model, t.arm.name) for t in study_of(SGD, some).tasks(scale)}
    assert planned == {("vgg16", "sgd"), ("tiny", "sgd"), ("tiny", "plp")}


# -- Scales ----------------------------------------------------------------------------


def test_other_networks_or_fields_are_another_scale():
    scale = study_of(SGD).scale("small")
    changed = scale.changed(models=["plain", "tiny"], fields={"width": 5})
    assert changed.name == "small-plain-tiny-width-5"
    assert changed.models == ("plain", "tiny")
    assert changed.fields == {**TINY, "width": 5}
    assert study_of(SGD).header(changed).scale == changed.name
    assert scale.changed(name="wide", fields={"width": 5}).name == "wide"


def test_more_or_fewer_of_the_same_runs_are_the_same_scale():
    study = study_of(SGD, PLP)
    scale = study.scale("small")
    same = scale.changed(
        models=["tiny"],
        arms=["plp"],
        seeds=3,
        fields={"width": 2, "epochs": None},
    )
    assert study.header(same) == study.header(scale)
    found = {task.folder for task in study.tasks(same)}
    assert len(found) == 3
    assert len(found & {task.folder for task in study.tasks(scale)}) == 2


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("plp", "resnet18"),
        ("predictors", "logistic-digits"),
        ("small_batches", "characters"),
        ("sequential", "mackey-glass-17"),
        ("readouts", "characters"),
    ],
)
def test_networks_and_setups_must_exist(name, known):
    study = studies.load(name)
    scale = study.scale("quick").changed(models=["nowhere"], fields={})
    with pytest.raises(ConfigError, match=f"--models nowhere: choose from .*{known}"):
        study.tasks(scale)


# -- Records and declarations ----------------------------------------------------------


def records(study):
    return [
        Record(t.arm.name, t.model, t.seed, t.config, {"test_accuracy": 0.5})
        for t in study.tasks(study.scale("small"))
    ]


def test_records_hold_choices_only():
    (task, second) = study_of(SGD).tasks(study_of(SGD).scale("small"))
    # A field that is added later, with a default, leaves them as they are: 0.2 is the
    # default of validation_fraction.
    chosen = {name: value for name, value in TINY.items() if value != 0.2}
    fields = {"model": "tiny", "method": "sgd", "average": "none"}
    assert task.config == {**chosen, **fields}
    assert second.config == {**task.config, "seed": 1}


def test_runs_without_a_record_are_missing():
    study = study_of(SGD, PLP)
    tasks = study.tasks(study.scale("small"))
    found = records(study)
    assert missing(tasks, found) == []
    assert missing(tasks, found[1:3]) == [tasks[0], tasks[3]]
    wider = dataclasses.replace(found[2], config={**found[2].config, "width": 3})
    assert missing(tasks, [*found, wider]) == [tasks[2]]


def test_records_of_an_arm_that_was_declared_differently_are_left_out():
    then = study_of(SGD, PLP)
    now = study_of(SGD, dataclasses.replace(PLP, fields={"method": "lookahead"}))
    header = now.header(now.scale("small"))
    found = records(then)
    assert then.current(header, found) == found
    assert [r.arm for r in now.current(header, found)] == ["sgd", "sgd"]
    assert study_of(PLP).current(header, found) == found[1::2]


def test_a_study_with_its_own_execution_has_its_own_fields():
    study = study_of(
        Arm("slow", "slow", {"noise": 0.1}),
        Arm("fast", "fast", {"noise": 0.2}),
        fields={"learning_rate": 0.5, "dimensions": 7},
        model_fields={"stream": {"dimensions": 8}},
        scales=(Scale("small", models=("stream",), seeds=1, fields={"steps": 9}),),
        execute=lambda config, tick: None,
    )
    slow, fast = (t.config for t in study.tasks(study.scale("small")))
    same = {"model": "stream", "dimensions": 8, "steps": 9}
    assert slow == {**same, "noise": 0.1, "learning_rate": 0.5}
    assert fast == {**same, "noise": 0.2, "learning_rate": 0.5}


# -- The controls ----------------------------------------------------------------------


def cycle(step, window, period, fit):
    """How far a cycle of literal prediction gets on updates of 1, per step."""
    w = [float(j) for j in range(window + 1)]
    if fit == "least_squares":
        times = np.arange(1, window + 1)
        slope, start = np.polyfit(times, w[1:], 1)
        jumped = start + slope * (window - 0.5 + step)
    else:
        middles = [(a + b) / 2 for a, b in pairwise(w[1:])]
        rise = (middles[-1] - middles[0]) / (window - 2) if window > 2 else w[2] - w[1]
        jumped = middles[-1] + step * rise
    return (jumped + period - window) / period


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (name, size)
        for name, size in ALL_SCALES
        if name in ("plp", "together", "mechanism", "ablation", "acceleration")
    ],
)
def test_every_prediction_has_its_matched_rate(name, size):
    study = studies.load(name)
    model = study.scale(size).models[0]
    predicting = [a for a in study.arms if "plp" in a.fields.get("method", "")]
    assert predicting
    for arm in predicting:
        ours = configure(study, size, model, arm.name)
        control = configure(study, size, model, arm.matched)
        plain = configure(study, size, model, arm.baseline)
        factor = cycle(ours.plp_step, ours.plp_window, ours.plp_period, ours.plp_fit)
        if ours.strategy is None:
            for field in ("learning_rate", "max_learning_rate"):
                rate = getattr(ours, field)
                expected = rate if rate is None else pytest.approx(factor * rate)
                assert getattr(control, field) == expected
                assert getattr(plain, field) == rate
        else:
            theirs, expected = stages(control), stages(ours)
            assert [s.learning_rate for s in theirs] == pytest.approx(
                [factor * s.learning_rate for s in expected]
            )
            assert [s[:1] + s[2:] for s in theirs] == [s[:1] + s[2:] for s in expected]
        for other in (control, plain):
            assert "plp" not in other.method
            assert other.optimizer == ours.optimizer
            assert other.momentum == ours.momentum


@pytest.mark.parametrize(
    ("base", "suffix", "field", "value"),
    [
        ("g1-case2", "t0.9", "amplify_threshold", 0.9),
        ("g2-case1", "r5", "amplify_reselect_every", 5),
        ("g2-case1", "f3", "amplify_factor", 3.0),
    ],
)
def test_a_swept_arm_is_an_arm_with_one_other_field(base, suffix, field, value):
    study = studies.load("amplification")
    name = f"{base}-{suffix}"
    ours, theirs = (
        study.configure(study.scale("full").fields, "resnet18", study.arm(arm))
        for arm in (name, base)
    )
    assert ours == {**theirs, field: value}
    assert study.find(name) not in study.arms
    assert study.find(name) in study.including([name]).arms


@pytest.mark.parametrize("name", ["g3-case1-t1", "g2-case1-t", "rate-x"])
def test_other_names_are_no_arms(name):
    study = studies.load("amplification")
    scale = study.scale("full").changed(arms=[name], fields={})
    with pytest.raises(ConfigError, match=f"--arms {name}: choose from original, noop"):
        study.tasks(scale)


@pytest.mark.parametrize(
    ("model", "amplified"),
    [
        ("resnet18", [range(52, 101), range(102, 131)]),
        ("resnet101", [range(12, 101), range(102, 146)]),
    ],
)
def test_the_matched_rate_is_raised_where_layers_are_amplified(model, amplified):
    study = studies.load("amplification")

    def rates(arm):
        config = configure(study, "full", model, arm)
        ends = [0, *(stage.end_epoch for stage in stages(config))]
        listed = [stage.learning_rate for stage in stages(config)]
        return np.repeat(listed, np.diff(ends))

    raised = {epoch for epochs in amplified for epoch in epochs}
    for arm in study.including(["g2-case1-f1.5", "g2-case1-f10"]).arms:
        if arm.matched is None:
            continue
        config = configure(study, "full", model, arm.name)
        share = 1.0 if config.amplify_select == "all" else 0.1
        rise = 1 + share * ((config.amplify_factor or 2.0) - 1)
        ratio = rates(arm.matched) / rates("original")
        assert len(ratio) == 150
        for epoch, found in enumerate(ratio, start=1):
            assert found == pytest.approx(rise if epoch in raised else 1.0)
        assert configure(study, "full", model, arm.matched).method == "sgd"
