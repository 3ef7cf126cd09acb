"""The command line of studies: list, run, report."""

import os
import signal
import subprocess
import sys

import pytest

from experiments import __main__ as command
from experiments import report, studies
from experiments.records import RecordFile
from experiments.study import Arm, Outcome, Scale, Study

ARMS = (Arm("sgd", "SGD", {"rate": 1}), Arm("plp", "PLP", {"rate": 2}))


@pytest.fixture
def streams(monkeypatch):
    """A study that trains nothing, and the runs that it carries out."""
    seen = []

    def execute(config, tick):
        seen.append((config["rate"], config["seed"]))
        tick(1.0, "epoch 1/1")
        return Outcome({"test_accuracy": 0.5}, [], {})

    scales = (
        Scale("full", models=("stream",), seeds=2, fields={"width": 64}),
        Scale("quick", models=("stream",), seeds=1, fields={"width": 4}),
    )
    study = Study("streams", "Streams", "?", arms=ARMS, scales=scales, execute=execute)
    load = studies.load
    monkeypatch.setattr(studies, "NAMES", (*studies.NAMES, "streams"))
    monkeypatch.setattr(
        studies, "load", lambda name: study if name == "streams" else load(name)
    )
    return seen


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    """The folders that reports are written for; none is written."""
    seen = []

    def write(table, folder):
        runs = [(r.arm, r.seed) for r in table.records]
        seen.append((table.study.name, folder.parent.name, runs))
        return folder / "report.md"

    monkeypatch.setattr(report, "write", write)
    return seen


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def records_of(scale):
    return sorted((r.arm, r.seed) for r in RecordFile(scale / "streams").read())


def test_run_then_report(streams, reports, tmp_path, capsys):
    assert command.main(["run", "streams", "--quick"]) == 0
    assert streams == [(1, 0), (2, 0)]
    quick = ("streams", "quick", [("sgd", 0), ("plp", 0)])
    assert reports == [quick]
    # By default results are in a folder that git ignores.
    folder = "runs/experiments/quick/streams"
    assert f"report: {folder}/report.md" in capsys.readouterr().out

    assert command.main(["report", folder]) == 0
    assert reports == [quick, quick]


def test_scales_have_a_folder_each(streams, tmp_path):
    out = ["--out", "here"]
    assert command.main(["run", "streams", *out]) == 0
    assert command.main(["run", "streams", "--quick", "--width", "8", *out]) == 0
    plain = ["--width", "9", "--name", "wide"]
    assert command.main(["run", "streams", *plain, *out]) == 0
    assert command.main(["run", "streams", "--arms", "sgd", "--seeds", "3", *out]) == 0
    here = tmp_path / "here"
    assert {path.name for path in here.iterdir()} == {"full", "quick-width-8", "wide"}
    assert records_of(here / "full") == [
        *(("plp", seed) for seed in range(2)),
        *(("sgd", seed) for seed in range(3)),
    ]


def test_the_plan_is_printed_and_nothing_is_run(streams, tmp_path, capsys):
    assert command.main(["run", "streams", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "0 of 4 runs recorded already in runs/experiments/full/streams" in out
    assert "stream: 2 arms x 2 seeds, 4 runs to do" in out
    for arm in ARMS:
        assert f"{arm.name}: {arm.label}" in out
    assert streams == []
    assert not list(tmp_path.iterdir())


def test_interruption_keeps_what_has_finished(streams, monkeypatch, capsys, tmp_path):
    load = studies.load

    def interrupted(config, tick):
        if config["rate"] == 2:
            raise KeyboardInterrupt
        return Outcome({"test_accuracy": 0.5}, [], {})

    study = load("streams")
    object.__setattr__(study, "execute", interrupted)
    assert command.main(["run", "streams", "--quick"]) == 130
    assert "stopped" in capsys.readouterr().err
    assert records_of(tmp_path / "runs/experiments/quick") == [("sgd", 0)]


def test_list_names_every_study_scale_and_arm(capsys):
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    for name in studies.NAMES:
        study = studies.load(name)
        for scale in study.scales:
            assert f"run {name} --scale {scale.name}:" in listed
        assert study.arms[0].name in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "plq"], "no study 'plq'"),
        (["report", "plp"], "run the study first"),
        (["run", "plp", "--small", "--quick"], "--small and --quick"),
        (["run", "plp", "--scale", "huge"], "--scale huge: plp has full, small, quick"),
        (["run", "plp", "--models", "resnet19"], "--models resnet19"),
        (["run", "sequential", "--models", "lorenz"], "--models lorenz"),
        (["run", "plp", "--arms", "sgd", "adam"], "--arms adam"),
        (["run", "plp", "--seeds", "0"], "--seeds"),
        (["run", "plp", "--width", "0"], "--width"),
        (["run", "head_to_head", "--epochs", "3"], "epochs must be at least 8"),
        (
            ["run", "amplification", "--quick", "--arms", "noop", "--epochs", "3"],
            "epochs must be at least 8",
        ),
        (["run", "plp", "--precision", "float8"], "float8"),
        (["run", "mechanism", "--dataset", "mnist"], "--dataset must be one of digits"),
        (["run", "plp", "--budget-minutes", "-1"], "--budget-minutes"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path, capsys, arguments, message):
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# -- As a process ----------------------------------------------------------------------


def test_a_closed_pipe_ends_without_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-m", "experiments", "list"],
        cwd=command.__file__.rpartition("/experiments/")[0],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert found.stderr == ""
    assert found.returncode == 128 + signal.SIGPIPE
