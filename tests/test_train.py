"""The program as a user runs it: flags in, a work directory out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
import training
from training import data, records
from training.loop import Loop

ROOT = Path(__file__).parent.parent
TINY = ["--model", "tiny", "--width", "8", "--epochs", "3", "--batch-size", "128"]


STRATEGY = ["--strategy", "[(1, 0.05, 0, 1), (4, 0.05, 1, 3.0), (5, 0.01, 0, 1)]"]
AMPLIFY = [*TINY[:4], "--batch-size", "128", *STRATEGY, "--amplify-threshold", "0.5"]


def files(path):
    return {p.relative_to(path): p.stat().st_mtime_ns for p in path.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's work directory."""
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*TINY, "--workdir", str(path)]) == 0
    return path


def test_work_directory_explains_itself(finished):
    assert {p.name for p in finished.iterdir()} == {
        "config.json",
        "dataset.json",
        "metrics.jsonl",
        "result.json",
        "best",
        "checkpoints",
        "curves.png",
        "tensorboard",
        ".lock",
    }
    config = json.loads((finished / "config.json").read_text())
    assert (config["model"], config["plp_period"]) == ("tiny", 4)

    history = records.read_metrics(finished)
    assert [m["epoch"] for m in history] == [1, 2, 3]
    assert [m["step"] for m in history] == [8, 16, 24]
    for metrics in history:
        assert set(metrics) == {
            "epoch",
            "step",
            "train_loss",
            "train_accuracy",
            "validation_loss",
            "validation_accuracy",
            "learning_rate",
            "gradient_norm",
            "update_norm",
            "parameter_norm",
            "skipped_steps",
            "images_per_second",
        }
    assert history[-1]["train_loss"] < history[0]["train_loss"] < np.log(10) * 1.5

    result = json.loads((finished / "result.json").read_text())
    best = min(history, key=lambda m: m["validation_loss"])
    assert result["best_epoch"] == best["epoch"]
    assert result["validation_loss"] == best["validation_loss"]
    assert result["test_top1_error"] == pytest.approx(1 - result["test_accuracy"])
    assert 0 <= result["test_top5_error"] <= result["test_top1_error"]
    assert result["jax"] == jax.__version__
    assert result["train_seconds"] > 0
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").iterdir())


def test_what_was_trained_can_be_used(finished):
    module, variables, config = training.load(finished)
    facts = json.loads((finished / "dataset.json").read_text())
    dataset = data.load(config.dataset, validation_fraction=config.validation_fraction)
    images = data.normalize(
        jnp.asarray(dataset.test.images), facts["mean"], facts["std"]
    )
    logits = module.apply(variables, images, train=False)
    accuracy = np.mean(np.asarray(logits).argmax(-1) == dataset.test.labels)
    result = json.loads((finished / "result.json").read_text())
    assert accuracy == pytest.approx(result["test_accuracy"])


def test_a_finished_run_is_not_repeated(finished, capsys):
    before = files(finished)
    assert train.main([*TINY, "--workdir", str(finished)]) == 0
    assert "has finished" in capsys.readouterr().out
    assert files(finished) == before


def test_another_configuration_is_refused_with_the_differences(finished, capsys):
    before = files(finished)
    argv = [*TINY, "--seed", "5", "--workdir", str(finished)]
    assert train.main(argv) == 2
    message = capsys.readouterr().err
    assert "seed is 0 there and 5 here" in message
    assert "--overwrite" in message
    assert files(finished) == before


def test_the_same_run_from_its_own_config_file(finished, tmp_path):
    argv = ["--config", str(finished / "config.json"), "--workdir", str(tmp_path / "b")]
    assert train.main(argv) == 0
    first, second = (records.read_metrics(p) for p in (finished, tmp_path / "b"))
    for a, b in zip(first, second, strict=True):
        del a["images_per_second"], b["images_per_second"]
        assert a == b


def test_several_seeds_equal_single_runs(finished, tmp_path, monkeypatch):
    """Compiled once, and each the run that it would have been alone."""
    compilations = []
    compile_ = Loop.compile
    monkeypatch.setattr(
        Loop, "compile", lambda self: compilations.append(1) or compile_(self)
    )
    argv = [*TINY, "--seed", "1", "0", "--workdir", str(tmp_path)]
    assert train.main(argv) == 0
    assert len(compilations) == 1
    first = records.read_metrics(tmp_path / "seed-1")
    alone, second = (
        [
            {k: v for k, v in m.items() if k != "images_per_second"}
            for m in records.read_metrics(path)
        ]
        for path in (finished, tmp_path / "seed-0")
    )
    assert second == alone
    assert first[0]["train_loss"] != alone[0]["train_loss"]


