"""Pictures: what is drawn where, in which colour."""

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex

from experiments import figures, studies, table
from experiments.reports import mechanism as mechanism_report
from experiments.statistics import BETTER, TOO_FEW
from experiments.table import ACCURACY
from tests.support.reports import diverge, make, run, table_of


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def two(gain, seeds=6):
    rng = np.random.default_rng(0)
    return [
        run(arm, s, test_accuracy=0.5 + (arm == "new") * (gain + 1e-3 * rng.normal()))
        for arm in ("old", "new")
        for s in range(seeds)
    ]


@pytest.mark.parametrize(
    ("gain", "seeds", "verdict", "color"),
    [(0.1, 6, BETTER, figures.BLUE), (0.1, 3, TOO_FEW, figures.GREY)],
)
def test_a_forest_plot_shows_mean_interval_verdict_and_evidence(
    gain, seeds, verdict, color
):
    made = table_of(two(gain, seeds))
    found = table.compare(made)
    figure = figures.forest(made, found, ACCURACY).figure
    (ax,) = figure.axes
    row = found.row(0, named=True)
    _, interval, dot = ax.get_lines()
    assert list(interval.get_xdata()) == [row["low"], row["high"]]
    assert list(dot.get_xdata()) == [row["mean"]]
    assert to_hex(dot.get_color()) == color.lower()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [verdict]
    corrected = ", corrected over 1 comparisons" if seeds == 6 else ""
    assert legend.get_title().get_text() == f"95 % interval, n = {seeds}{corrected}"


def test_an_extreme_arm_does_not_flatten_the_others():
    study, _, records = make("plp", seeds=6)
    for record in records:
        record.result["test_accuracy"] -= 50 * (record.arm == "average")
    made = table_of(records, study)
    found = table.compare(made)
    (ax,) = figures.forest(made, found, ACCURACY).figure.axes
    low, high = ax.get_xlim()
    others = found.filter(pl.col("arm") != "average", metric="test_accuracy")
    assert low > -2000
    assert (others["mean"].is_between(low, high)).all()
    assert any(text.get_text().strip().startswith("-5e+03") for text in ax.texts)


def test_curves_are_differences_with_four_arms_in_colour():
    study, _, records = make("plp", seeds=3)
    records = [diverge(r) if (r.arm, r.seed) == ("plp-3", 2) else r for r in records]
    made = table_of(records, study)
    arms = [arm.name for arm in study.arms if not arm.group]
    picture = figures.curves(made, "tiny", arms, "sgd", "loss")
    assert picture.title == "Loss minus that of: SGD, tiny on digits"
    assert "In grey: Lookahead; window average." in picture.caption
    assert "Diverged: PLP, period 3 1 of 3." in picture.caption
    _, validation = picture.figure.axes
    drawn = lines_of(validation)
    assert {"others", "SGD (control)", "PLP, period 4"} <= set(drawn)
    colors = {line.get_color() for line in validation.get_lines()} - {figures.BLACK}
    assert len(colors - {figures.OTHERS.color}) == 4
    losses = {
        arm: np.array(
            [[m["validation_loss"] for m in r.history] for r in records if r.arm == arm]
        )
        for arm in ("plp-4", "sgd")
    }
    expected = (losses["plp-4"] - losses["sgd"]).mean(axis=0)
    np.testing.assert_allclose(drawn["PLP, period 4"].get_ydata(), expected)
    assert figures.curves(made, "vgg16", arms, "sgd", "loss") is None


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
    figure = figures.figure("title", width=6)
    ax = figure.subplots()
    for i in range(9):
        ax.plot([0, 1], label=f"a method with a name of some length, number {i}")
    figures.legend(figure)
    (drawn,) = figure.legends
    assert len(drawn.get_texts()) == 9
    assert drawn.get_window_extent().width <= figure.bbox.width
