"""Reports, on made-up records whose truth is known."""

import base64
import dataclasses
import html.parser
import math
import os
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from experiments import (
    figures,
    page,
    paths,
    plan,
    report,
    stability_chart,
    studies,
    style,
    tables,
)
from experiments.page import Bullets, Notice, Page, Picture, Section, Table
from experiments.records import Record
from experiments.reports import ablation, comparisons, curvature, layers
from experiments.reports import mechanism as mechanism_report
from experiments.reports.runs import Runs
from experiments.studies import mechanism
from experiments.study import Scale
from training.config import experiment
from training.errors import RunError

LAYERS = ["stem/conv", "stage1/block0/conv1", "stage10/conv", "stage2/conv", "head"]
REGIMES = {regime.name: regime for regime in mechanism.REGIMES}
PROVENANCE = {
    **{"device": "1 x test device (cpu)", "python": "3.11", "jax": "0.10.2"},
    **{"flax": "0.12.8", "optax": "0.2.8", "plp_optax": "0.1.0", "commit": "c0ffee"},
}


def make(study, *, seeds=3, models=("tiny",), gains=None, arms=None, full=False):
    """Records of a study's arms, with ``gains`` in accuracy by arm, or random ones."""
    scale = study.full if full else study.quick
    scale = Scale(models, seeds, scale.fields, arms or scale.arms)
    return [
        made_up(task, None if gains is None else gains.get(task.arm.name, 0.0))
        for task in plan.tasks(study, scale)
    ]


def made_up(task, gain):
    rng = np.random.default_rng(zlib.crc32(f"{task.config.seed}".encode()))
    own = np.random.default_rng(zlib.crc32(task.name.encode()))
    if gain is None:
        gain = 0.01 * own.normal()
    epochs = task.config.epochs
    time = np.arange(1, epochs + 1) / epochs
    accuracy = 0.4 + 0.2 * time + 0.01 * rng.normal() + gain
    loss = 2 - time - gain + 0.01 * rng.normal()
    if epochs > 3:
        loss[-2] -= 0.5  # the best epoch
    rate = 0.05 * (9 / 8 if "matched" in task.arm.name else 1)
    history = [
        {
            **{"epoch": e + 1, "step": 9 * (e + 1), "learning_rate": rate},
            **{"train_loss": loss[e], "train_accuracy": accuracy[e]},
            **{"validation_loss": loss[e], "validation_accuracy": accuracy[e]},
        }
        for e in range(epochs)
    ]
    if "amplify" in task.config.method:
        for e, metrics in enumerate(history):
            metrics["amplified"] = LAYERS[:1] if e % 2 else []
            scores = own.normal(size=len(LAYERS))
            metrics["analysis"] = e == 1 and [
                {
                    **{"layer": name, "score": 0.5, "noise_floor": 0.1},
                    **{"z_score": z, "amplified": z > 1},
                }
                for name, z in zip(LAYERS, scores, strict=True)
            ]
            metrics["analysis"] = metrics["analysis"] or None
    best = int(np.argmin(loss))
    result = {
        **{"best_epoch": best + 1, "validation_loss": loss[best]},
        **{"test_accuracy": accuracy[best], "test_top1_error": 1 - accuracy[best]},
        **{"test_top5_error": 0.1, "test_loss": 1.0, "train_seconds": 90.0},
        **{"epochs": epochs, "steps": 9 * epochs, **PROVENANCE},
    }
    measures = {}
    if task.config.seed == 0 and task.arm.name in ("sgd", "plp-4"):
        path = {"step": [1, 2, 3, 4], "weight": [0.0, 1, 2, 3], "bias": [1.0, 1, 1, 1]}
        which = {"weight": "conv/kernel[1]", "bias": "head/bias[0]"}
        measures = {"path": {**path, "which": which}}
    if task.arm.name.partition("-")[2] in REGIMES:
        measures = observed(task)
    return Record(
        **{"arm": task.arm.name, "model": task.config.model, "seed": task.config.seed},
        **{"config": experiment(task.config), "result": result, "history": history},
        measures=measures,
    )


