"""Forest plots: what is drawn where, in which colour, next to which control."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from experiments import figures, forests, table
from experiments.statistics import BETTER, WORSE
from experiments.table import ACCURACY
from tests.support.reports import PAIR, make, run, table_of
from training.run import style


def two(gain, seeds=6):
    rng = np.random.default_rng(0)
    return [
        run(arm, s, test_accuracy=0.5 + (arm == "new") * (gain + 1e-3 * rng.normal()))
        for arm in ("old", "new")
        for s in range(seeds)
    ]


@pytest.mark.parametrize(
    ("gain", "seeds", "verdict", "color"),
    [(0.1, 6, BETTER, style.BLUE), (-0.1, 6, WORSE, style.VERMILION)],
)
def test_a_forest_plot_shows_mean_interval_verdict_and_evidence(
    gain, seeds, verdict, color
):
    made = table_of(two(gain, seeds))
    found = table.compare(made)
    (picture,) = forests.draw(made, found, ACCURACY)
    figure = picture.figure
    (ax,) = figure.axes
    assert picture.shows == f"minus old way: 1 {verdict}"
    row = found.row(0, named=True)
    _, interval, dot = ax.get_lines()
    assert list(interval.get_xdata()) == [row["low"], row["high"]]
    assert list(dot.get_xdata()) == [row["mean"]]
    assert to_hex(dot.get_color()) == color.lower()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [verdict]
    title = f"mean and 95 % interval, n = {seeds}, corrected over 1 comparisons"
    assert legend.get_title().get_text() == title


@pytest.mark.parametrize(("gain", "seeds"), [(0.0, 6), (0.1, 3)])
def test_there_is_no_forest_plot_where_nothing_is_decided(gain, seeds):
    made = table_of(two(gain, seeds))
    assert forests.draw(made, table.compare(made), ACCURACY) == []


def test_an_extreme_arm_does_not_flatten_the_others():
    study, _, records = make("plp", seeds=6)
    for record in records:
        record.result["test_accuracy"] -= 50 * (record.arm == "average")
    made = table_of(records, study)
    found = table.compare(made)
    (picture,) = forests.draw(made, found, ACCURACY)
    ax, _ = picture.figure.axes
    low, high = ax.get_xlim()
    others = found.filter(pl.col("arm") != "average", metric="test_accuracy")
    assert low > -2000
    assert (others["mean"].is_between(low, high)).all()
    assert any(text.get_text().strip().startswith("-5e+03") for text in ax.texts)


def test_the_strongest_of_the_other_controls_has_a_panel_and_a_name():
    """The second and the third of three controls are rivals of the first, the base."""
    arm = dataclasses.replace(PAIR.arms[1], matched="fast")
    more = [dataclasses.replace(PAIR.arms[0], name=n, label=n) for n in ("fast", "far")]
    study = dataclasses.replace(
        PAIR, arms=(PAIR.arms[0], arm, *more), extra_comparisons=[("new", "far")]
    )
    values = {"old": 0.5, "new": 0.6, "fast": 0.7, "far": 0.8}
    records = [
        run(name, s, test_accuracy=value + 1e-3 * s * s * (name == "new"))
        for name, value in values.items()
        for s in range(6)
    ]
    made = table_of(records, study)
    (picture,) = forests.draw(made, table.compare(made), ACCURACY)
    assert picture.shows == "minus old way: 1 better; minus far: 1 worse"
    records = [r for r in records if r.arm != "far"]
    made = table_of(records, study)
    (picture,) = forests.draw(made, table.compare(made), ACCURACY)
    assert picture.shows == "minus old way: 1 better; minus its matched rate: 1 worse"


def test_a_saved_picture_keeps_the_colours_of_its_markers(tmp_path):
    """A palette of the most frequent colours made two verdicts one."""
    made = table_of(two(0.1))
    (picture,) = forests.draw(made, table.compare(made), ACCURACY)
    path = tmp_path / "picture.png"
    figures.save(picture.figure, path)
    with Image.open(path) as image:
        colors = {color for _, color in image.convert("RGB").getcolors()}
    blue = tuple(int(style.BLUE[i : i + 2], 16) for i in (1, 3, 5))
    assert min(np.abs(np.subtract(color, blue)).max() for color in colors) < 8