def test_every_seed_draws_random_layers_of_its_own(tmp_path):
    argv = [*TINY[:4], "--batch-size", "128", *STRATEGY, "--method", "amplify"]
    argv += ["--amplify-select", "random", "--amplify-ratio", "0.34"]
    assert train.main([*argv, "--seed", *"01234", "--workdir", str(tmp_path)]) == 0
    drawn = {
        tuple(records.read_metrics(tmp_path / f"seed-{seed}")[2]["amplified"])
        for seed in range(5)
    }
    assert all(len(layers) == 1 for layers in drawn)
    assert len(drawn) > 1


def test_profile_is_a_trace(tmp_path):
    argv = [*TINY, "--profile", "--max-steps", "9", "--workdir", str(tmp_path / "run")]
    assert train.main(argv) == 0
    assert list((tmp_path / "run" / "profile").rglob("*perfetto*"))


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    """A second run of the same program finds all that the first has compiled."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    argv = ("--model", "tiny", "--width", "4", "--max-steps", "1")
    cache = tmp_path / "cache"
    for run in "ab":
        run_on(1, tmp_path / run, *argv, "--cache-dir", str(cache))
        kept = sorted(p.name for p in cache.iterdir() if p.name.endswith("-cache"))
        if run == "a":
            first = kept
    assert first
    assert kept == first


def test_without_validation_the_last_epoch_is_taken(tmp_path):
    path = tmp_path / "run"
    argv = [*TINY, "--validation-fraction", "0", "--method", "sgd"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    result = json.loads((path / "result.json").read_text())
    assert result["best_epoch"] == 3
    assert result["validation_loss"] is None
    assert records.read_metrics(path)[0]["validation_loss"] is None


@pytest.mark.parametrize(
    "extra",
    [[], ["--amplify-propagate"], ["--amplify-measure", "g1"]],
    ids=["plain", "propagated", "g1"],
)
def test_amplification_is_recorded(tmp_path, extra, capsys):
    path = tmp_path / "run"
    argv = [*AMPLIFY, "--method", "amplify+plp", *extra, "--workdir", str(path)]
    assert train.main(argv) == 0
    history = records.read_metrics(path)
    # Epoch 1 is plain, 2 the analysis, 3 and 4 amplified, 5 plain.
    (analysis,) = (m["analysis"] for m in history if m["analysis"])
    assert history[1]["analysis"] == analysis
    selected = [row["layer"] for row in analysis if row["amplified"]]
    assert 0 < len(selected) < len(analysis)
    assert selected == [row["layer"] for row in analysis if row["z_score"] > 0.5]
    assert [m["amplified"] for m in history] == [[], [], selected, selected, []]
    rates = [m["learning_rate"] for m in history]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.05, 0.05, 0.01])
    assert "layers stand out" in capsys.readouterr().out
    assert "after epoch 2" in (path / "layers.txt").read_text()
    assert (path / "amplification.png").read_bytes().startswith(b"\x89PNG")


def test_propagated_and_plain_amplification_start_alike_and_part(tmp_path):
    """The forms differ in amplified epochs only."""
    losses = {}
    for name, extra in {
        "sgd": ["--method", "sgd"],
        "plain": ["--method", "amplify", "--amplify-threshold", "0.5"],
        "propagated": [
            *("--method", "amplify", "--amplify-threshold", "0.5"),
            "--amplify-propagate",
        ],
    }.items():
        argv = [*AMPLIFY[:-2], *extra, "--workdir", str(tmp_path / name)]
        assert train.main(argv) == 0
        history = records.read_metrics(tmp_path / name)
        losses[name] = [m["train_loss"] for m in history]
    for name in ("plain", "propagated"):
        np.testing.assert_allclose(losses[name][:2], losses["sgd"][:2], rtol=1e-3)
        assert abs(losses[name][2] - losses["sgd"][2]) > 1e-3
    assert abs(losses["plain"][3] - losses["propagated"][3]) > 1e-3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--amplify-select", "stage9"], "layers that do not exist: stage9"),
        (["--amplify-threshold", "9"], "threshold 9.0 cannot be exceeded"),
        (["--strategy", "[(5, 0.1, 1, 0)]"], "stage 1 of the strategy, (5, 0.1, 1, 0)"),
        (["--strategy", "[(2, 0.1, 0, 1), (3, 0.1, 1, 2)]"], "lasts only one epoch"),
        (["--strategy", "[(2, 0.1, 0, 1)]"], "no stage of the strategy is amplified"),
        (["--strategy", "paper", "--epochs", "3"], "--strategy paper"),
    ],
)
def test_bad_amplification_gets_a_sentence(tmp_path, capsys, argv, message):
    argv = ["--model", "tiny", "--method", "amplify", *argv]
    assert train.main([*argv, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "126"], "over 4 devices: take 124 or 128"),
        (["--batch-size", "4096"], "more than the 1150 training examples"),
        (["--learning-rate", "1e30", "--optimizer", "sgd"], "diverged"),
        (["--method", "sgd", "--plp-step", "1"], "--plp-step 1.0 means nothing"),
        (["--dataset", "cifar10", "--data-dir", "/nonexistent"], "/nonexistent"),
    ],
)
def test_bad_input_gets_a_sentence_and_code_2(tmp_path, capsys, argv, message):
    assert train.main([*TINY, *argv, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_work_directories_of_somebody_else_are_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    for extra in ([], ["--overwrite"]):
        assert train.main([*TINY, "--workdir", str(tmp_path), *extra]) == 2
        assert "thesis.tex" in capsys.readouterr().err
    path = tmp_path / "thesis.tex"
    assert train.main([*TINY, "--workdir", str(path), "--overwrite"]) == 2
    assert "is a file" in capsys.readouterr().err
    assert train.main([*TINY, "--workdir", str(path / "run")]) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_files_of_the_same_names_without_a_run_are_left_alone(tmp_path, capsys):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "mine.txt").write_text("precious")
    for extra in ([], ["--overwrite"]):
        assert train.main([*TINY, "--workdir", str(tmp_path), *extra]) == 2
        assert "not a run's (best)" in capsys.readouterr().err
    assert (tmp_path / "best" / "mine.txt").exists()


def test_a_run_that_could_not_start_does_not_block_the_next(tmp_path, capsys):
    path = tmp_path / "run"
    argv = [*TINY, "--max-steps", "1", "--workdir", str(path)]
    assert train.main([*argv, "--batch-size", "4096"]) == 2
    assert train.main(argv) == 0


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_record_is_told(finished, tmp_path, capsys, text):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(text)
    assert train.main([*TINY, "--workdir", str(path)]) == 2
    assert "damaged" in capsys.readouterr().err
    shutil.copy(finished / "config.json", path)
    (path / "result.json").write_text("{}")
    assert train.main([*TINY, "--workdir", str(path)]) == 2
    assert "result.json is damaged" in capsys.readouterr().err
    with pytest.raises(training.UserError, match="cannot be read"):
        training.load(tmp_path / "nowhere")


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Loop, "train_epoch", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train.main([*TINY, "--workdir", str(tmp_path / "run")])


def run_on(devices, workdir, *argv):
    """A run in a process of its own, with so many CPU devices; its losses."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    subprocess.run(
        [sys.executable, "train.py", "--workdir", str(workdir), *argv],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    return np.array(
        [[m["train_loss"], m["validation_loss"]] for m in records.read_metrics(workdir)]
    )


def test_a_run_outlives_the_reader_of_its_output(tmp_path):
    workdir = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "train.py", *TINY, "--workdir", str(workdir)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert records.read_json(workdir / records.RESULT)["epochs"] == 3


def test_one_and_four_devices_agree_to_1e_9_over_20_steps(tmp_path):
    """One step an epoch, so that every step's loss is on record."""
    argv = (
        *("--model", "tiny", "--width", "4", "--precision", "float64"),
        *(
            "--batch-size",
            "1024",
            "--epochs",
            "20",
            "--warmup-epochs",
            "0",
            "--augment",
        ),
    )
    one, four = (run_on(n, tmp_path / str(n), *argv) for n in (1, 4))
    assert one.shape == (20, 2)
    assert one[-1, 0] < one[0, 0]
    np.testing.assert_allclose(one, four, rtol=0, atol=1e-9)


def test_command_line_needs_no_jax_to_refuse(tmp_path):
    """Bad flags are told at once, before anything heavy is imported."""
    code = (
        "import sys, train; code = train.main(['--epochs', '0']); "
        "assert code == 2; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
