"""The program as a user runs it: flags in, a work directory out."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import train
import training
from tests.support import programs
from training import recipe
from training.engine.engine import Engine
from training.errors import RunError
from training.run import callbacks, workdir
from training.run.workdir import read_json, read_metrics
from training.settings import config

ROOT = Path(__file__).parents[2]
TINY = ["--model", "tiny", "--width", "4", "--epochs", "3", "--batch-size", "128"]
STRATEGY = "[(1, 0.05, 0, 1), (4, 0.05, 1, 3.0), (5, 0.01, 0, 1)]"
LISTED = [*TINY[:4], *TINY[6:], "--strategy", STRATEGY]
AMPLIFY = ["--method", "amplify", "--amplify-threshold", "0.5"]


@pytest.fixture(scope="module", autouse=True)
def _shared_programs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "build", programs.build)
        yield


def files(path):
    return {p.relative_to(path): p.stat().st_mtime_ns for p in path.rglob("*")}


def without_times(history):
    return [{k: v for k, v in m.items() if k != "images_per_second"} for m in history]


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
        "best.msgpack",
        "checkpoints",
        "curves.png",
        "confusion.png",
        "tensorboard",
        ".lock",
    }
    fields = json.loads((finished / "config.json").read_text())
    assert (fields["model"], fields["plp_period"]) == ("tiny", 4)

    history = read_metrics(finished)
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
            "validation_macro_f1",
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
    # Kernels 3x3x1x4, 3x3x4x8 and 8x10, four norms' vectors, and a bias.
    assert result["parameters"] == 36 + 288 + 80 + 2 * 4 + 2 * 8 + 10
    assert 0 <= result["test_macro_f1"] <= 1
    assert not result["stopped_early"]
    for name in ("curves.png", "confusion.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").iterdir())


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
    argv = ["--config", str(finished / "config.json")]
    assert train.main([*argv, "--workdir", str(tmp_path / "b")]) == 0
    first, second = (read_metrics(p) for p in (finished, tmp_path / "b"))
    assert without_times(first) == without_times(second)


def test_several_seeds_equal_single_runs(finished, tmp_path, monkeypatch, capsys):
    """Compiled once, and each the run that it would have been alone."""
    prepared = []
    prepare = recipe.prepare
    monkeypatch.setattr(
        recipe, "prepare", lambda *arguments: prepared.append(1) or prepare(*arguments)
    )
    argv = [*TINY, "--seed", "1", "0", "--workdir", str(tmp_path)]
    assert train.main(argv) == 0
    assert len(prepared) == 1
    first, second = (read_metrics(tmp_path / f"seed-{seed}") for seed in (1, 0))
    alone = without_times(read_metrics(finished))
    assert without_times(second) == alone
    assert first[0]["train_loss"] != alone[0]["train_loss"]
    output = capsys.readouterr().out
    results = [read_json(tmp_path / f"seed-{n}" / workdir.RESULT) for n in (0, 1)]
    accuracies = [100 * result["test_accuracy"] for result in results]
    mean, deviation = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert f"test accuracy {mean:.2f} ± {deviation:.2f} %" in output


RANDOM = [*LISTED, "--method", "amplify", "--amplify-select", "random"]
RANDOM += ["--amplify-ratio", "0.34"]


def test_what_depends_on_the_seed_is_built_for_every_seed(tmp_path, monkeypatch):
    """Random layers are drawn in the compiled step."""
    built = []

    def build(config, dataset, source):
        built.append((config.seed, dataset.validation.images.tobytes()))

    result = {"test_accuracy": 0.5, "test_loss": 1.0}
    monkeypatch.setattr(recipe, "build", build)
    monkeypatch.setattr(recipe, "_run", lambda *arguments: result)
    for name, flags in {
        "random": RANDOM,
        "split": [*TINY, "--split-per-seed"],
        "shared": TINY,
    }.items():
        argv = [*flags, "--seed", "0", "1", "--workdir", str(tmp_path / name)]
        assert train.main(argv) == 0
    seeds, parts = zip(*built, strict=True)
    assert seeds == (0, 1, 0, 1, 0)
    assert parts[0] == parts[1] == parts[2] == parts[4] != parts[3]


@pytest.mark.slow
def test_every_seed_draws_other_random_layers(tmp_path):
    assert train.main([*RANDOM, "--seed", *"01234", "--workdir", str(tmp_path)]) == 0
    drawn = {
        tuple(read_metrics(tmp_path / f"seed-{seed}")[2]["amplified"])
        for seed in range(5)
    }
    assert all(len(layers) == 1 for layers in drawn)
    assert len(drawn) > 1


def test_profile_is_a_trace(tmp_path):
    argv = [*TINY, "--profile", "--max-steps", "9", "--workdir", str(tmp_path / "run")]
    assert train.main(argv) == 0
    assert list((tmp_path / "run" / "profile").rglob("*perfetto*"))


# -- What is used is what is recorded --------------------------------------------------


def test_without_validation_and_with_the_rate_that_is_used(tmp_path):
    """In float64, one step an epoch, with plain gradient descent."""
    path = tmp_path / "run"
    argv = ["--model", "tiny", "--width", "2", "--batch-size", "1024", "--epochs", "9"]
    argv += ["--precision", "float64", "--validation-fraction", "0"]
    argv += ["--method", "sgd", "--momentum", "0", "--weight-decay", "0"]
    argv += ["--schedule", "cyclic", "--learning-rate", "0.01", "--cycle-steps", "3"]
    argv += ["--max-learning-rate", "0.07", "--warmup-epochs", "2"]
    argv += ["--test-each-epoch", "--workdir", str(path)]
    assert train.main(argv) == 0
    history = read_metrics(path)

    rates = [0.01 / 3, 0.01 * 2 / 3]  # the warm-up starts above 0
    rates += [0.01 + 0.06 * part / 3 for part in (0, 1, 2, 3, 2, 1, 0)]
    recorded = [m["learning_rate"] for m in history]
    np.testing.assert_allclose(recorded, rates, rtol=1e-14)
    used = [m["update_norm"] / m["gradient_norm"] for m in history]
    np.testing.assert_allclose(used, rates, rtol=1e-13)

    # Without validation the last epoch is taken.
    result = json.loads((path / "result.json").read_text())
    assert result["best_epoch"] == 9
    assert result["validation_loss"] is None
    assert {m["validation_loss"] for m in history} == {None}
    for name in ("test_loss", "test_accuracy"):
        assert result[name] == history[-1][name] != history[0][name]


@pytest.fixture(scope="module")
def amplified(tmp_path_factory):
    """Histories of five epochs: one plain, an analysis, two amplified, one plain."""
    root = tmp_path_factory.mktemp("amplified")
    methods = {
        "sgd": ["--method", "sgd"],
        "plain": AMPLIFY,
        "propagated": [*AMPLIFY, "--amplify-propagate"],
    }
    for name, extra in methods.items():
        assert train.main([*LISTED, *extra, "--workdir", str(root / name)]) == 0
    return root


def assert_amplification_is_recorded(path):
    history = read_metrics(path)
    (analysis,) = (m["analysis"] for m in history if m["analysis"])
    assert history[1]["analysis"] == analysis
    selected = [row["layer"] for row in analysis if row["amplified"]]
    assert 0 < len(selected) < len(analysis)
    assert selected == [row["layer"] for row in analysis if row["z_score"] > 0.5]
    assert [m["amplified"] for m in history] == [[], [], selected, selected, []]
    rates = [m["learning_rate"] for m in history]
    np.testing.assert_allclose(rates, [0.05, 0.05, 0.05, 0.05, 0.01])
    assert "after epoch 2" in (path / "layers.txt").read_text()
    assert (path / "amplification.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["plain", "propagated"])
def test_amplification_is_recorded(amplified, form):
    assert_amplification_is_recorded(amplified / form)


def test_a_run_without_amplification_has_no_files_of_it(amplified):
    names = {path.name for path in (amplified / "sgd").iterdir()}
    assert not names & {"layers.txt", "amplification.png"}
    assert "amplified" not in read_metrics(amplified / "sgd")[0]


def test_forms_of_amplification_differ_in_amplified_epochs_only(amplified):
    losses = {
        form: [m["train_loss"] for m in read_metrics(amplified / form)]
        for form in ("sgd", "plain", "propagated")
    }
    for form in ("plain", "propagated"):
        np.testing.assert_allclose(losses[form][:2], losses["sgd"][:2], rtol=1e-3)
        assert abs(losses[form][2] - losses["sgd"][2]) > 1e-3
    assert abs(losses["plain"][3] - losses["propagated"][3]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["g1", "g1_per_weight"])
def test_other_measures_are_recorded(tmp_path, measure):
    argv = [*LISTED, *AMPLIFY, "--amplify-measure", measure]
    assert train.main([*argv, "--workdir", str(tmp_path / "run")]) == 0
    assert_amplification_is_recorded(tmp_path / "run")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--amplify-select", "stage9"], "stage9"),
        (["--amplify-threshold", "9"], "--amplify-threshold 9.0 does not fit"),
        (["--strategy", "[(5, 0.1, 1, 0)]"], "stage 1 of the strategy, (5, 0.1, 1, 0)"),
        (["--strategy", "[(2, 0.1, 0, 1), (3, 0.1, 1, 2)]"], "lasts only one epoch"),
        (["--strategy", "[(2, 0.1, 0, 1)]"], "no stage of the strategy is amplified"),
        (["--strategy", "paper", "--epochs", "3"], "--strategy paper"),
        (["--batch-size", "126"], "over 4 devices: choose 124 or 128"),
        (["--batch-size", "4096"], "more than the 1150 training examples"),
        (["--dataset", "cifar10", "--data-dir", "/nonexistent"], "/nonexistent"),
        (["--cache-dir", __file__], f"--cache-dir {__file__} cannot be used"),
        (["--plp-step", "1"], "--plp-step"),
    ],
)
def test_bad_input_gets_a_sentence_and_code_2(tmp_path, capsys, argv, message):
    argv = ["--model", "tiny", "--width", "4", "--method", "amplify", *argv]
    path = tmp_path / "run"
    assert train.main([*argv, "--workdir", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    # What could not start does not block the next.
    assert not path.exists() or {p.name for p in path.iterdir()} <= {".lock"}


def test_files_of_others_are_left_alone(tmp_path, capsys):
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


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_record_is_a_sentence(finished, tmp_path, capsys, text):
    path = tmp_path / "run"
    path.mkdir()
    shutil.copy(finished / "config.json", path)
    (path / "result.json").write_text(text)
    assert train.main([*TINY, "--workdir", str(path)]) == 2
    error = capsys.readouterr().err
    assert "result.json" in error
    assert error.count("\n") == 1


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Engine, "train_steps", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train.main([*TINY, "--workdir", str(tmp_path / "run")])


# -- Callbacks -------------------------------------------------------------------------


class Noting(callbacks.Callback):
    """Notes what it is called with; ends the run after an epoch."""

    def __init__(self, last=None):
        self.last = last
        self.steps, self.epochs = [], []

    def on_call(self, state):
        self.steps.append(int(state.step))

    def on_epoch(self, state, metrics):
        norm = np.sqrt(sum(np.sum(x**2.0) for x in jax.tree.leaves(state.params)))
        assert metrics["parameter_norm"] == pytest.approx(norm, rel=1e-5)
        self.epochs.append(dict(metrics))
        if metrics["epoch"] == self.last:
            raise StopIteration


def test_callbacks_see_every_call_and_epoch(finished, tmp_path):
    callback, path = Noting(), tmp_path / "run"
    (result,) = recipe.train(config.parse([*TINY, "--workdir", str(path)]), callback)
    assert callback.steps == list(range(1, 25))
    assert callback.epochs == read_metrics(path)
    assert without_times(callback.epochs) == without_times(read_metrics(finished))
    assert result == read_json(path / workdir.RESULT)


def test_an_exception_of_a_callback_ends_a_run_that_can_be_resumed(finished, tmp_path):
    path = tmp_path / "run"
    configs = config.parse([*TINY, "--workdir", str(path)])
    with pytest.raises(StopIteration):
        recipe.train(configs, Noting(last=2))
    assert len(read_metrics(path)) == 2
    callback = Noting()
    recipe.train(configs, callback)
    assert [m["epoch"] for m in callback.epochs] in ([2, 3], [3])
    assert without_times(read_metrics(path)) == without_times(read_metrics(finished))


# -- Other processes -------------------------------------------------------------------


def run_on(devices, path, *argv):
    """A run in another process with so many CPU devices."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
        [sys.executable, "train.py", "--workdir", str(path), *argv],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_one_and_four_devices_agree_to_1e_9_over_20_steps(tmp_path):
    """One step an epoch, so that every step's loss is on record."""
    argv = ["--model", "tiny", "--width", "4", "--precision", "float64", "--augment"]
    argv += ["--batch-size", "1024", "--epochs", "20", "--warmup-epochs", "4"]
    run_on(1, tmp_path / "1", *argv)
    assert jax.device_count() == 4
    assert train.main([*argv, "--workdir", str(tmp_path / "4")]) == 0
    histories = [read_metrics(tmp_path / n) for n in "14"]
    one, four = (
        np.array([[m[k] for k in ("train_loss", "validation_loss", "update_norm")]
                  for m in history])
        for history in histories
    )  # fmt: skip
    assert one.shape == (20, 3)
    assert one[-1, 0] < one[0, 0]
    np.testing.assert_allclose(one, four, rtol=0, atol=1e-9)
    # A warm-up to 0.05, then a cosine of 16 steps.
    rates = [0.05 * i / 5 for i in range(1, 5)]
    rates += [0.05 * (1 + np.cos(np.pi * i / 16)) / 2 for i in range(16)]
    for history in histories:
        recorded = [m["learning_rate"] for m in history]
        np.testing.assert_allclose(recorded, rates, rtol=1e-13)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_survives_the_reader_of_its_output(tmp_path):
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "train.py", *TINY, "--workdir", str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert read_json(path / workdir.RESULT)["epochs"] == 3


