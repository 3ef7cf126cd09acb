"""What pictures of runs show, and how arms look."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from experiments import figures, studies, style
from experiments.comparisons import METRICS, compare_all
from experiments.reports import ablation, curvature, layers
from tests.support.reports import (
    REGIMES,
    diverge,
    make,
    run,
    runs_of,
    without_validation,
)


def values_of(records, arm, name):
    return np.array([[m[name] for m in r.history] for r in records if r.arm == arm])


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


# -- Comparisons -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "side", "good", "bad"),
    [
        (METRICS[0], "right", {"test_accuracy": 0.6}, {"test_accuracy": 0.5}),
        (METRICS[1], "left", {"validation_loss": 1.0}, {"validation_loss": 2.0}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_better_is_on_the_side_that_the_axis_says(metric, side, good, bad):
    records = [run("new", s, best_epoch=1, **good) for s in range(6)]
    records += [run("old", s, best_epoch=1, **bad) for s in range(6)]
    runs = runs_of(records)
    picture = figures.differences(runs, compare_all(runs), metric)
    (ax,) = picture.figure.axes
    assert f"better: {side}" in ax.get_xlabel()
    dot = lines_of(ax)["better"]
    assert (dot.get_xdata()[0] > 0) == (side == "right")
    assert dot.get_marker() == "^"


def test_dots_are_at_the_means_with_their_intervals():
    study, _, records = make("plp", seeds=6)
    runs = runs_of(records, study)
    found = [c for c in compare_all(runs) if c.metric is METRICS[0]]
    (ax,) = figures.differences(runs, found, METRICS[0]).figure.axes
    low, high = ax.get_xlim()
    dots = [line for line in ax.get_lines() if line.get_marker() in ("o", "^", "v")]
    means = [c.difference.mean for c in found]
    assert all(low < mean < high for mean in means)
    np.testing.assert_allclose(
        sorted(float(dot.get_xdata()[0]) for dot in dots), sorted(means)
    )
    bars = {
        tuple(line.get_xdata()) for line in ax.get_lines() if len(line.get_xdata()) == 2
    }
    assert bars >= {c.difference.interval for c in found}


def test_an_extreme_arm_is_marked_and_does_not_flatten_the_others():
    study, _, records = make("plp", seeds=6)
    for record in records:
        if record.arm == "average":
            record.result["test_accuracy"] -= 50
    runs = runs_of(records, study)
    (ax,) = figures.differences(runs, compare_all(runs), METRICS[0]).figure.axes
    assert ax.get_xlim()[0] > -500
    (label,) = ax.texts
    assert label.get_text().strip().startswith("-5")
    assert any(line.get_marker() == "<" for line in ax.get_lines())


def test_nothing_to_compare_gives_no_picture():
    runs = runs_of([run("old", 0, test_accuracy=0.5)])
    assert figures.differences(runs, compare_all(runs), METRICS[0]) is None


# -- Curves ----------------------------------------------------------------------------


def test_curves_are_means_and_differences_arm_minus_control():
    study, _, records = make("plp")
    runs = runs_of(records, study)
    picture = figures.curves(runs, "tiny", ["sgd", "plp-4"], "sgd", "accuracy")
    training, validation, difference, _ = picture.figure.axes
    assert training.get_ylabel() == "training accuracy"
    assert validation.get_ylabel() == "validation accuracy"
    assert difference.get_ylabel() == "difference in\ntraining accuracy (points)"
    ours, theirs = (values_of(records, a, "train_accuracy") for a in ("plp-4", "sgd"))
    drawn = lines_of(training)["PLP, period 4"].get_ydata()
    np.testing.assert_allclose(drawn, ours.mean(axis=0))
    drawn = lines_of(difference)["PLP, period 4"].get_ydata()
    np.testing.assert_allclose(drawn, 100 * (ours - theirs).mean(axis=0), atol=1e-9)
    band = training.collections[-1].get_paths()[0].vertices
    assert band[band[:, 0] == 1, 1].max() == pytest.approx(ours[:, 0].max())


def test_without_validation_there_is_training_alone():
    study, _, records = make("plp")
    runs = runs_of([without_validation(r) for r in records], study)
    picture = figures.curves(runs, "tiny", ["sgd", "plp-4"], "sgd", "loss")
    assert len(picture.figure.axes) == 2
    nothing = runs_of([dataclasses.replace(r, history=[]) for r in records], study)
    assert figures.curves(nothing, "tiny", ["sgd"], "sgd", "loss") is None


@pytest.mark.parametrize("first", [1.9, 50.0])
def test_losses_that_span_decades_have_a_logarithmic_axis(first):
    study, _, records = make("plp", arms=("sgd", "plp-4"))
    for record in records:
        record.history[0]["validation_loss"] = first
    picture = figures.curves(
        runs_of(records, study), "tiny", ["sgd", "plp-4"], "sgd", "loss"
    )
    _, above, _, below = picture.figure.axes
    assert above.get_yscale() == ("log" if first > 10 else "linear")
    assert below.get_yscale() == ("symlog" if first > 10 else "linear")


def test_a_diverged_run_is_drawn_and_counted():
    study, _, records = make("plp")
    records = [diverge(r) if r.arm == "plp-4" and r.seed else r for r in records]
    picture = figures.curves(
        runs_of(records, study), "tiny", ["sgd", "plp-4"], "sgd", "loss"
    )
    lines = picture.figure.axes[0].get_lines()
    crosses = [line for line in lines if line.get_marker() == "x"]
    assert len(crosses) == 2
    labels = {line.get_label() for line in crosses}
    assert labels == {"PLP, period 4 (2 of 3 diverged)"}
    assert all(line.get_xdata() == [2] for line in crosses)


# -- Pictures of single studies --------------------------------------------------------


def test_timeline_is_the_fraction_of_seeds():
    study, _, records = make("amplification", models=("vgg19",))
    for record in records:
        if record.arm == "g2-case1" and record.seed == 0:
            for metrics in record.history:
                metrics["amplified"] = ["head"]
    runs = runs_of(records, study)
    picture = layers.timeline(runs, "vgg19", ["original", "g2-case1"])
    ax = picture.figure.axes[0]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [
        *("stem/conv", "stage1/block0/conv1", "stage2/conv", "stage10/conv"),
        "head",
    ]
    share = np.asarray(ax.get_images()[0].get_array())
    epochs = np.arange(share.shape[1])
    np.testing.assert_allclose(share[-1], 1 / 3)
    np.testing.assert_allclose(share[0], (epochs % 2) * 2 / 3)
    assert layers.timeline(runs, "vgg19", ["original"]) is None


def test_settings_of_amplification_are_at_their_accuracies():
    gains = {
        **{"g2-case1-t0.7": 0.02, "g2-case1-t2.3": -0.01},
        **{"g2-case1-f3": 0.03, "g2-case1-f10": -0.04},
    }
    study, _, records = make("amplification", models=("vgg19",), gains=gains)
    runs = runs_of(records, study)
    settings = (
        layers.Setting("sweep", "threshold"),
        layers.Setting("factor", "factor", unset=2.0),
    )
    picture = layers.responses(runs, "vgg19", settings, "original")
    base = runs.values("vgg19", "g2-case1", "test_accuracy").mean()
    panels = {
        "threshold": {0.7: 0.02, 1.5: 0, 2.3: -0.01},
        "factor": {1.5: 0, 2: 0, 3: 0.03, 5: 0, 10: -0.04},
    }
    for ax, (label, expected) in zip(picture.figure.axes, panels.items(), strict=True):
        assert ax.get_xlabel() == label
        (line,) = [x for x in ax.get_lines() if len(x.get_xdata()) == len(expected)]
        np.testing.assert_allclose(line.get_xdata(), list(expected))
        np.testing.assert_allclose(line.get_ydata() - base, list(expected.values()))
    (ranges,) = picture.figure.axes[0].collections
    values = runs.values("vgg19", "g2-case1-t0.7", "test_accuracy")
    low, high = ranges.get_segments()[0][:, 1]
    np.testing.assert_allclose((low, high), (values.min(), values.max()))
    # Two measures, two cases, and 18 thresholds besides the fixed one.
    assert "2 of 72 in sweep, 4 of 4 in factor" in picture.caption
    few = runs_of([r for r in records if r.arm == "original"], study)
    assert layers.responses(few, "vgg19", settings, "original") is None


def test_settings_are_at_their_differences_also_where_a_control_is_missing():
    gains = {"plp": 0.02, "step-2": 0.03, "matched-9-8": 0.015}
    study, _, records = make("ablation", gains=gains)
    records = [r for r in records if r.arm != "matched-15-8"]  # of step 4
    runs = runs_of(records, study)
    _, picture, *_ = ablation.sections(runs, compare_all(runs))
    step = picture.figure.axes[0]
    ticks = [label.get_text() for label in step.get_xticklabels()]
    assert ticks == ["0.25", "0.5", "1", "2", "4"]
    for label, x, y in (
        ("minus SGD", range(5), [0, 0, 2, 3, 0]),
        ("minus SGD at the matched rate", range(4), [0, 0, 0.5, 3]),
    ):
        line = lines_of(step)[label]
        np.testing.assert_allclose(np.round(line.get_xdata()), x)
        np.testing.assert_allclose(line.get_ydata(), y, atol=1e-9)


def test_curvature_is_drawn_for_the_regimes_that_were_run():
    arms = tuple(a.name for a in studies.load("mechanism").arms if "nest" not in a.name)
    study, _, records = make("mechanism", models=("plain",), arms=arms)
    some = [diverge(r) if r.arm == "plp-none-high" else r for r in records]
    runs = runs_of(some, study, ("plain",))
    figure = curvature.products(runs, "plain").figure
    panels = {
        ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")
    }
    assert set(panels) == {
        regime.label for name, regime in REGIMES.items() if "nest" not in name
    }
    high = panels[REGIMES["none-high"].label]
    products = [
        r.config["learning_rate"] * np.array(r.measures["top_eigenvalue"])
        for r in records
        if r.arm == "sgd-none-high"
    ]
    drawn = lines_of(high)["SGD"].get_ydata()
    np.testing.assert_allclose(drawn, np.mean(products, axis=0))
    crosses = [line for line in high.get_lines() if line.get_marker() == "x"]
    assert [line.get_xdata() for line in crosses] == [[64]] * 3
    assert curvature.products(runs_of([], study, ("plain",)), "plain") is None


# -- Looks -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plp", "amplification", "together"])
def test_arms_of_one_picture_look_different(name):
    study = studies.load(name)
    looks = style.looks(study)
    drawn = [looks[arm.name] for arm in study.arms if not arm.group]
    assert len(set(drawn)) == len(drawn)


def test_a_matched_rate_is_a_darker_shade_of_its_arm():
    looks = style.looks(studies.load("plp"))
    assert looks["sgd"] == style.PLAIN
    for period in (3, 4):
        ours, control = looks[f"plp-{period}"], looks[f"matched-{period}"]
        shade = 0.5 * np.array(to_rgb(ours.color))
        np.testing.assert_allclose(to_rgb(control.color), shade, atol=1 / 255)
        assert ours.linestyle != control.linestyle


def test_a_legend_is_not_wider_than_its_figure():
    figure = style.figure("title", width=6)
    ax = figure.subplots()
    for i in range(9):
        ax.plot([0, 1], label=f"a method with a name of some length, number {i}")
    style.legend(figure)
    (drawn,) = figure.legends
    assert len(drawn.get_texts()) == 9
    assert drawn.get_window_extent().width <= figure.bbox.width
