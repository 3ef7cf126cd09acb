"""What pictures of runs show, and how arms look."""

import os
import subprocess
import sys

import numpy as np
import pytest

from experiments import figures, style
from experiments.reports import ablation, comparisons, layers
from experiments.reports.runs import Runs
from tests.reports import diverge, make, study_of


class TestFigures:
    def test_curves_are_means_with_deviations(self):
        study = study_of("plp")
        records = make(study)
        runs = Runs(study, records)
        picture = figures.curves(runs, "tiny", ["sgd", "plp-4"], control="sgd")
        loss, _, difference, points = picture.figure.axes
        drawn = next(
            line for line in loss.get_lines() if line.get_label() == "PLP, period 4"
        )
        ours, theirs = (
            np.array(
                [
                    [m["validation_accuracy"] for m in r.history]
                    for r in records
                    if r.arm == arm
                ]
            )
            for arm in ("plp-4", "sgd")
        )
        losses = [
            [m["validation_loss"] for m in r.history]
            for r in records
            if r.arm == "plp-4"
        ]
        np.testing.assert_allclose(drawn.get_ydata(), np.mean(losses, axis=0))
        band = loss.collections[-1].get_paths()[0].vertices
        top = np.mean(losses, axis=0)[0] + np.std(losses, axis=0, ddof=1)[0]
        assert band[band[:, 0] == 1, 1].max() == pytest.approx(top)
        drawn = points.get_lines()[-1].get_ydata()
        np.testing.assert_allclose(drawn, 100 * (ours - theirs).mean(axis=0), atol=1e-9)
        assert "nats" in difference.get_ylabel()

    def test_a_diverged_run_is_drawn_and_counted(self):
        study = study_of("plp")
        records = [
            diverge(r) if r.arm == "plp-4" and r.seed else r for r in make(study)
        ]
        picture = figures.curves(
            Runs(study, records), "tiny", ["sgd", "plp-4"], control="sgd"
        )
        lines = picture.figure.axes[0].get_lines()
        crosses = [line for line in lines if line.get_marker() == "x"]
        assert len(crosses) == 2
        assert {line.get_label() for line in crosses} == {
            "PLP, period 4 (2 of 3 diverged)"
        }
        assert all(line.get_xdata() == [2] for line in crosses)

    def test_forest_draws_estimates_and_flags_what_is_off_the_scale(self):
        rows = [
            figures.Interval("g", f"{n}", "sgd", 0.1 * n, (0.1 * n - 1, 0.1 * n + 1))
            for n in range(6)
        ]
        wild = figures.Interval("g", "wild", "plp-4", -500.0, (-501.0, -499.0))
        missing = figures.Interval("g", "missing", "plp-3", None, None, "not run")
        figure = figures.forest({"x": [*rows, wild, missing]})
        (ax,) = figure.axes
        dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
        assert [dot.get_xdata()[0] for dot in dots] == [row.value for row in rows]
        low, high = ax.get_xlim()
        assert -20 < low < -1
        assert high < 20
        assert {"-500", " not run"} <= {text.get_text() for text in ax.texts}

    def test_forest_of_one_seed_has_open_markers(self):
        row = figures.Interval("g", "a", "sgd", 0.0, None)
        (ax,) = figures.forest({"x": [row]}).axes
        assert ax.get_lines()[-1].get_markerfacecolor() == "white"

    def test_timeline_is_the_share_of_seeds(self):
        study = study_of("amplification")
        records = make(study, models=("vgg19",))
        for record in records:
            if record.arm == "g2-case1" and record.seed == 0:
                for metrics in record.history:
                    metrics["amplified"] = ["head"]
        runs = Runs(study, records)
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

    def test_settings_stand_at_their_differences(self):
        study = study_of("ablation")
        gains = {"plp": 0.02, "step-2": 0.03, "matched-9-8": 0.015}
        runs = Runs(study, make(study, gains=gains))
        found = comparisons.compare(runs)
        by_heading = {s.heading: s.blocks for s in ablation.sections(runs, found)}
        step = by_heading["Step, period and window"][0].figure.axes[0]
        lines = {line.get_label(): line.get_ydata() for line in step.get_lines()}
        np.testing.assert_allclose(lines["minus SGD"], [0, 0, 2, 3, 0], atol=1e-9)
        np.testing.assert_allclose(
            lines["minus SGD at the matched rate"], [0, 0, 0.5, 3, 0], atol=1e-9
        )
        ticks = [label.get_text() for label in step.get_xticklabels()]
        assert ticks == ["0.25", "0.5", "1", "2", "4"]

    def test_settings_keep_their_places_where_a_control_is_missing(self):
        study = study_of("ablation")
        records = [r for r in make(study) if r.arm != "matched-11-8"]  # of step 2
        runs = Runs(study, records)
        by_heading = {
            s.heading: s.blocks
            for s in ablation.sections(runs, comparisons.compare(runs))
        }
        step = by_heading["Step, period and window"][0].figure.axes[0]
        lines = {line.get_label(): line.get_xdata() for line in step.get_lines()}
        ticks = [label.get_text() for label in step.get_xticklabels()]
        assert ticks == ["0.25", "0.5", "1", "2", "4"]
        np.testing.assert_allclose(np.round(lines["minus SGD"]), range(5))
        matched = np.round(lines["minus SGD at the matched rate"])
        np.testing.assert_allclose(matched, [0, 1, 2, 4])


class TestStyle:
    @pytest.mark.parametrize("name", ["plp", "together"])
    def test_arms_of_one_picture_are_told_apart(self, name):
        looks = [style.look(arm.name) for arm in study_of(name).arms]
        assert len(set(looks)) == len(looks)

    def test_measures_have_colours_and_cases_lines(self):
        arms = [arm.name for arm in study_of("amplification").arms if not arm.group]
        looks = {arm: style.look(arm) for arm in arms}
        assert len(set(looks.values())) == len(arms)
        for measure in ("g1", "g1-per-weight", "g2"):
            one, two = looks[f"{measure}-case1"], looks[f"{measure}-case2"]
            assert one.color == two.color
            assert one.linestyle != two.linestyle

    def test_unknown_arms_look_the_same_in_every_process(self):
        code = "from experiments import style; print(style.look('some-new-arm'))"
        told = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert told == {f"{style.look('some-new-arm')}\n"}
