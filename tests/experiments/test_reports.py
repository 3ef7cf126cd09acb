"""Reports: every committed one is rebuilt; and made-up records whose truth is known."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import figures, report, studies, table
from experiments.reports import acceleration, published
from experiments.reports import mechanism as mechanism_report
from experiments.reports.amplification import rises, sections
from tests.support.reports import (
    PAIR,
    diverge,
    make,
    run,
    table_of,
    tables_of,
    without_validation,
)
from training.run import style

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(path.parent for path in RESULTS.glob("*/*/records.jsonl"))
TRAINED = [name for name in studies.NAMES if studies.load(name).execute is None]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Laying out and drawing takes most of the time."""
    monkeypatch.setattr(style, "legend", lambda *arguments, **options: None)
    monkeypatch.setattr(figures, "save", lambda figure, path: path.touch())


def write(study, header, records, folder):
    made = table.make(study, header, records)
    return report.write(made, folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda p: str(p.relative_to(RESULTS)))
def test_a_committed_report_is_what_its_records_say(folder, tmp_path):
    for name in ("records.jsonl", "report.md"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    loaded = table.load(tmp_path)
    assert loaded.outdated == 0
    assert folder.parent.name == folder_of(tmp_path)
    text = report.write(loaded, tmp_path).read_text(encoding="utf-8")
    assert text == (folder / "report.md").read_text(encoding="utf-8")
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {path.name for path in folder.glob("figures/*")}
    assert drawn == set(re.findall(r"\]\(figures/(.+?)\)", text))


def folder_of(folder):
    return table.RecordFile(folder).read_all()[0].scale


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_pictures_can_be_drawn(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    # The network "plain" has no blocks.
    first = "tiny" if name in ("cascade", "vanishing") else "plain"
    # All arms differ, so that all comparisons are decided.
    gains = {arm.name: i / 100 for i, arm in enumerate(studies.load(name).arms)}
    study, header, records = make(
        name, models=(first, "resnet18"), seeds=9, gains=gains
    )
    write(study, header, records, tmp_path)
    pictures = list(tmp_path.rglob("*.png"))
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            assert 300 < picture.width < 1400


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["without validation", "every run diverged", "one"])
def test_incomplete_runs_render(tmp_path, name, kind):
    first = studies.load(name).scale("quick").models[0]
    study, header, records = make(name, models=(first,), seeds=2)
    runs = {
        "without validation": [without_validation(r) for r in records],
        "every run diverged": [diverge(r) for r in records],
        "one": records[:1],
    }[kind]
    text = write(study, header, runs, tmp_path)
    assert ("1 seed instead of" in text) == (kind == "one")
    assert ("0; diverged: 2 / 2" in text) == (kind == "every run diverged")
    assert not re.search("^## .+\n\n## ", text, re.MULTILINE)  # nothing below
    for title, rows in tables_of(text).items():
        assert len({len(row) for row in rows}) == 1, title
        assert len(rows) > 1, title


def test_a_study_without_a_module_gets_the_generic_report(tmp_path):
    records = [run(a, s, test_accuracy=0.5) for a in ("old", "new") for s in range(2)]
    _, header, _ = make("plp")
    text = write(PAIR, header, records, tmp_path)
    assert "## Conclusions" not in text  # nobody has written any
    assert "2 seeds instead of 5" in text
    path = tmp_path / "report.md"
    by_hand = "## Conclusions\n\nNone.\n\n- Not one.\n\n"
    path.write_text(text.replace("## Comparisons", f"{by_hand}## Comparisons"))
    assert by_hand in write(PAIR, header, records, tmp_path)  # and kept


# -- Shortfalls ------------------------------------------------------------------------


def test_full_scale_falls_short_of_nothing():
    models = studies.load("plp").scale("full").models
    study, _, records = make("plp", seeds=10, models=models, scale="full")
    assert report.shortfalls(table_of(records, study, models)) == []
    fewer = [r for r in records if r.seed and r.model != "vgg16"]
    assert report.shortfalls(table_of(fewer, study, models)) == [
        "9 seeds instead of 10",
        "vgg16 not run",
    ]
    for record in records:
        record.config["train_fraction"] = 0.5
    assert report.shortfalls(table_of(records, study, models)) == [
        "fraction of the training images used 0.5 instead of 1.0"
    ]


# -- The papers' tables ----------------------------------------------------------------


def test_plps_numbers_are_next_to_ours_on_the_papers_data(tmp_path):
    study, header, records = make("plp", models=("resnet18",), scale="full")
    text = write(study, header, records, tmp_path)
    found = tables_of(text)
    *_, theirs = found["Accuracy, top-1 and top-5 error on the test set"]
    printed = published("plp")["test"]["resnet18"]["plp"]
    assert [float(cell) for cell in theirs[3:]] == list(printed.values())


@pytest.fixture
def amplification():
    gains = {"g2-case1-t0.7": 0.1, "original": 0.01}
    arms = ("original", "random", "g2-case1", "g2-case1-t0.7", "g1-case1")
    study, _, records = make(
        "amplification", models=("vgg19",), gains=gains, arms=arms, scale="full"
    )
    return table_of(records, study, ("vgg19",))


def test_amplifications_best_run_is_apart_from_its_mean(amplification):
    blocks = sections(amplification)
    text = "\n\n".join(block for block in blocks if isinstance(block, str))
    header, *rows = tables_of(text)["Test accuracy (%)"]
    shown = {row[1]: row[header.index("g2 case 1")] for row in rows}

    def accuracies(arm):
        of_arm = [r for r in amplification.records if r.arm == arm]
        return [100 * r.result["test_accuracy"] for r in of_arm]

    fixed = shown["ours (cifar100): threshold fixed, mean"]
    assert float(fixed.split()[0]) == pytest.approx(
        np.mean(accuracies("g2-case1")), abs=0.0051
    )
    best = max(accuracies("g2-case1") + accuracies("g2-case1-t0.7"))
    assert float(shown["ours (cifar100): best run"]) == pytest.approx(best, abs=0.0051)
    printed = published("amplification")["best_test_accuracy"]["cifar100"]["vgg19"]
    assert float(shown["paper, Table 4 (cifar100)"]) == printed[4]


def test_rises_are_means_over_layers_and_amplified_epochs():
    study, _, records = make("amplification", models=("vgg19",), arms=("all", "noop"))
    found = rises(table_of(records, study, ("vgg19",)))
    # One of five layers in every second epoch, or in each that may amplify.
    for arm, factor in (("all", 2.0), ("noop", 1.0)):
        of_arm = found.filter(arm=arm)
        share = of_arm["share"].to_numpy() / 100
        assert len(share) == 3
        assert ((share > 0) & (share <= 0.2)).all()
        np.testing.assert_allclose(of_arm["rise"], 1 + (factor - 1) * share)


def test_mechanism_agrees_with_its_made_up_theory(tmp_path):
    study, header, records = make("mechanism", models=("plain",))
    text = write(study, header, records, tmp_path)
    _, *rows = tables_of(text)["PLP and its matched rate"]
    for row in rows:
        if "high" in row[1]:
            assert row[3] == row[4]  # the ratio of limits
        assert row[-2:] == ["1.0 ± 0.0", "12.5 ± 0.0"]
    assert len(rows) == 5
    plain = mechanism_report.REGIMES[0]
    limits = {arm: mechanism_report.limit(arm, plain) for arm in ("sgd", "plp")}
    assert limits["sgd"] == pytest.approx(2)
    # The matched rate is 9/8 of the cycle's.
    ratio = mechanism_report._limit_ratio(plain)
    assert limits["plp"] / ratio == pytest.approx(2 / (9 / 8))


# -- Acceleration ----------------------------------------------------------------------


def timed(arm, rates, accuracies, *, seconds):
    record = run(arm, 0, curve=accuracies, train_seconds=seconds)
    for metrics, rate in zip(record.history, rates, strict=True):
        metrics["images_per_second"] = rate
    return record


def timings(records, name):
    study = studies.load("acceleration")
    (metric,) = (m for m in acceleration.METRICS if m.name == name)
    return metric.values(table_of(records, study))


def test_seconds_of_epochs_and_to_a_target():
    # 1,200 images an epoch: 3, 1, 2 and 4 seconds.
    record = timed("all", [400, 1200, 600, 300], [0.1, 0.6, 0.8, 0.7], seconds=10)
    assert timings([record], "seconds_per_epoch")["value"].item() == pytest.approx(2.5)
    for best, until in ((0.6, 4), (0.8, 6), (1.0, 10 + 2.5)):
        control = timed("none", [1] * 4, [0.0, 0.0, 0.0, best], seconds=1)
        found = timings([record, control], "seconds_to_target")
        value = found.filter(arm="all", control="none")["value"].item()
        assert value == pytest.approx(until)
