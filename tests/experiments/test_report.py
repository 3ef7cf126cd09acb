"""Reports, on made-up records whose truth is known."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import report, stability_chart, studies, tables
from experiments.comparisons import compare_all
from experiments.reports import mechanism as mechanism_report
from experiments.statistics import MIN_SEEDS
from tests.support.reports import (
    PAIR,
    PROVENANCE,
    REGIMES,
    diverge,
    make,
    run,
    runs_of,
    tables_of,
    without_validation,
)

SAVE = report._save
RESULTS = Path(__file__).parents[2] / "results"


TRAINED = [name for name in studies.NAMES if studies.load(name).execute is None]


@pytest.fixture(scope="module", autouse=True)
def cheap_pictures():
    """Laying out and drawing takes most of the time: one test does it for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability_chart, "_POINTS", 20)
        patch.setattr(report, "_save", lambda figure, path: path.touch())
        yield


@pytest.fixture(scope="module", params=TRAINED)
def written(request, tmp_path_factory):
    first = studies.load(request.param).scale("quick").models[0]
    study, header, records = make(request.param, models=(first,))
    folder = tmp_path_factory.mktemp(study.name)
    (folder / "conclusions.md").write_text("Nothing follows.\n")
    path = report.write(study, header, records, folder)
    return study, records, path, path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_pictures_can_be_drawn(name, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_save", SAVE)
    first = "tiny" if name == "cascade" else "plain"  # which has no blocks
    study, header, records = make(name, models=(first, "resnet18"))
    report.write(study, header, records, tmp_path)
    pictures = list(tmp_path.rglob("*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            assert 300 < picture.width < 1400


class TestEveryStudy:
    def test_tables_are_rectangular_and_have_no_empty_rows_or_columns(self, written):
        *_, text = written
        found = tables_of(text)
        assert len(found) == text.count("\n| :--")
        for title, rows in found.items():
            assert len(rows) > 1, title
            assert len({len(row) for row in rows}) == 1, title
            for row in rows[1:]:
                assert any(cell not in ("", "-") for cell in row[2:] or row[1:]), title
            for column in zip(*rows[1:], strict=True):
                assert any(cell not in ("", "-") for cell in column), title

    def test_pictures_are_there_with_alt_text_that_names_network_and_data(
        self, written
    ):
        _, records, path, text = written
        pictures = re.findall(r"!\[(.*?)\]\((.+?)\)", text)
        assert {path.parent / name for _, name in pictures} == set(
            path.parent.rglob("*.png")
        )
        for alt, name in pictures:
            if "stability" not in name:  # which is of no network
                assert alt.endswith("on digits"), alt
                assert "differences" in name or records[0].model in alt

    def test_conclusions_and_a_chart_come_first_and_versions_last(self, written):
        study, records, _, text = written
        head = text.splitlines()[0]
        assert head == f"# {study.title}: {records[0].model} on digits"
        order = [
            text.index(part)
            for part in (
                "## Conclusions\n\nNothing follows.",
                "figures/differences-test-accuracy.png",
                "## Comparisons",
                "## Results",
                "## Settings and versions",
                "**Versions**",
            )
        ]
        assert order == sorted(order)
        assert "##" not in text[order[-2] :].removeprefix("## ")

    def test_says_what_was_run_on_what(self, written):
        study, records, _, text = written
        found = tables_of(text)
        setting, versions = dict(found["Settings"]), dict(found["Versions"])
        assert setting["networks"] == records[0].model
        assert setting["data set"] == "digits"
        width = study.scale("quick").fields["width"]
        assert setting["width of the first stage"] == str(width)
        seeds = sorted({record.seed for record in records})
        assert setting["seeds"] == f"3 ({', '.join(map(str, seeds))})"
        assert setting["runs"] == f"{len(records)} finished, 0 diverged"
        expected = {n.replace("_", "\\_"): v for n, v in PROVENANCE.items()}
        assert {n: versions[n] for n in expected} == expected
        assert study.question in text
        assert "A reduced form of the study: " in text
        assert f"3 seeds instead of {study.scale('full').seeds}" in text

    def test_results_are_numpys(self, written):
        study, records, _, text = written
        shown = {
            row[1]: row[2:]
            for title, rows in tables_of(text).items()
            if title.startswith("Results")
            for row in rows[1:]
        }
        ran = {record.arm for record in records}
        assert set(shown) == {study.arm(arm).label for arm in ran}
        for arm in ran:
            results = [r.result for r in records if r.arm == arm]
            accuracies = [100 * result["test_accuracy"] for result in results]
            losses = [result["validation_loss"] for result in results]
            count, accuracy, loss, *_ = shown[study.arm(arm).label]
            assert count == "3"
            for cell, values, digits in ((accuracy, accuracies, 2), (loss, losses, 4)):
                numbers = [float(part) for part in cell.split(" ± ")]
                expected = [np.mean(values), np.std(values, ddof=1)]
                np.testing.assert_allclose(numbers, expected, atol=0.51 * 10**-digits)

    def test_differences_are_numpys_with_their_sign(self, written):
        study, records, _, text = written
        title = "Test accuracy: arm minus control (points; higher is better)"
        rows = {tuple(row[1:3]): row for row in tables_of(text)[title][1:]}
        values = {}
        for record in records:
            label = study.arm(record.arm).label
            by_seed = values.setdefault(label, {})
            by_seed[record.seed] = 100 * record.result["test_accuracy"]
        labels = [tuple(study.arm(n).label for n in c) for c in study.comparisons]
        assert set(rows) == {p for p in labels if values.keys() >= set(p)}
        for (arm, control), row in rows.items():
            ours, theirs = values[arm], values[control]
            expected = np.mean([ours[seed] - theirs[seed] for seed in ours])
            assert float(row[5]) == pytest.approx(expected, abs=0.0051)
            assert row[3] == "too few seeds"

    @pytest.mark.parametrize(
        "kind",
        [
            "without validation",
            "every run diverged",
            pytest.param("one seed", marks=pytest.mark.slow),
            pytest.param("one arm", marks=pytest.mark.slow),
        ],
    )
    def test_incomplete_runs_render(self, written, tmp_path, kind):
        study, records, *_ = written
        _, header, _ = make(study.name, models=(records[0].model,))
        arm = study.comparisons[0].arm
        runs = {
            "without validation": [without_validation(r) for r in records],
            "every run diverged": [diverge(r) for r in records],
            "one seed": [r for r in records if r.seed == records[0].seed],
            "one arm": [r for r in records if r.arm == arm],
        }[kind]
        path = report.write(study, header, runs, tmp_path)
        text = path.read_text(encoding="utf-8")
        assert ("Validation loss:" in text) == (kind == "one seed")
        assert ("1 seed instead of" in text) == (kind == "one seed")
        assert ("0; diverged: 3 / 3" in text) == (kind == "every run diverged")
        if kind == "one seed":
            assert "±" not in text.partition("## Results")[2].partition("*Mean")[0]


# -- The verdicts of a report ----------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_verdicts_are_those_of_the_truth(tmp_path, sign):
    rng = np.random.default_rng(0)
    records = [
        run(
            arm,
            seed,
            test_accuracy=0.5 + (arm == "new") * sign * 0.05 + 1e-3 * rng.normal(),
            validation_loss=1.0 - (arm == "new") * sign * 0.1 + 1e-3 * rng.normal(),
            best_epoch=1,
        )
        for arm in ("old", "new")
        for seed in range(MIN_SEEDS)
    ]
    _, header, _ = make("plp")
    text = report.write(PAIR, header, records, tmp_path).read_text(encoding="utf-8")
    rows = {title.partition(":")[0]: rows for title, rows in tables_of(text).items()}
    verdict = "**better**" if sign > 0 else "**worse**"
    for name, start in (("Test accuracy", "+-"), ("Validation loss", "-+")):
        row = rows[name][1]
        assert row[3] == verdict
        assert row[5][0] == start[sign < 0]
    assert rows["Best epoch"][1][3] == "no difference shown"


def test_a_study_without_a_module_gets_the_generic_report(tmp_path):
    records = [run(a, s, test_accuracy=0.5) for a in ("old", "new") for s in range(2)]
    _, header, _ = make("plp")
    text = report.write(PAIR, header, records, tmp_path).read_text(encoding="utf-8")
    assert "## Conclusions" not in text  # nobody has written any
    assert "figures/accuracy-tiny.png" in text
    assert "2 seeds instead of 5" in text


def test_a_study_that_does_not_train_by_the_recipe(tmp_path):
    study = dataclasses.replace(PAIR, execute=lambda config, tick: None)
    records = [
        dataclasses.replace(run(a, s, test_accuracy=0.5), config={"units": 4})
        for a in ("old", "new")
        for s in range(2)
    ]
    _, header, _ = make("plp")
    text = report.write(study, header, records, tmp_path).read_text(encoding="utf-8")
    assert text.startswith("# Two arms: tiny\n")


def test_diverged_runs_are_counted_and_left_out(tmp_path):
    study, header, records = make("plp")
    records = [diverge(r) if (r.arm, r.seed) == ("plp-4", 1) else r for r in records]
    text = report.write(study, header, records, tmp_path).read_text(encoding="utf-8")
    found = tables_of(text)
    rows = {row[1]: row for row in found["Results"][1:]}
    assert rows["PLP, period 4"][2] == "2, 1 diverged"
    compared = found["Test accuracy: arm minus control (points; higher is better)"]
    assert next(r for r in compared if r[1] == "PLP, period 4")[4] == (
        "2; diverged: 1 / 0"
    )
    best = found["tiny on digits: best epoch / loss"]
    column = best[0].index("PLP, period 4")
    assert [row[column] for row in best[1:]][1] == "diverged"


# -- What falls short ------------------------------------------------------------------


def test_full_scale_falls_short_of_nothing():
    models = studies.load("plp").scale("full").models
    study, _, records = make("plp", seeds=10, models=models, scale="full")
    assert tables.shortfalls(runs_of(records, study, models)) == []
    fewer = [r for r in records if r.seed and r.model != "vgg16"]
    assert tables.shortfalls(runs_of(fewer, study, models)) == [
        "9 seeds instead of 10",
        "vgg16 not run",
    ]


def test_part_of_the_images_falls_short():
    models = studies.load("plp").scale("full").models
    study, _, records = make("plp", seeds=10, models=models, scale="full")
    for record in records:
        record.config["train_fraction"] = 0.5
    assert tables.shortfalls(runs_of(records, study, models)) == [
        "fraction of the training images used 0.5 instead of 1.0"
    ]


# -- The papers' tables ----------------------------------------------------------------


class TestPapersNumbers:
    def test_plps_are_next_to_ours_on_the_papers_data(self):
        from experiments.reports import plp

        study, _, records = make("plp", models=("resnet18",), scale="full")
        runs = runs_of(records, study, ("resnet18",))
        blocks = plp.sections(runs, compare_all(runs))
        text = "\n\n".join(block for block in blocks if isinstance(block, str))
        found = tables_of(text)
        paper = tables.published("plp")
        header, *rows = found["resnet18 on cifar100: best epoch / loss"]
        assert [row[0] for row in rows] == ["0", "1", "2", "mean", "paper"]
        for arm in (arm for arm in study.arms if not arm.group):
            results = [r.result for r in records if r.arm == arm.name]
            pairs = [(r["best_epoch"], r["validation_loss"]) for r in results]
            column = header.index(arm.label)
            shown = [tuple(map(float, row[column].split(" / "))) for row in rows[:4]]
            np.testing.assert_allclose(shown[:3], pairs, atol=0.51e-4)
            np.testing.assert_allclose(shown[3], np.mean(pairs, axis=0), atol=0.051)
        # The means that the paper itself gives: 41.3 and 38.8 epochs.
        assert rows[4][1].startswith("41.3 / ")
        assert rows[4][2].startswith("38.8 / ")
        *_, theirs = found["Accuracy, top-1 and top-5 error on the test set"]
        printed = paper["test"]["resnet18"]["plp"]
        assert [float(cell) for cell in theirs[3:]] == list(printed.values())
        assert "59.49 %" in text

    def test_digits_have_no_columns_of_the_papers(self, tmp_path):
        for name in ("plp", "amplification"):
            study, header, records = make(name, models=("resnet18",))
            path = report.write(study, header, records, tmp_path / name)
            cells = [
                cell
                for rows in tables_of(path.read_text(encoding="utf-8")).values()
                for row in rows
                for cell in row
            ]
            assert not any(cell.startswith("paper") for cell in cells)

    @pytest.fixture
    def amplification(self):
        from experiments.reports import amplification

        gains = {"g2-case1-t0.7": 0.1, "original": 0.01}
        arms = ("original", "random", "g2-case1", "g2-case1-t0.7", "g1-case1")
        study, _, records = make(
            "amplification", models=("vgg19",), gains=gains, arms=arms, scale="full"
        )
        for record in records:
            if record.arm == "g2-case1":
                record.result["train_seconds"] = 99.0  # 90 of all others
        runs = runs_of(records, study, ("vgg19",))
        blocks = amplification.sections(runs, compare_all(runs))
        return records, blocks

    def test_amplifications_best_run_is_apart_from_its_mean(self, amplification):
        records, blocks = amplification
        text = "\n\n".join(block for block in blocks if isinstance(block, str))
        header, *rows = tables_of(text)["Test accuracy (%)"]
        column = header.index("g2 case 1")
        shown = {row[1]: row[column] for row in rows}

        def accuracies(arm):
            return [100 * r.result["test_accuracy"] for r in records if r.arm == arm]

        fixed = shown["ours (cifar100): threshold fixed, mean"]
        assert float(fixed.split(" ± ")[0]) == pytest.approx(
            np.mean(accuracies("g2-case1")), abs=0.0051
        )
        assert float(shown["ours (cifar100): best run"]) == pytest.approx(
            max(accuracies("g2-case1-t0.7")), abs=0.0051
        )
        assert shown["paper, Table 4 (cifar100)"] == "69.83"

    def test_minutes_have_their_increase(self, amplification):
        _, blocks = amplification
        text = "\n\n".join(block for block in blocks if isinstance(block, str))
        header, ours, paper = tables_of(text)["Minutes of training"]
        column = header.index("g2 case 1")
        assert ours[column] == "1.650 ± 0.000 (+10.0 %)"
        # 32.16 of 31.62 minutes.
        assert paper[column] == "32.16 (+1.7 %)"
        assert paper[header.index("original")] == "31.62"

    def test_the_rise_of_the_rate_is_the_mean_over_layers(self):
        from experiments.reports import amplification

        study, _, records = make("amplification", models=("vgg19",))
        runs = runs_of(records, study, ("vgg19",))
        blocks = amplification.sections(runs, [])
        text = "\n\n".join(block for block in blocks if isinstance(block, str))
        header, *rows = tables_of(text)["Mean rise of the effective learning rate"]
        found = {row[1]: dict(zip(header, row, strict=True)) for row in rows}
        assert "g2 case 1, propagated" not in found
        assert "original" not in found
        # One of five layers in the sixth epoch, the only one in an amplified stage.
        for label, rise in (
            ("amplification by 1", 1.0),
            ("random layers", 1.2),
            ("g2 case 1, factor 1.5", 1.1),
            ("g2 case 1, factor 10", 2.8),
        ):
            assert found[label]["layers amplified (%)"] == "20.0 ± 0.0"
            assert found[label]["rate x"] == f"{rise:.3f} ± 0.000"
        plain = found["g2 case 1, factor 10"]["plain arm at the matched rate"]
        assert plain == study.arm("rate-1.9").label

    def test_figure_11_has_the_best_threshold(self, amplification):
        _, blocks = amplification
        pictures = {
            b.name: b for b in blocks if b is not None and not isinstance(b, str)
        }
        legend = pictures["accuracy-vgg19"].figure.legends[0]
        labels = {text.get_text() for text in legend.get_texts()}
        assert "g2 case 1, threshold 0.7" in labels
        assert "g2 case 1" not in labels


# -- The mechanism ---------------------------------------------------------------------


def test_the_mechanisms_table_is_what_was_made_up():
    arms = tuple(arm.name for arm in studies.load("mechanism").arms)
    study, _, records = make("mechanism", models=("plain",), arms=arms)
    blocks = mechanism_report.sections(runs_of(records, study, ("plain",)), [])
    text = "\n\n".join(block for block in blocks if isinstance(block, str))
    header, *rows = tables_of(text)["PLP and its matched rate"]
    names = {regime.label: name for name, regime in REGIMES.items()}
    by_regime = {names[row[1]]: dict(zip(header, row, strict=True)) for row in rows}
    assert set(by_regime) == set(REGIMES)
    for name, row in by_regime.items():
        found = float(row["ratio of curvatures at the end"])
        theory = float(row["ratio of limits (theory)"])
        # At low rates both end at learning rate x curvature 0.1.
        assert found == pytest.approx(theory if "high" in name else 9 / 8, abs=0.006)
        matched, sgd = (
            float(row[f"distance from {control} (%)"].split(" ± ")[0])
            for control in ("the matched rate", "SGD")
        )
        # 1 - 8/9 of PLP's way, and two random 1 % of 9/8.
        assert sgd == pytest.approx(100 / 9, rel=0.1)
        assert matched == pytest.approx(100 * np.sqrt(2) * 0.01 * 8 / 9, rel=0.3)
    # The limits at heavy ball: 0.468, and 3.8 of the matched rate, 9/8 of PLP's.
    theory = by_regime["heavy-high"]["ratio of limits (theory)"]
    assert float(theory) == pytest.approx(0.468 / (3.8 * 8 / 9), abs=0.006)


# -- What is committed -----------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    sorted(RESULTS.glob("*/*/report.md")),
    ids=lambda path: path.parent.relative_to(RESULTS).as_posix(),
)
def test_committed_reports_have_their_conclusions_and_pictures(path):
    text = path.read_text(encoding="utf-8")
    conclusions = path.parent / "conclusions.md"
    if conclusions.exists():
        assert conclusions.read_text(encoding="utf-8").strip() in text
    pictures = {path.parent / name for name in re.findall(r"\]\((.+?\.png)\)", text)}
    assert pictures == set(path.parent.rglob("*.png"))
