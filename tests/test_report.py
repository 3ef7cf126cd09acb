"""Reports, on made-up records whose truth is known."""

import base64
import dataclasses
import math
import re

import numpy as np
import pytest

from experiments import (
    page,
    paths,
    report,
    stability_chart,
    studies,
    tables,
)
from experiments.page import Bullets
from experiments.reports import curvature
from experiments.reports import mechanism as mechanism_report
from experiments.reports.runs import Runs
from tests.reports import (
    PROVENANCE,
    REGIMES,
    diverge,
    diverge_at,
    make,
    markdown_tables,
    parse,
    study_of,
)
from training.errors import RunError


@pytest.fixture(scope="module", autouse=True)
def coarse_chart():
    """The stability chart takes seconds, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability_chart, "_POINTS", 40)
        yield


@pytest.fixture(scope="module", params=studies.NAMES)
def written(request, tmp_path_factory):
    study = study_of(request.param)
    records = make(study, models=study.quick.models[:1])
    folder = tmp_path_factory.mktemp(study.name)
    return study, records, report.write(study, records, folder)


class TestEveryStudy:
    def test_markdown_is_rectangular_and_its_pictures_are_there(self, written):
        _, _, path = written
        text = path.read_text(encoding="utf-8")
        found = markdown_tables(text)
        assert len(found) == text.count("\n| :--")
        for title, rows in found.items():
            assert len({len(row) for row in rows}) == 1, title
        pictures = re.findall(r"!\[.*?\]\((.+?)\)", text)
        assert pictures
        on_disk = {p.relative_to(path.parent) for p in path.parent.rglob("*.png")}
        assert {page.Path(name) for name in pictures} == on_disk

    def test_html_needs_nothing_else(self, written):
        _, _, path = written
        parser = parse(path.with_suffix(".html"))
        sources = [v for _, name, v in parser.attributes if name in ("src", "href")]
        assert all(v.startswith(("data:image/png;base64,", "#")) for v in sources)
        text = path.with_suffix(".html").read_text(encoding="utf-8")
        assert not re.search(r"https?:|@import|url\(|<script|<link", text)
        embedded = {
            base64.b64decode(v.partition(",")[2]) for v in sources if v[0] != "#"
        }
        assert embedded == {p.read_bytes() for p in path.parent.rglob("*.png")}

    def test_html_and_markdown_tell_the_same_numbers(self, written):
        _, _, path = written
        found = markdown_tables(path.read_text(encoding="utf-8"))
        rows = [row for table in found.values() for row in table]
        unescape = re.compile(r"\\([*<`|(])")
        # An empty cell of HTML has no data.
        told = [[unescape.sub(r"\1", c) for c in row if c] for row in rows]
        assert parse(path.with_suffix(".html")).rows == told

    def test_says_what_was_run_on_what(self, written):
        study, records, path = written
        text = path.read_text(encoding="utf-8")
        setting = {row[0]: row[1] for row in markdown_tables(text)["What was run"]}
        config = records[0].config
        assert setting["networks"] == records[0].model
        assert setting["data set"] == "digits"
        assert setting["width of the first stage"] == str(config["width"])
        assert setting["epochs"] == str(config["epochs"])
        assert setting["seeds"] == "3 (0, 1, 2)"
        assert setting["runs"] == f"{len(records)} finished, 0 diverged"
        assert {name: setting[name] for name in PROVENANCE} == PROVENANCE
        assert study.question.split(". ")[0] in text
        assert "says nothing about CIFAR-100" in text
        assert f"3 seeds instead of {study.full.seeds}" in text

    def test_results_are_numpys(self, written):
        study, records, path = written
        found = markdown_tables(path.read_text(encoding="utf-8"))
        told = {
            row[1]: row[2:]
            for title, rows in found.items()
            if title.startswith("Results")
            for row in rows[1:]
        }
        ran = {record.arm for record in records}
        assert set(told) == {study.arm(arm).label for arm in ran}
        for arm in ran:
            results = [r.result for r in records if r.arm == arm]
            cells = told[study.arm(arm).label]
            assert cells[0] == "3"
            names = ("best_epoch", "validation_loss", "test_accuracy")
            for name, cell in zip(names, cells[1:], strict=False):
                values = np.array([result[name] for result in results], np.float64)
                numbers = [float(part) for part in cell.split(" ± ")]
                expected = [values.mean(), values.std(ddof=1)]
                atol = 0.051 if name == "best_epoch" else 0.51e-4
                np.testing.assert_allclose(numbers, expected, atol=atol)

    def test_differences_are_numpys(self, written):
        study, records, path = written
        found = markdown_tables(path.read_text(encoding="utf-8"))
        rows = found["Paired differences in test accuracy (points)"][1:]
        assert len(rows) == len(study.comparisons)
        by_arm = {}
        for record in records:
            accuracies = by_arm.setdefault(record.arm, {})
            accuracies[record.seed] = 100 * record.result["test_accuracy"]
        for comparison, row in zip(study.comparisons, rows, strict=True):
            ours, theirs = (
                by_arm.get(name) for name in (comparison.arm, comparison.control)
            )
            if ours is None:
                assert row[3] == "not run"
                continue
            expected = np.mean([ours[seed] - theirs[seed] for seed in ours])
            assert float(row[4]) == pytest.approx(expected, abs=0.0051)

    @pytest.mark.parametrize("seeds", [0, 1])
    def test_few_seeds_render_and_say_so(self, written, tmp_path, seeds):
        study, records, _ = written
        few = [record for record in records if record.seed < seeds]
        path = report.write(study, few, tmp_path)
        text = path.read_text(encoding="utf-8")
        parse(path.with_suffix(".html"))
        if seeds:
            assert "1 seed instead of" in text
            assert "on one seed, which tells nothing" in text
            assert "±" not in markdown_tables(text)["Results"][1][3]
        else:
            assert "Not run yet." in text

    def test_every_run_diverged(self, written, tmp_path):
        study, records, _ = written
        path = report.write(study, [diverge(r) for r in records], tmp_path)
        text = path.read_text(encoding="utf-8")
        parse(path.with_suffix(".html"))
        assert f"0 finished, {len(records)} diverged" in text
        assert "diverged (3 of 3)" in text

    def test_one_arm_alone(self, written, tmp_path):
        study, records, _ = written
        arm = study.comparisons[0].arm
        alone = [record for record in records if record.arm == arm]
        text = report.write(study, alone, tmp_path).read_text(encoding="utf-8")
        control = study.arm(study.comparisons[0].control).label
        assert f"{control}, its control: not run." in text
        assert "control not run" in text


class TestConclusions:
    """The sentences say what was made up."""

    def test_a_gain_that_is_a_rates(self, tmp_path):
        study = study_of("plp")
        rng = np.random.default_rng(0)
        records = make(study, seeds=10, arms=("sgd", "plp-4", "matched-4"))
        for record in records:
            gain = 0.0 if record.arm == "sgd" else 0.05
            record.result["test_accuracy"] = 0.5 + gain + 1e-3 * rng.normal()
        text = report.write(study, records, tmp_path).read_text(encoding="utf-8")
        sentence = re.search(r"- (PLP, period 4 .*test accuracy.*)", text)[1]
        assert "beats SGD by 5" in sentence
        assert "that of a higher rate" in sentence
        assert (
            "Of 2 comparisons in test accuracy the arm beats its control in 1" in text
        )

    def test_a_lower_matched_rate_is_not_called_higher(self, tmp_path):
        study = study_of("ablation")
        rng = np.random.default_rng(0)
        arms = ("sgd", "step-0.25", "matched-15-16")
        records = make(study, seeds=10, arms=arms)
        for record in records:
            gain = 0.0 if record.arm == "sgd" else -0.05
            record.result["test_accuracy"] = 0.5 + gain + 1e-3 * rng.normal()
            if record.arm.startswith("matched"):
                for metrics in record.history:
                    metrics["learning_rate"] *= 0.5
        text = report.write(study, records, tmp_path).read_text(encoding="utf-8")
        assert re.search(r"PLP, step 0.25 loses to SGD by (4\.9|5)", text)
        assert "higher rate" not in text.partition("## Conclusions")[2]

    def test_the_plain_control_of_a_matched_one_stands_first(self, tmp_path):
        records = make(study_of("together"), seeds=3)
        path = report.write(study_of("together"), records, tmp_path)
        sentence = re.search(r"- (amplification and PLP .*)", path.read_text())[1]
        labels = [study_of("together").arm(a).label for a in ("amplify", "sgd")]
        first, second = (
            re.search(f"(from|of|to|equals) {n}\\b", sentence) for n in labels
        )
        assert first.start() < second.start()

    def test_diverged_runs_are_counted_and_left_out(self, tmp_path):
        study = study_of("plp")
        records = [
            diverge(r) if (r.arm, r.seed) == ("plp-4", 1) else r for r in make(study)
        ]
        text = report.write(study, records, tmp_path).read_text(encoding="utf-8")
        found = markdown_tables(text)
        rows = {row[1]: row for row in found["Results"][1:]}
        assert rows["PLP, period 4"][2] == "2, 1 diverged"
        assert "left out are runs that diverged: 1 of PLP, period 4" in text
        assert "2, 1 diverged" in {
            r[3]
            for r in found["Table 4: accuracy, top-1 and top-5 error on the test set"]
        } | {
            r[2]
            for r in found["Table 4: accuracy, top-1 and top-5 error on the test set"]
        }
        best = found["tiny: best epoch / validation loss"]
        column = best[0].index("PLP, period 4")
        assert [row[column] for row in best[1:]][1] == "diverged"

    def test_two_runs_of_a_seed_are_refused(self, tmp_path):
        study = study_of("plp")
        records = make(study)
        with pytest.raises(RunError, match="two tiny runs"):
            report.write(study, [*records, records[0]], tmp_path)

    def test_full_scale_is_no_miniature(self):
        study = study_of("plp")
        records = make(
            study, seeds=study.full.seeds, models=study.full.models, full=True
        )
        assert tables.shortfalls(Runs(study, records)) == []
        one_less = [r for r in records if r.seed and r.model != "vgg16"]
        assert tables.shortfalls(Runs(study, one_less)) == [
            "9 seeds instead of 10",
            "vgg16 not run",
        ]

    @pytest.mark.parametrize("part", [None, 1.0, 0.5])
    def test_a_part_of_the_images_is_a_miniature(self, part):
        study = study_of("plp")
        records = make(
            study, seeds=study.full.seeds, models=study.full.models, full=True
        )
        for record in records:
            record.config.pop("train_fraction", None)  # as of before it existed
            if part is not None:
                record.config["train_fraction"] = part
        runs = Runs(study, records)
        told = dict(row[:2] for row in tables.setting(runs).rows)
        assert told["share of the training images"] == str(part or 1).removesuffix(".0")
        assert tables.shortfalls(runs) == (
            ["share of the training images 0.5 instead of 1.0"] if part == 0.5 else []
        )


class TestPapersTables:
    def test_plps_stand_beside_the_papers(self, tmp_path):
        study = study_of("plp")
        records = make(study, models=("resnet18",))
        text = report.write(study, records, tmp_path).read_text(encoding="utf-8")
        found = markdown_tables(text)
        paper = tables.published("plp")
        header, *rows = found["Table 2, resnet18: best epoch / validation loss"]
        assert len(rows) == 11  # the paper's ten, and the mean
        for arm in study.arms:
            runs = [r.result for r in records if r.arm == arm.name]
            column = header.index(arm.label)
            pairs = [(r["best_epoch"], r["validation_loss"]) for r in runs]
            told = [tuple(map(float, row[column].split(" / "))) for row in rows[:3]]
            np.testing.assert_allclose(told, pairs, atol=0.51e-4)
            mean = [float(x) for x in rows[-1][column].split(" / ")]
            np.testing.assert_allclose(mean, np.mean(pairs, axis=0), atol=0.051)
        for kind, label in (("normal", "paper: SGD"), ("plp", "paper: PLP")):
            printed = np.array(paper["best_epoch_and_loss_1e-2"]["resnet18"][kind])
            column = header.index(label)
            told = [tuple(map(float, row[column].split(" / "))) for row in rows]
            np.testing.assert_allclose(told[:10], printed)
            np.testing.assert_allclose(told[10], printed.mean(axis=0), atol=0.05)
        header, *rows = found[
            "Table 4: accuracy, top-1 and top-5 error on the test set"
        ]
        vgg = next(row for row in rows if row[:2] == ["vgg16", "PLP, period 4"])
        assert vgg[2] == "not run"
        test = paper["test"]["vgg16"]["plp"]
        assert [float(c) for c in vgg[6:]] == list(test.values())
        assert "Table 1, vgg16: not run." in text
        assert "not comparable" in text

    def test_more_seeds_than_the_paper_ran(self, tmp_path):
        study = study_of("plp")
        records = make(study, seeds=12, models=("resnet18",), arms=("sgd", "plp-4"))
        text = report.write(study, records, tmp_path).read_text(encoding="utf-8")
        table = markdown_tables(text)["Table 2, resnet18: best epoch / validation loss"]
        assert len(table) == 1 + 12 + 1  # header and mean
        assert table[10][-1]
        assert table[11][-1] == ""

    def test_amplifications_keep_the_sweep_apart(self, tmp_path):
        study = study_of("amplification")
        gains = {"g2-case1-t0.7": 0.1, "original": 0.01}
        records = make(study, models=("vgg19",), gains=gains)
        text = report.write(study, records, tmp_path).read_text(encoding="utf-8")
        found = markdown_tables(text)
        header, *rows = found["Tables 3 and 4: test accuracy (%)"]
        told = {row[1]: row for row in rows if row[0] == "vgg19"}
        column = header.index("g2 case 1")

        def accuracies(arm):
            return [100 * r.result["test_accuracy"] for r in records if r.arm == arm]

        fixed, best = (
            told[f"ours, digits: {kind}"][column]
            for kind in ("threshold fixed, mean", "sweep, best run")
        )
        expected = np.mean(accuracies("g2-case1"))
        assert float(fixed.split(" ± ")[0]) == pytest.approx(expected, abs=0.0051)
        assert float(best) == pytest.approx(
            max(accuracies("g2-case1-t0.7")), abs=0.0051
        )
        assert told["paper, Table 4, cifar100"][column] == "69.83"
        assert [row[2:] for row in rows if row[0] == "resnet101"][-1] == ["not run"] * 6
        minutes = found["Tables 1 and 2: minutes of training"]
        ours = next(r for r in minutes if r[:2] == ["vgg19", "ours, digits"])
        assert ours[2:] == ["1.50 ± 0.00"] * 5
        assert "Results: sweep" in found
        swept = {row[1] for row in found["Results: sweep"][1:]}
        assert swept.isdisjoint(row[1] for row in found["Results"][1:])
        assert "vgg19: 2 of 72 settings were run." in text


class TestMechanism:
    @pytest.fixture
    def records(self):
        study = study_of("mechanism")
        arms = tuple(arm.name for arm in study.arms)
        return make(study, models=("plain", "resnet18"), arms=arms)

    def told(self, records, title="plain, full batch"):
        """What is said of each regime of a network."""
        blocks = mechanism_report.predictions(Runs(study_of("mechanism"), records))
        lists = {b.title: b.items for b in blocks if isinstance(b, Bullets)}
        labels = {regime.label: name for name, regime in REGIMES.items()}
        return {labels[item.partition(":")[0]]: item for item in lists[title]}

    def test_what_is_as_predicted_is_called_so(self, records):
        told = self.told(records)
        assert set(told) == set(REGIMES)
        assert all(line.endswith(" As predicted.") for line in told.values())
        assert "at 0.47 ± 0.00 with PLP (limit 0.47)" in told["heavy-high"]
        assert "at 3.80 ± 0.00 with SGD (limit 3.80)" in told["heavy-high"]
        # The matched rate is 9/8 of PLP's, and bears 3.8 at its own.
        ratio = 0.468 / (3.8 / (9 / 8))
        assert f"PLP ends at {ratio:.2f} times the curvature" in told["heavy-high"]
        assert "less than half as far on 3 of 3 seeds" in told["none-low"]

    def test_what_is_not_is_not(self, records):
        worse = []
        for record in records:
            method, _, name = record.arm.partition("-")
            measures = dict(record.measures)
            if method == "plp" and "high" in name:  # bears what its matched rate does
                twin = next(
                    r
                    for r in records
                    if (r.arm, r.model, r.seed)
                    == (f"matched-{name}", record.model, record.seed)
                )
                jitter = 1 + 0.01 * (record.seed - 1)
                curvatures = np.array(twin.measures["top_eigenvalue"]) * jitter
                if name == "heavy-high":
                    curvatures *= 2
                measures["top_eigenvalue"] = curvatures.tolist()
            if method == "plp" and "low" in name:  # goes elsewhere
                path = np.random.default_rng(record.seed).normal(size=(9, 64))
                measures["path"] = paths.pack(list(path))
            worse.append(dataclasses.replace(record, measures=measures))
        told = self.told(worse)
        for name in ("none-low", "heavy-low", "heavy-high"):
            assert told[name].endswith(" Not as predicted."), name
        for name in ("none-high", "nesterov-high"):
            assert told[name].endswith(" Cannot be told."), name

    def test_small_batches_get_no_verdict(self, records):
        told = self.told(records, "resnet18, small batches")
        assert all("PLP ends at" in item for item in told.values())
        assert not any("predicted." in item for item in told.values())

    def test_pictures_are_of_the_measurements(self, records):
        some = [diverge_at(r, 4) if r.arm == "plp-none-high" else r for r in records]
        runs = Runs(study_of("mechanism"), some)
        picture = curvature.along(runs, "plain")
        high = picture.figure.axes[list(REGIMES).index("none-high")]
        drawn = {line.get_label(): line for line in high.get_lines()}
        of = [
            r.config["learning_rate"] * np.array(r.measures["top_eigenvalue"])
            for r in records
            if (r.model, r.arm) == ("plain", "sgd-none-high")
        ]
        np.testing.assert_allclose(drawn["SGD"].get_ydata(), np.mean(of, axis=0))
        crosses = [line for line in high.get_lines() if line.get_marker() == "x"]
        assert [line.get_xdata() for line in crosses] == [[24]] * 3
        few = [r for r in some if "nesterov" not in r.arm]
        absent = curvature.along(Runs(study_of("mechanism"), few), "plain").figure
        panel = absent.axes[list(REGIMES).index("nesterov-high")]
        assert [text.get_text() for text in panel.texts] == ["not run"]
        far = curvature.distances(runs, "plain").figure
        low = far.axes[list(REGIMES).index("none-low")]
        lines = {line.get_label(): line.get_ydata()[-1] for line in low.get_lines()}
        # 1 - 8/9 of PLP's way, and twice 1 % of noise on 9/8.
        assert lines["SGD"] == pytest.approx(100 / 9, rel=0.1)
        assert lines["SGD, rate x 9/8"] == pytest.approx(
            100 * math.sqrt(2) * 0.01 * 8 / 9, rel=0.3
        )