def test_command_line_needs_no_jax_to_refuse():
    """Bad flags are reported at once, before anything heavy is imported."""
    code = (
        "import sys, train; code = train.main(['--epochs', '0']); "
        "assert code == 2; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_early_stopping_and_the_moving_average(tmp_path, capsys):
    """A rate so high that the validation loss soon rises."""
    path = tmp_path / "run"
    argv = [*TINY, "--epochs", "40", "--early-stopping", "2", "--ema", "0.5"]
    argv += ["--warmup-epochs", "0"]
    argv += ["--schedule", "plateau", "--plateau-patience", "1", "--lr", "20"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    assert "stopped early" in capsys.readouterr().out
    history = read_metrics(path)
    result = json.loads((path / "result.json").read_text())
    losses = [m["validation_loss"] for m in history]
    best = int(np.argmin(losses)) + 1
    assert len(history) == best + 2 < 40
    expected = {"best_epoch": best, "epochs": best + 2, "stopped_early": True}
    assert expected.items() <= result.items()
    assert result["steps"] == history[-1]["step"]
    # The rate of an epoch follows from the losses before it.
    lowest, rates = math.inf, [20.0]
    for loss in losses[:-1]:
        rates.append(rates[-1] * (1.0 if loss < (1 - 1e-4) * lowest else 0.1))
        lowest = min(lowest, loss)
    np.testing.assert_allclose([m["learning_rate"] for m in history], rates, rtol=1e-5)

    averaged, plain = training.load(path, average=True), training.load(path)
    logits = [t.module.apply(t.variables, np.ones((1, 8, 8, 1)), train=False)
              for t in (averaged, plain)]  # fmt: skip
    assert not np.allclose(*logits)
    assert history[-1]["average_validation_loss"] != history[-1]["validation_loss"]
    assert 0 <= result["average_test_accuracy"] <= 1


def test_a_run_without_an_average_says_so(finished):
    with pytest.raises(RunError, match="holds no average"):
        training.load(finished, average=True)


def test_the_average_is_computed_once_after_an_epoch(tmp_path, monkeypatch):
    """Its running statistics take a pass over training batches."""
    steps, averaged = [], Engine.averaged

    def counted(engine, state, seed):
        steps.append(int(state.step))
        return averaged(engine, state, seed)

    monkeypatch.setattr(Engine, "averaged", counted)
    path = tmp_path / "run"
    argv = [*TINY, "--epochs", "2", "--method", "tail-average"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    assert steps == [m["step"] for m in read_metrics(path)]
