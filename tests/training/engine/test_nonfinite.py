"""Steps whose loss or gradient is not finite: skipped everywhere, counted, bounded."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
import train
from tests.support import programs
from tests.support.programs import train_epoch
from training.engine.engine import means
from training.engine.feed import Resident
from training.errors import DivergedError
from training.layout import File
from training.run import workdir

MOST = 8


def with_white(numbers):
    """A data set in which these training images are white: the network makes NaN."""
    images = programs.DATASET.train.images.copy()
    images[list(numbers)] = 255
    part = programs.DATASET.train._replace(images=images)
    return dataclasses.replace(programs.DATASET, train=part)


# In float64, to make the sums of amplification, a window, momentum and statistics
# comparable. The first epochs are analysis epochs.
@functools.cache
def everything(steps_per_call):
    windows = (plp_optax.AmplificationWindow(0, 16, epoch_steps=4, factor=3.0),)
    tx = optax.chain(
        plp_optax.amplify_layers(windows, select=plp_optax.by_score(0.5)),
        programs.momentum(),
        plp_optax.plp(),
    )
    return programs.make(
        tx=tx,
        dataset=with_white([9]),
        dtype=jnp.float64,
        steps_per_call=steps_per_call,
        most_skipped=MOST,
    )


def step_of(number):
    """In which step of the first epoch an example is seen."""
    (_, order), _ = next(
        Resident(programs.DATASET.train, 16, 1).calls(0, 0, range(1))
    ).arguments
    return int(np.flatnonzero(np.asarray(order) == number)[0]) // 16


@pytest.mark.parametrize("steps_per_call", [1, 4], ids=["loop", "on device"])
def test_a_skipped_step_changes_nothing(steps_per_call, monkeypatch):
    """Momentum, window, sums, statistics: all equal a run that never saw the batch."""
    with jax.enable_x64(True):
        engine = everything(steps_per_call)
        state = jax.device_get(train_epoch(engine, engine.initial_state(0)))
        assert state.step == 3
        assert state.monitor.epoch.taken == 3
        assert state.monitor.epoch.skipped == 1

        without = everything(1)
        bad, calls = step_of(9), without._feed.calls

        def fewer(seed, epoch, steps):
            for step in steps:
                if step != bad:
                    yield from calls(seed, epoch, range(step, step + 1))

        monkeypatch.setattr(without._feed, "calls", fewer)
        twin = jax.device_get(train_epoch(without, without.initial_state(0)))
    assert twin.step == 3
    assert twin.monitor.epoch.skipped == 0
    assert means(state.monitor.epoch) == pytest.approx(means(twin.monitor.epoch))
    for a, b in zip(
        jax.tree.leaves(state._replace(monitor=None)),
        jax.tree.leaves(twin._replace(monitor=None)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_stop_leaves_the_state_before_the_step():
    """Also where the steps that follow are in the same call."""
    engine = programs.make(dataset=with_white([9]), steps_per_call=4)
    state = engine.initial_state(0)
    bad = step_of(9)
    assert 0 < bad < 3  # steps come before and after it
    message = rf"diverged: at step {bad + 1} of epoch 1 the loss is nan"
    with pytest.raises(DivergedError, match=message):  # noqa: PT012
        for call in engine.train_steps(state, 0, 0):
            state = call.state
    assert int(state.step) == bad
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    assert np.isnan(state.monitor.last.loss)
    assert means(state.monitor.epoch)["loss"] == pytest.approx(np.log(10), rel=0.3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_skipping_gives_up(dtype):
    """Every step is bad; in float16, too, whose own overflows are no errors."""
    engine = programs.make(
        dataset=with_white(range(64)), dtype=dtype, most_skipped=MOST
    )
    start = engine.initial_state(0)
    params = jax.device_get(start.params)
    state = train_epoch(engine, start)
    with pytest.raises(DivergedError, match="at step 4 of epoch 2"):  # noqa: PT012
        for call in engine.train_steps(state, 0, 1):
            state = call.state
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), params)


def test_scattered_bad_steps_do_not_add_up():
    """Only bad steps in a row count towards giving up."""
    with jax.enable_x64(True):
        engine = everything(1)
        state = engine.initial_state(0)
        for epoch in range(MOST + 3):
            state = train_epoch(engine, state, epoch)
            assert int(state.monitor.epoch.skipped) == 1
        assert int(state.step) == 3 * (MOST + 3)


def test_a_run_stops_with_a_sentence_and_resumes_with_skip(tmp_path, capsys):
    """A rate that explodes; what was saved before is good."""
    path = tmp_path / "run"
    argv = ["--model", "tiny", "--width", "4", "--batch-size", "128"]
    argv += ["--method", "sgd", "--workdir", str(path)]
    # Two calm epochs, then a rate that no float32 survives.
    argv += ["--strategy", "[(2, 0.01, 0, 1), (6, 1e30, 0, 1)]"]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert "the run diverged: at step" in error
    assert "of epoch 3" in error
    assert "or resume from the last checkpoint with --on-nonfinite skip" in error
    assert "Traceback" not in error
    assert len(workdir.read_metrics(path)) == 2
    # Given again it fails again, from the same place and with nothing lost.
    assert train.main(argv) == 2
    assert "epoch-00002" in capsys.readouterr().out
    # With skip it gives up only after 25 steps in a row, of which an epoch has 8.
    assert train.main([*argv, "--on-nonfinite", "skip"]) == 2
    history = workdir.read_metrics(path)
    assert [m["skipped_steps"] > 0 for m in history] == [False, False, True, True, True]
    assert sum(m["skipped_steps"] for m in history[3:]) == 16
    assert all(np.isfinite(m["parameter_norm"]) for m in history)
    argv += ["--on-nonfinite", "skip", "--max-steps", "24", "--overwrite"]
    assert train.main(argv) == 0
    result = workdir.read_json(path / File.RESULT)
    assert result["skipped_steps"] == workdir.read_metrics(path)[-1]["skipped_steps"]
    assert result["skipped_steps"] > 0
