"""Pictures: what is drawn where, in which colour; and that all can be read."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments import evidence, figures, forests, report, studies, table
from experiments.reports import mechanism as mechanism_report
from tests.support.pictures import assert_legible
from tests.support.reports import diverge, make, table_of
from training.run import style

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(p.parent for p in RESULTS.glob("*/*/records.jsonl"))


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_curves_are_differences_with_four_arms_in_colour():
    study, _, records = make("plp", seeds=3)
    records = [diverge(r) if (r.arm, r.seed) == ("plp-3", 2) else r for r in records]
    made = table_of(records, study)
    arms = [arm.name for arm in study.arms if not arm.group]
    picture = figures.curves(made, "tiny", arms, "sgd")
    assert picture.title == "Accuracy and loss minus those of SGD, tiny on digits"
    assert "In grey: Lookahead; window average." in picture.caption
    assert "Diverged: PLP, period 3 1 of 3." in picture.caption
    *_, validation = picture.figure.axes  # loss is below accuracy
    drawn = lines_of(validation)
    assert {"others", "SGD (control)", "PLP, period 4"} <= set(drawn)
    colors = {line.get_color() for line in validation.get_lines()} - {style.BLACK}
    assert len(colors - {figures.OTHERS.color}) == 4
    losses = {
        arm: np.array(
            [[m["validation_loss"] for m in r.history] for r in records if r.arm == arm]
        )
        for arm in ("plp-4", "sgd")
    }
    expected = (losses["plp-4"] - losses["sgd"]).mean(axis=0)
    np.testing.assert_allclose(drawn["PLP, period 4"].get_ydata(), expected)
    assert figures.curves(made, "vgg16", arms, "sgd") is None


def test_runs_are_drawn_each_with_training_and_validation():
    study, _, records = make("plp", seeds=3)
    records = [diverge(r) if (r.arm, r.seed) == ("plp-4", 2) else r for r in records]
    made = table_of(records, study)
    picture = figures.runs(made, "tiny", ("sgd", "plp-4", "absent"))
    top, _, bottom, _ = picture.figure.axes
    assert [ax.get_title(loc="left") for ax in (top, bottom)] == ["SGD", ""]
    first = next(r for r in records if (r.arm, r.seed) == ("sgd", 0)).history
    for ax, quantity, scale in ((top, "accuracy", 100), (bottom, "loss", 1)):
        drawn = {}
        for line in ax.get_lines():
            drawn.setdefault(line.get_label(), []).append(list(line.get_ydata()))
        for label, part in (("training", "train"), ("validation", "validation")):
            assert len(drawn[label]) == 3
            expected = [scale * m[f"{part}_{quantity}"] for m in first]
            assert expected in drawn[label]
    assert picture.caption.endswith("Diverged: PLP, period 4 1 of 3.")
    assert figures.runs(made, "vgg16", ("sgd",)) is None


def test_losses_by_rate_are_relative_to_the_best_of_the_base():
    losses = pl.DataFrame(
        [("base", 0.1, 2.0), ("base", 0.2, 1.9), ("base", 0.4, None),
         ("new", 0.1, 1.8), ("new", 0.2, 1.85), ("old", 0.1, 3.0)],
        schema=["method", "rate", "value"],
        orient="row",
    )  # fmt: skip
    labels = {"base": "SGD", "new": "the new one", "old": "an old one"}
    picture = figures.sensitivity(losses, labels, "base", ("new",), "tiny")
    assert_legible(picture.figure)
    lines = lines_of(picture.figure.axes[0])
    np.testing.assert_allclose(lines["the new one"].get_ydata(), [-0.1, -0.05])
    np.testing.assert_allclose(lines["SGD"].get_ydata(), [0.1, 0.0], atol=1e-15)
    assert lines["others"].get_color() == style.PALE
    assert picture.caption == "In grey: an old one."
    assert figures.sensitivity(losses, labels, "absent", (), "tiny") is None


def test_curvature_is_drawn_for_the_regimes_that_were_run():
    arms = tuple(a.name for a in studies.load("mechanism").arms if "nest" not in a.name)
    study, _, records = make("mechanism", models=("plain",), arms=arms)
    some = [diverge(r) if r.arm == "plp-none-high" else r for r in records]
    made = table_of(some, study, ("plain",))
    figure = mechanism_report.products(made, "plain").figure
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    high = panels["no momentum, high rate"]
    assert not any("Nesterov" in title for title in panels)
    products = [
        r.config["learning_rate"] * np.array(r.measures["top_eigenvalue"])
        for r in records
        if r.arm == "sgd-none-high"
    ]
    drawn = lines_of(high)["SGD"].get_ydata()
    np.testing.assert_allclose(drawn, np.mean(products, axis=0))
    crosses = [line for line in high.get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[64]] * 3


def test_a_legend_is_not_wider_than_its_figure():
    figure = style.figure("title", 4, width=6)
    ax = figure.subplots()
    for i in range(9):
        ax.plot([0, 1], label=f"a method with a name of some length, number {i}")
    style.legend(figure)
    (drawn,) = figure.legends
    assert len(drawn.get_texts()) == 9
    assert drawn.get_window_extent().width <= figure.bbox.width


# -- Whether it can be read ------------------------------------------------------------


def pictures_of(name):
    """The pictures of a committed report, by their names."""
    loaded = table.load(RESULTS / name)
    own = report.own(loaded.study)
    found = table.compare(loaded, own.metrics)
    blocks = [
        *(forests.draw(loaded, found, own.metrics[0]) if len(found) else ()),
        *own.sections(loaded),
        *(own.results(loaded) if own.results else ()),
    ]
    return {b.name: b for b in blocks if isinstance(b, figures.Picture)}


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ("quick/small_batches", "differences-loss-characters"),
        ("quick/sequential", "differences-test-error-mackey-glass-17"),
        ("quick/plp", "curves-googlenet-minus-sgd"),
        ("converged/head_to_head", "runs-resnet18"),
        ("quick/readouts", "anytime-characters"),
        ("quick/cascade", "gradients-resnet18"),
        ("quick/mechanism", "curvature-tiny"),
    ],
)
def test_a_picture_of_each_kind_can_be_read(record, name):
    assert_legible(pictures_of(record)[name].figure)


@pytest.mark.slow
@pytest.mark.parametrize("record", COMMITTED)
def test_all_pictures_of_reports_can_be_read(record):
    for picture in pictures_of(record).values():
        assert_legible(picture.figure)


def test_the_picture_of_the_evidence_can_be_read():
    first = {claim.method: claim for claim in reversed(evidence.CLAIMS)}
    assert_legible(evidence.draw(evidence.collect(RESULTS, [*first.values()])))
