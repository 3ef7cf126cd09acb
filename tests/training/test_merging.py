"""Means of blocks, merged into what a decay would have given."""

import json
import shutil

import jax
import numpy as np
import pytest

import training
from training import __main__ as program
from training import merging, recipe
from training.engine.engine import Engine
from training.layout import File, mean_path
from training.run.checkpoints import read
from training.settings import config

ARGV = ["--model", "tiny", "--width", "2", "--batch-size", "256", "--epochs", "5"]
ARGV += ["--method", "sgd", "--block-means", "2", "--precision", "float64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Means of epochs 1 and 2, 3 and 4, and 5."""
    path = tmp_path_factory.mktemp("merged") / "run"
    recipe.train(config.parse([*ARGV, "--workdir", str(path)]))
    return path


def test_the_chosen_decay_is_kept_and_the_test_set_read_once(run, monkeypatch):
    evaluated, evaluate = [], Engine.evaluate

    def counted(engine, variables, examples):
        evaluated.append(len(examples.labels))
        return evaluate(engine, variables, examples)

    monkeypatch.setattr(Engine, "evaluate", counted)
    made = merging.merge(run, over=(1.0, 0.6, 0.2))
    facts = json.loads((run / File.DATASET).read_text())
    assert evaluated == [*3 * [facts["validation"]], facts["test"]]
    losses = {over: found.loss for over, found in made.validation.items()}
    assert made.over == min(losses, key=losses.get)
    assert (made.epoch, made.blocks, made.statistics_batches) == (5, 3, 4)
    assert training.load(run, merged=True).config.model == "tiny"
    notes = read(run / File.MERGED).notes
    assert (notes["over"], notes["validation_loss"]) == (made.over, losses[made.over])


@pytest.mark.parametrize(
    ("to", "over", "weights"),
    [
        # A decay over 12 of 20 steps, of which 8 lie in the second block.
        (None, 0.6, {4: 8 / 12, 5: 4 / 12}),
        # Over 8 of 16.
        (4, 0.5, {4: 1.0}),
    ],
)
def test_merged_parameters_are_the_weighted_means(run, to, over, weights):
    merging.merge(run, over=(over,), to=to)
    trees = {e: read(mean_path(run, e)).tree["params"] for e in weights}
    found = read(run / File.MERGED).tree
    jax.tree.map(
        lambda actual, *means: np.testing.assert_allclose(
            actual,
            sum(w * m for w, m in zip(weights.values(), means, strict=True)),
            rtol=1e-12,
        ),
        found["params"],
        *trees.values(),
    )
    best = read(run / File.BEST).tree
    changed = jax.tree.map(
        lambda a, b: (a != b).any(), found["batch_stats"], best["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))


def test_the_command_prints_a_table(run, capsys):
    assert program.main(["merge", str(run), "--over", "0.2", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("the last 0.") == 2
    assert shown.count("chosen") == 1
    assert "batch statistics over 4 training batches" in shown
    assert program.main(["evaluate", str(run), "--merged"]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--over", "0"], "--over must be above 0 and at most 1, got 0.0"),
        (["--to", "3"], "--to 3 is not the end of a block: choose one of 2, 4, 5"),
    ],
)
def test_bad_choices_are_sentences(run, capsys, argv, message):
    assert program.main(["merge", str(run), *argv]) == 2
    assert message in capsys.readouterr().err


def test_missing_means_are_named(run, trained, tmp_path, capsys):
    assert program.main(["merge", str(trained.path)]) == 2
    assert "only a run with --block-means" in capsys.readouterr().err
    first = mean_path(run, 2)
    moved = first.replace(tmp_path / "away")
    assert program.main(["merge", str(run)]) == 2
    assert "are missing: restore them" in capsys.readouterr().err
    moved.replace(first)
    shutil.copy(run / File.BEST, mean_path(run, 6))
    assert program.main(["merge", str(run)]) == 2
    assert "is not a mean that a run has kept" in capsys.readouterr().err
    mean_path(run, 6).unlink()
