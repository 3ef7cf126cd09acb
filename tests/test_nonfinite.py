"""Steps whose loss or gradient is not finite: left out everywhere, counted, bounded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from tests.test_step import make_loop, tiny_dataset
from training import data, records
from training.errors import DivergedError
from training.loop import _MOST_SKIPPED
from training.progress import Progress

# The first epoch is an analysis: sums are taken.
STRATEGY = "[(4, 0.05, 1, 3.0), (5, 0.01, 0, 1)]"


@pytest.fixture
def poison(monkeypatch):
    """Makes white images NaN on their way to the network; returns a data set maker."""
    normalize = data.normalize

    def poisoned(images, *arguments):
        white = (images == 255).all(axis=(1, 2, 3), keepdims=True)
        return jnp.where(white, jnp.nan, normalize(images, *arguments))

    def with_white(numbers):
        dataset = tiny_dataset()
        images = dataset.train.images.copy()
        images[list(numbers)] = 255
        part = dataset.train._replace(images=images)
        return dataclasses.replace(dataset, train=part)

    monkeypatch.setattr(data, "normalize", poisoned)
    return with_white


def place_of(loop, number):
    """In which step of the first epoch an example is seen."""
    call = next(loop._feed.calls(loop._seed, 0, range(1)))
    (_, order), _ = call.arguments
    return int(np.flatnonzero(np.asarray(order) == number)[0]) // 16


@pytest.mark.parametrize("steps_per_call", [1, 4], ids=["loop", "on device"])
def test_a_step_left_out_is_as_if_it_had_not_been(poison, steps_per_call):
    """Momentum, window, sums, statistics: all equal a run that never saw the batch."""
    flags = {
        "precision": "float64",
        "method": "amplify+plp",
        "strategy": STRATEGY,
        "amplify_threshold": 0.5,
        "on_nonfinite": "skip",
        "validation_fraction": 0.0,
    }
    with jax.enable_x64(True):
        dataset = poison([9])
        whole = make_loop(dataset, steps_per_call=steps_per_call, **flags)
        progress = Progress()
        means = whole.train_epoch(progress)
        assert means["skipped"] == 1
        assert progress.step == 4
        assert int(whole.state.step) == 3
        assert int(whole.state.health.attempted) == 4

        without = make_loop(dataset, steps_per_call=1, **flags)
        left_out, calls = place_of(without, 9), without._feed.calls

        def fewer(seed, epoch, steps):
            for step in steps:
                if step != left_out:
                    yield from calls(seed, epoch, range(step, step + 1))

        without._feed.calls = fewer
        means_without = without.train_epoch(Progress())
        assert means_without["skipped"] == 0
        for a, b in zip(
            jax.tree.leaves(whole.state._replace(health=None)),
            jax.tree.leaves(without.state._replace(health=None)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        # The means are over the steps that were taken; the twin counts four.
        assert means["loss"] == pytest.approx(means_without["loss"] * 4 / 3)


@pytest.mark.parametrize("steps_per_call", [1, 4], ids=["loop", "on device"])
def test_stop_leaves_the_state_ahead_of_the_step(poison, steps_per_call):
    loop = make_loop(poison([9]), steps_per_call=steps_per_call, epochs=1)
    bad = place_of(loop, 9)
    with pytest.raises(DivergedError, match=rf"not finite at step {bad + 1}, in") as e:
        loop.train_epoch(Progress())
    assert int(loop.state.step) == bad
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loop.state.params))
    losses = str(e.value).split("last steps: ")[1].split(";")[0].split(", ")
    assert len(losses) == bad + 1
    assert losses[-1] == "nan"
    assert "nan" not in losses[:-1]
    assert float(losses[0]) == pytest.approx(np.log(10), rel=0.3)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_skipping_gives_up(poison, precision):
    """Every step is bad; in float16, too, whose own overflows are no errors."""
    loop = make_loop(
        poison(range(64)), on_nonfinite="skip", epochs=9, precision=precision
    )
    for epoch in range(6):
        loop.train_epoch(Progress(epoch=epoch))
    with pytest.raises(DivergedError, match=f"at step {_MOST_SKIPPED}, in epoch 7"):
        loop.train_epoch(Progress(epoch=6))
    assert int(loop.state.step) == 0


def test_scattered_bad_steps_do_not_add_up(poison):
    """Only bad steps in a row count towards giving up."""
    loop = make_loop(poison([9]), on_nonfinite="skip", epochs=40)
    for epoch in range(_MOST_SKIPPED + 5):
        loop.train_epoch(Progress(epoch=epoch))
    assert int(loop.state.health.attempted) == 4 * (_MOST_SKIPPED + 5)
    assert int(loop.state.step) == 3 * (_MOST_SKIPPED + 5)


def test_the_run_stops_with_a_sentence_and_goes_on_with_skip(tmp_path, capsys):
    """A rate that explodes; what was saved before is good."""
    path = tmp_path / "run"
    argv = ["--model", "tiny", "--width", "4", "--batch-size", "128", "--epochs", "3"]
    argv += ["--method", "sgd", "--workdir", str(path)]
    # Two calm epochs, then a rate that no float32 survives.
    argv += ["--strategy", "[(2, 0.01, 0, 1), (3, 1e30, 0, 1)]"]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert "not finite at step" in error
    assert "in epoch 3" in error
    assert "--on-nonfinite skip" in error
    assert "Traceback" not in error
    assert len(records.read_metrics(path)) == 2
    # Given again it fails again, from the same place and with nothing lost.
    assert train.main(argv) == 2
    assert "epoch-00002" in capsys.readouterr().out
    assert train.main([*argv, "--on-nonfinite", "skip"]) == 0
    history = records.read_metrics(path)
    assert [m["skipped_steps"] > 0 for m in history] == [False, False, True]
    result = records.read_json(path / records.RESULT)
    assert result["skipped_steps"] == history[-1]["skipped_steps"]
    assert all(np.isfinite(m["parameter_norm"]) for m in history)
