"""The program as a user runs it: flags in, a work directory out."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
import train
import training
from tests.support import programs
from tests.support.bad_inputs import contents
from tests.support.runs import metrics_of
from training import recipe
from training.engine.engine import Engine
from training.errors import DivergedError, RunError
from training.layout import File, mean_path
from training.run import callbacks, plots
from training.run.checkpoints import read
from training.run.workdir import read_json, read_metrics
from training.settings import config

ROOT = Path(__file__).parents[2]
TINY = ["--model", "tiny", "--width", "2", "--batch-size", "256"]
STRATEGY = "[(1, 0.05, 0, 1), (4, 0.05, 1, 3.0), (5, 0.01, 0, 1)]"
AMPLIFY = [*TINY, "--width", "4", "--strategy", STRATEGY, "--method", "amplify"]
AMPLIFY += ["--amplify-threshold", "0.5"]
STALLING = [*TINY, "--method=sgd", "--lr=20", "--warmup-epochs=0", "--average=ema"]
STALLING += ["--average-decay=0.5", "--schedule=plateau", "--plateau-patience=1"]


def test_work_directory_explains_itself(trained):
    assert {p.name for p in trained.path.iterdir()} == {
        *("config.json", "dataset.json", "metrics.jsonl", "result.json", ".lock"),
        *("best.msgpack", "checkpoints", "curves.png", "confusion.png", "tensorboard"),
        "average.msgpack",
    }
    fields = json.loads((trained.path / "config.json").read_text())
    assert (fields["model"], fields["learning_rate"]) == ("tiny", 0.5)

    history = read_metrics(trained.path)
    assert [(m["epoch"], m["step"]) for m in history] == [(1, 4), (2, 8)]
    for metrics in history:
        assert set(metrics) == {
            *("epoch", "step", "train_loss", "train_accuracy", "learning_rate"),
            *("validation_loss", "validation_accuracy", "validation_macro_f1"),
            *("gradient_norm", "update_norm", "parameter_norm", "skipped_steps"),
            *(f"average_validation_{n}" for n in ("loss", "accuracy", "macro_f1")),
            "images_per_second",
        }
    assert history[-1]["train_loss"] < history[0]["train_loss"] < np.log(10) * 1.5

    result = json.loads((trained.path / "result.json").read_text())
    best = min(history, key=lambda m: m["validation_loss"])
    assert result["best_epoch"] == best["epoch"]
    assert result["validation_loss"] == best["validation_loss"]
    assert result["test_top1_error"] == pytest.approx(1 - result["test_accuracy"])
    assert 0 <= result["test_top5_error"] <= result["test_top1_error"]
    assert result["jax"] == jax.__version__
    assert result["train_seconds"] > 0
    # Kernels 3x3x1x2, 3x3x2x4 and 4x10, four norms' vectors, and a bias.
    assert result["parameters"] == 18 + 72 + 40 + 2 * 2 + 2 * 4 + 10
    assert 0 <= result["test_macro_f1"] <= 1
    assert not result["stopped_early"]
    for name in ("curves.png", "confusion.png"):
        assert (trained.path / name).read_bytes().startswith(b"\x89PNG")
    assert list((trained.path / "tensorboard").iterdir())


def test_a_finished_run_is_neither_repeated_nor_replaced(trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.path.rglob("*")}
    argv = [*trained.argv, "--workdir", str(trained.path)]
    assert train.main(argv) == 0
    assert "has finished" in capsys.readouterr().out
    assert train.main([*argv, "--seed", "5"]) == 2
    message = capsys.readouterr().err
    assert "seed is 0 there and 5 here" in message
    assert "--overwrite" in message
    assert {p: p.stat().st_mtime_ns for p in trained.path.rglob("*")} == before


def run(prepared, config, callback=None):
    """The result of a run that is prepared."""
    (result,) = recipe.train([config], callback, {None: prepared})
    return result


CHANGES = {
    "class names": lambda d: {"label_names": ("wasp", *d.label_names[1:])},
    "pixels": lambda d: {"test": d.test._replace(images=d.test.images ^ 1)},
    "labels": lambda d: {"train": d.train._replace(labels=9 - d.train.labels)},
    "split": lambda d: {"train": d.validation, "validation": d.train},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_on_other_data_is_refused(trained, name, tmp_path):
    """Whether it has finished or not."""
    path = Path(shutil.copytree(trained.path, tmp_path / "run"))
    (made,) = config.parse([*trained.argv, "--workdir", str(path)])
    dataset = trained.prepared.dataset
    other = dataclasses.replace(dataset, **CHANGES[name](dataset))
    for _ in ("finished", "unfinished"):
        before = contents(path)
        with pytest.raises(RunError, match=f"the {name} of digits changed since it st"):
            run(trained.prepared._replace(dataset=other), made)
        assert contents(path) == before
        assert run(trained.prepared, made)["epochs"] == 2
        (path / "result.json").unlink()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--method=sgd"], "sgd"),  # the old name of none
        (["--method=plp", "--optimizer=nesterov"], "plp with nesterov"),
    ],
)
def test_the_optimizer_is_named_on_screen_and_in_titles(
    trained, flags, name, tmp_path, monkeypatch, capsys
):
    titles = []
    monkeypatch.setattr(recipe, "build", lambda *_: trained.prepared.engine)
    monkeypatch.setattr(plots, "draw_curves", lambda *given: titles.append(given[2]))
    kept = [flag for flag in trained.argv if not flag.startswith("--method")]
    assert train.main([*kept, *flags, "--workdir", str(tmp_path / "run")]) == 0
    assert f"tiny on digits, {name}: 1,150 training" in capsys.readouterr().out
    assert titles == [f"tiny on digits, {name}, seed 0"]
    fields = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.resolve({}, fields).optimization == name


def test_several_seeds_equal_single_runs(trained, tmp_path, monkeypatch, capsys):
    """Compiled once, and each the run that it would have been alone."""
    prepared = []
    prepare = recipe.prepare
    monkeypatch.setattr(
        recipe, "prepare", lambda *a, **b: prepared.append(1) or prepare(*a, **b)
    )
    argv = [*trained.argv, "--seed", "1", "0", "--workdir", str(tmp_path)]
    assert train.main(argv) == 0
    assert len(prepared) == 1
    first, second = (metrics_of(tmp_path / f"seed-{seed}") for seed in (1, 0))
    alone = metrics_of(trained.path)
    assert second == alone
    assert first[0]["train_loss"] != alone[0]["train_loss"]
    output = capsys.readouterr().out
    results = [read_json(tmp_path / f"seed-{n}" / File.RESULT) for n in (0, 1)]
    accuracies = [100 * result["test_accuracy"] for result in results]
    mean, deviation = np.mean(accuracies), np.std(accuracies, ddof=1)
    assert f"test accuracy {mean:.2f} ± {deviation:.2f} %" in output


def test_what_depends_on_the_seed_is_built_for_every_seed(tmp_path, monkeypatch):
    """Random layers are drawn in the compiled step."""
    built = []

    def build(config, dataset):
        built.append((config.seed, dataset.validation.images.tobytes()))
        return SimpleNamespace(statistics_batches=0)

    result = {"test_accuracy": 0.5, "test_loss": 1.0}
    monkeypatch.setattr(recipe, "build", build)
    monkeypatch.setattr(recipe, "_run", lambda *arguments: result)
    random = ["--amplify-select", "random", "--amplify-ratio", "0.34"]
    for name, flags in {
        "random": [*AMPLIFY[:-2], *random],
        "split": [*TINY, "--split-per-seed"],
        "shared": TINY,
    }.items():
        argv = [*flags, "--seed", "0", "1", "--workdir", str(tmp_path / name)]
        assert train.main(argv) == 0
    seeds, parts = zip(*built, strict=True)
    assert seeds == (0, 1, 0, 1, 0)
    assert parts[0] == parts[1] == parts[2] == parts[4] != parts[3]


def test_a_finished_run_is_compared_with_its_own_split(tmp_path):
    argv = [*TINY, "--split-per-seed", "--method=none", "--max-steps=1"]
    argv += ["--seed", "0", "1", "--workdir", str(tmp_path)]
    assert train.main(argv) == 0
    shutil.rmtree(tmp_path / "seed-0")
    assert train.main(argv) == 0


def test_profile_is_a_trace(trained, tmp_path):
    argv = [*trained.argv, "--profile", "--max-steps", "5"]
    assert train.main([*argv, "--workdir", str(tmp_path / "run")]) == 0
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


def test_amplification_is_recorded_in_both_forms(tmp_path):
    """Five epochs: one plain, an analysis, two amplified, one plain."""
    histories = []
    for extra in ([], ["--amplify-propagate"]):
        path = tmp_path / f"run{len(extra)}"
        assert train.main([*AMPLIFY, *extra, "--workdir", str(path)]) == 0
        history = read_metrics(path)
        (analysis,) = (m["analysis"] for m in history if m["analysis"])
        assert history[1]["analysis"] == analysis
        selected = [row["layer"] for row in analysis if row["amplified"]]
        assert 0 < len(selected) < len(analysis)
        assert selected == [row["layer"] for row in analysis if row["z_score"] > 0.5]
        assert [m["amplified"] for m in history] == [[], [], selected, selected, []]
        rates = [m["learning_rate"] for m in history]
        np.testing.assert_allclose(rates, [0.05, 0.05, 0.05, 0.05, 0.01])
        text = (path / "layers.txt").read_text()
        assert "after epoch 2" in text
        # In the order of the network, as the picture has them.
        first = [line.split()[0] for line in text.splitlines()[2:5]]
        assert first == ["stage1/conv", "stage2/conv", "head"]
        assert (path / "amplification.png").read_bytes().startswith(b"\x89PNG")
        histories.append([m["train_loss"] for m in history])
    # They differ in amplified epochs only.
    plain, propagated = histories
    np.testing.assert_allclose(plain[:2], propagated[:2], rtol=1e-3)
    assert abs(plain[3] - propagated[3]) > 1e-3


def test_layers_are_watched_while_they_are_amplified(tmp_path, capsys):
    """By default, with a threshold that tiny's three layers can exceed."""
    path = tmp_path / "run"
    argv = [*AMPLIFY[:-2], "--optimizer", "adam", "--monitor-layers"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    output = capsys.readouterr().out
    assert "adam undoes the amplification of gradients, so its updates are" in output
    assert "--amplify-threshold is 1.4" in output
    history = read_metrics(path)
    for metrics in history:
        layers = metrics["layers"]
        names = [row["layer"] for row in layers]
        assert names == ["stage1/conv", "stage2/conv", "head"]
        assert {row["samples"] for row in layers} == {4.0}  # the steps of an epoch
        # Two norms are no layers.
        squares = [row["parameter_norm"] ** 2 for row in layers]
        assert 0 < sum(squares) < 1.1 * metrics["parameter_norm"] ** 2
        for row in layers:
            ratio = row["update_norm"] / row["parameter_norm"]
            assert row["update_ratio"] == pytest.approx(ratio)
            assert row["snr"] >= 0
            assert 0 < row["agreement"] <= 1
    assert (path / "layers.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (path / "tensorboard").iterdir()
    assert b"layers/snr/stage2/conv" in events.read_bytes()


def test_early_stopping_and_the_average(tmp_path, capsys):
    """A rate so high that the validation loss soon rises."""
    path = tmp_path / "run"
    argv = [*STALLING, "--early-stopping", "2", "--workdir", str(path)]
    assert train.main(argv) == 0
    assert "stopped early" in capsys.readouterr().out
    history = read_metrics(path)
    result = json.loads((path / "result.json").read_text())
    losses = [m["validation_loss"] for m in history]
    best = int(np.argmin(losses)) + 1
    assert len(history) == best + 2 < 30
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


def test_a_run_ends_at_a_training_accuracy_or_a_drop_of_the_rate(trained, tmp_path):
    enough = [*trained.argv, "--epochs", "12", "--stop-accuracy", "0.3"]
    drops = [*STALLING, "--plateau-drops", "2"]
    for name, argv in {"enough": enough, "drops": drops}.items():
        path = tmp_path / name
        assert train.main([*argv, "--workdir", str(path)]) == 0
        assert json.loads((path / "result.json").read_text())["stopped_early"]
    accuracies = [m["train_accuracy"] for m in read_metrics(tmp_path / "enough")]
    assert [a >= 0.3 for a in accuracies] == [False] * (len(accuracies) - 1) + [True]
    # The second drop follows the last epoch, whose rate has dropped once.
    history = read_metrics(tmp_path / "drops")
    losses = [m["validation_loss"] for m in history]
    assert history[-1]["learning_rate"] == pytest.approx(2.0)
    assert losses[-1] > (1 - 1e-4) * min(losses[:-1])


def test_a_sweep_of_rates_ends_in_a_table(tmp_path, capsys):
    """Compiled for each rate; one diverges."""
    argv = [*TINY, "--method", "none", "--average", "none", "--no-draw"]
    argv += ["--epochs", "2", "--seed", "0", "1", "--norm", "none", "--lr"]
    path = tmp_path / "sweep"
    assert train.main([*argv, "0.1", "0.3", "1e30", "--workdir", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {cells[1]: cells for line in lines if len(cells := line.split("│")) > 5}
    rows = {name.strip(): [c.strip() for c in cells] for name, cells in table.items()}
    losses = {}
    for rate in ("0.1", "0.3"):
        places = [path / f"learning-rate-{rate}" / f"seed-{n}" for n in (0, 1)]
        results = [read_json(place / File.RESULT) for place in places]
        losses[rate] = np.mean([result["validation_loss"] for result in results])
        assert rows[rate][2] == "2"
        assert rows[rate][3].startswith(f"{losses[rate]:.4f} ±")
    assert [rows[r][5] == "lowest" for r in losses] == [
        losses[r] == min(losses.values()) for r in losses
    ]
    assert rows["1e+30"][3] == "diverged"
    assert read_metrics(path / "learning-rate-0.3" / "seed-1")[0][
        "learning_rate"
    ] == pytest.approx(0.3 * 4 / 5, rel=1e-5)


def test_an_average_that_did_not_begin_is_not_reported(tmp_path, capsys):
    path = tmp_path / "run"
    argv = [*TINY, "--average-start", "0.9", "--max-steps", "4"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    assert "the average did not begin" in capsys.readouterr().out
    result = json.loads((path / "result.json").read_text())
    assert result["average_steps"] == 0
    assert "average_test_loss" not in result
    assert read_metrics(path)[0]["average_validation_loss"] is None
    with pytest.raises(RunError, match="holds no average"):
        training.load(path, average=True)


def test_both_sides_have_statistics_of_their_own_once_an_epoch(tmp_path, monkeypatch):
    """Those with which the best epoch was evaluated are kept with it."""
    fresh, with_statistics = [], Engine.with_statistics

    def counted(engine, variables, on_batch):
        fresh.append(with_statistics(engine, variables, on_batch))
        return fresh[-1]

    monkeypatch.setattr(Engine, "with_statistics", counted)
    path = tmp_path / "run"
    argv = [*TINY, "--epochs", "3", "--test-each-epoch", "--method", "sgd"]
    assert train.main([*argv, "--workdir", str(path)]) == 0
    assert len(fresh) == 6
    best = json.loads((path / "result.json").read_text())["best_epoch"]
    for average, expected in ((False, fresh[2 * best - 2]), (True, fresh[-1])):
        kept = training.load(path, average=average).variables
        jax.tree.map(np.testing.assert_array_equal, kept, jax.device_get(expected))


def test_means_of_blocks_are_those_of_the_parameters(tmp_path):
    """Two epochs of four steps in a block; the last one is shorter."""
    path, callback = tmp_path / "run", programs.Parameters()
    argv = [*TINY, "--epochs", "3", "--block-means", "2", "--precision", "float64"]
    recipe.train(config.parse([*argv, "--workdir", str(path)]), callback)
    for epoch, steps in ((2, callback.seen[:8]), (3, callback.seen[8:])):
        tree, notes = read(mean_path(path, epoch))
        count = len(steps)
        assert notes == {"epoch": epoch, "step": 4 * epoch, "steps": count}
        jax.tree.map(
            lambda a, *rows: np.testing.assert_allclose(a, np.mean(rows, 0), rtol=1e-9),
            tree["params"],
            *steps,
        )
    assert count == 4


def test_one_device_trains_and_evaluates_as_four(monkeypatch):
    """With batch normalisation, augmentation and prediction, in float64."""
    devices = jax.devices()
    assert len(devices) == 4
    found = []
    for count in (4, 1):
        monkeypatch.setattr(jax, "local_devices", lambda n=count: devices[:n])
        monkeypatch.setattr(jax, "local_device_count", lambda n=count: n)
        monkeypatch.setattr(jax, "device_count", lambda n=count: n)
        with jax.enable_x64(True):
            tx = optax.chain(
                programs.momentum(), plp_optax.plp(), plp_optax.tail_average()
            )
            engine = programs.make(tx=tx, dtype=jnp.float64, augment=True, precise_bn=2)
            state = programs.train_epoch(engine, engine.initial_state(0))
            state = programs.train_epoch(engine, state, 1)
            average = engine.with_statistics(state.averaged(state.opt_state))
            evaluated = engine.evaluate(average, programs.DATASET.validation)
        assert len(state.step.devices()) == count
        found.append((jax.device_get((state, average)), evaluated))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *found
    )


# -- Mistakes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--amplify-select", "stage9"], "stage9"),
        (["--epochs=30", "--amplify-threshold=1.42"], "--amplify-threshold"),
        (["--strategy", "paper", "--epochs", "3"], "--strategy paper"),
        (["--strategy", "[(4, 0.1, 0, 1)]"], "no stage"),
        (["--batch-size", "126"], "over 4 devices: choose 124 or 128"),
        (["--cache-dir", __file__], f"--cache-dir {__file__} cannot be used"),
        (["--workdir", os.fsdecode(b"run-\xff")], "UTF-8"),
    ],
)
def test_bad_input_gets_a_sentence_and_code_2(tmp_path, capsys, argv, message):
    path = tmp_path / "run"
    argv = ["--workdir", str(path), "--model=tiny", "--method=amplify", *argv]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    # What could not start does not block the next.
    assert not path.exists() or {p.name for p in path.iterdir()} <= {".lock"}


def test_divergence_before_a_checkpoint_offers_no_resuming(trained, tmp_path):
    class Diverging(callbacks.Callback):
        def on_epoch(self, state, metrics):
            raise DivergedError("the run diverged")

    (made,) = config.parse([*trained.argv, "--workdir", str(tmp_path / "run")])
    with pytest.raises(DivergedError, match=r"or give the same command.* skip"):
        run(trained.prepared, made, Diverging())


def test_a_picture_that_fails_is_a_warning(trained, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        assert (tmp_path / "run" / "result.json").exists()
        raise ValueError("no room\nfor it")

    monkeypatch.setattr(plots, "draw_confusion", fail)
    assert train.main([*trained.argv, "--workdir", str(tmp_path / "run")]) == 0
    message = capsys.readouterr().err
    assert message == (
        f"train.py: warning: {tmp_path / 'run' / 'confusion.png'} could not be drawn "
        f"(ValueError: no room)\n"
    )
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_bug_keeps_its_traceback(trained, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Engine, "train_steps", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train.main([*trained.argv, "--workdir", str(tmp_path / "run")])


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


def test_callbacks_see_every_call_and_epoch_and_may_end_the_run(trained, tmp_path):
    path = tmp_path / "run"
    configs = config.parse([*trained.argv, "--workdir", str(path)])
    first, second = Noting(last=2), Noting()
    with pytest.raises(StopIteration):
        recipe.train(configs, first)
    assert first.steps == list(range(1, 9))
    assert first.epochs == read_metrics(path)
    (result,) = recipe.train(configs, second)  # from the first epoch's checkpoint
    assert second.steps == [5, 6, 7, 8]
    assert metrics_of(path) == metrics_of(trained.path)
    assert result == read_json(path / File.RESULT)


# -- Other processes -------------------------------------------------------------------


def run_alone(path, *argv):
    """A run in another process, with one CPU device."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "train.py", "--workdir", str(path), *argv],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )


@pytest.mark.slow
def test_compiled_programs_are_kept(tmp_path):
    """A second run of the same program finds all that the first has compiled."""
    argv = ("--model", "tiny", "--width", "4", "--max-steps", "1")
    cache = tmp_path / "cache"
    for run in "ab":
        run_alone(tmp_path / run, *argv, "--cache-dir", str(cache))
        kept = sorted(p.name for p in cache.iterdir() if p.name.endswith("-cache"))
        if run == "a":
            first = kept
    assert first
    assert kept == first