def observed(task):
    """As theory predicts: curvature rises to the limit of its regime at high rates.

    PLP and its matched rate take the same path up to a random 1 %.
    """
    method, _, name = task.arm.name.partition("-")
    regime = REGIMES[name]
    end = curvature.limit(method, regime) if "high" in name else 0.1
    time = np.linspace(0.1, 1, 9)
    products = end * np.minimum(1, 2 * time)
    rng = np.random.default_rng(task.config.seed)
    own = np.random.default_rng(zlib.crc32(task.name.encode()))
    path = time[:, None] * rng.normal(size=64) * (1 if method == "sgd" else 9 / 8)
    path += 0.01 * own.normal(size=path.shape)
    return {
        "step": list(range(0, 72, 8)),
        "top_eigenvalue": (products / task.config.learning_rate).tolist(),
        "path": paths.pack(list(path)),
    }


def diverge(record, epochs=2):
    return dataclasses.replace(
        record,
        result={"diverged": "the loss is no longer finite"},
        history=record.history[:epochs],
    )


def diverge_at(record, times):
    """A run of the mechanism that was looked at so often before it diverged."""
    measures = record.measures
    path = paths.unpack(measures["path"], len(measures["step"]))[:times]
    cut = {name: measures[name][:times] for name in ("step", "top_eigenvalue")}
    return dataclasses.replace(
        diverge(record), measures={**cut, "path": paths.pack(list(path))}
    )


def study_of(name):
    return studies.module(name).STUDY


def markdown_tables(text):
    """Tables by the bold line above them: a list of rows of cells, header first."""
    found = {}
    for block in re.finditer(r"\*\*(.+?)\*\*\n\n((?:\|.*\n?)+)", text):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block[2].strip().split("\n")
        ]
        found[block[1]] = [rows[0], *rows[2:]]
    return found


class Parser(html.parser.HTMLParser):
    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.rows = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def parse(path):
    parser = Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


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
        assert told["part of the rest trained on"] == str(part or 1).removesuffix(".0")
        assert tables.shortfalls(runs) == (
            ["part of the rest trained on 0.5 instead of 1.0"] if part == 0.5 else []
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


class TestPage:
    def test_what_could_be_markup_is_text(self, tmp_path):
        nasty = "a < b & c | *d* `e` <script>x</script>"
        table = Table(nasty, ("x", nasty), [("1", nasty)], note=nasty)
        blocks = [nasty, Bullets(nasty, [nasty]), Notice(nasty), table]
        path = page.write(Page(nasty, [Section(nasty, blocks)]), tmp_path)
        parser = parse(path.with_suffix(".html"))
        assert not any(tag == "script" for tag, *_ in parser.attributes)
        assert parser.text.count(nasty) >= 8
        row = path.read_text(encoding="utf-8").split("\n| 1 |")[1].split("\n")[0]
        assert row.count("|") - row.count(r"\|") == 1

    def test_a_table_must_be_rectangular(self):
        with pytest.raises(ValueError, match="not rectangular"):
            Table("t", ("a", "b"), [("1",)])

    def test_pictures_of_an_earlier_report_go(self, tmp_path):
        picture = Picture("new", style.figure(), "A picture.")
        stale = tmp_path / "figures" / "old.png"
        stale.parent.mkdir()
        stale.write_bytes(b"")
        page.write(Page("t", [Section("s", [picture])]), tmp_path)
        assert [p.name for p in stale.parent.iterdir()] == ["new.png"]

    def test_the_same_report_is_the_same_files(self, tmp_path):
        study = study_of("together")
        records = make(study, models=("vgg19",))
        for name in ("a", "b"):
            report.write(study, records, tmp_path / name)
        a, b = (
            {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
            for name in ("a", "b")
        )
        assert a == b


class TestNumbers:
    def test_spread_is_numpys(self):
        values = np.array([0.1, 0.25, 0.31])
        mean, deviation = tables.spread(values, 6).split(" ± ")
        assert float(mean) == pytest.approx(np.mean(values), abs=1e-6)
        assert float(deviation) == pytest.approx(np.std(values, ddof=1), abs=1e-6)

    @pytest.mark.parametrize("value", [None, math.nan])
    def test_what_is_not_there_is_a_dash(self, value):
        assert tables.number(value) == tables.signed(value) == "-"
        assert tables.spread(np.array([])) == "-"
