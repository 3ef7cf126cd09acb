"""Training strategies: the paper's list, its schedule and its windows, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plp_optax import AmplificationWindow, Stage, TrainingStrategy

PAPER = [(50, 0.1, 0, 1), (100, 0.1, 1, 2), (130, 0.01, 1, 2), (150, 0.01, 0, 1)]
DEEP = [(10, 0.1, 0, 1), (100, 0.1, 1, 2), (145, 0.01, 1, 2), (150, 0.01, 0, 1)]


def epochs_of(strategy):
    """(analysed, amplified) epochs by the windows, counted from 1 as in the paper."""
    n = strategy.steps_per_epoch
    analyzed, amplified = [], []
    for start, stop, epoch_steps, _ in strategy.windows:
        assert epoch_steps == n
        assert start % n == stop % n == 0
        analyzed.append(start // n + 1)
        amplified += range(start // n + 2, stop // n + 1)
    return analyzed, amplified


def test_the_papers_list():
    strategy = TrainingStrategy(PAPER, steps_per_epoch=7)
    analyzed, amplified = epochs_of(strategy)
    assert analyzed == [51, 101]
    assert amplified == [*range(52, 101), *range(102, 131)]
    assert len(range(102, 131)) == 29  # the paper's "next 29 epochs"
    assert [w.factor for w in strategy.windows] == [2.0, 2.0]
    assert strategy.epochs == 150

    analyzed, amplified = epochs_of(TrainingStrategy(DEEP, steps_per_epoch=7))
    assert analyzed == [11, 101]
    assert amplified == [*range(12, 101), *range(102, 146)]


def test_the_schedule_under_transformations():
    stages = [(1, 0.5, 0, 1), (3, 0.25, 1, 2), (4, 0.125, 0, 1)]
    strategy = TrainingStrategy(stages, steps_per_epoch=2)
    expected = [0.5] * 2 + [0.25] * 4 + [0.125] * 3
    counts = jnp.arange(9)
    rates = [strategy.learning_rate(int(c)) for c in counts]
    np.testing.assert_array_equal(np.asarray(rates), expected)
    np.testing.assert_array_equal(jax.vmap(strategy.learning_rate)(counts), expected)
    rate = strategy.learning_rate(0)
    assert rate.dtype == jnp.float32
    assert not rate.weak_type

    with jax.enable_x64(True):
        assert float(TrainingStrategy(PAPER, 1).learning_rate(0)) == 0.1


def test_stages_and_tuples_are_the_same():
    stages = [
        Stage(50, 0.1),
        Stage(end_epoch=100, learning_rate=0.1, amplify=True, factor=2),
        Stage(130, 0.01, True, 2.0),
        Stage(150, 0.01, False),
    ]
    strategy = TrainingStrategy(stages, steps_per_epoch=5)
    assert strategy == TrainingStrategy(PAPER, steps_per_epoch=5)
    assert hash(strategy) == hash(TrainingStrategy(tuple(PAPER), 5))
    assert strategy != TrainingStrategy(PAPER, steps_per_epoch=6)
    assert strategy != TrainingStrategy(DEEP, steps_per_epoch=5)
    assert all(isinstance(stage, Stage) for stage in strategy.stages)
    assert strategy.stages[1] == Stage(100, 0.1, True, 2.0)
    assert TrainingStrategy(strategy.stages, 5) == strategy
    assert dataclasses.replace(strategy, steps_per_epoch=6).windows[0].start == 300
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.steps_per_epoch = 3


def test_the_strategy_does_not_follow_changes_of_its_list():
    stages = [[2, 0.1, 0, 1], [4, 0.1, 1, 2]]
    strategy = TrainingStrategy(stages, steps_per_epoch=5)
    stages[1][3] = 9
    stages.append([8, 0.01, 0, 1])
    assert strategy.epochs == 4
    assert strategy.windows == (AmplificationWindow(10, 20, 5, 2.0),)


def test_windows_at_step_0_and_back_to_back():
    stages = [(2, 0.1, 1, 2), (4, 0.1, 1, 3), (5, 0.1, 0, 1), (9, 0.1, True, 0.5)]
    assert TrainingStrategy(stages, steps_per_epoch=10).windows == (
        AmplificationWindow(0, 20, 10, 2.0),
        AmplificationWindow(20, 40, 10, 3.0),
        AmplificationWindow(50, 90, 10, 0.5),
    )
    assert TrainingStrategy([(3, 0.1, 0, 1)], steps_per_epoch=10).windows == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((10, 0.1, 0, 1), r"\(10, 0\.1, 0, 1\), must end with an epoch after 10"),
        ((12.0, 0.1, 0, 1), "must end with an epoch after 10"),
        ((True, 0.1, 0, 1), "must end with an epoch after 10"),
        ((20, 0.0, 0, 1), r"must have a positive learning rate, got 0\.0"),
        ((20, np.nan, 0, 1), "must have a positive learning rate, got nan"),
        ((20, "0.1", 0, 1), r"must have a positive learning rate, got '0\.1'"),
        ((20, 0.1, 1, -1), "must have a factor of at least 0, got -1"),
        ((20, 0.1, 1, None), "must have a factor of at least 0, got None"),
        ((20, 0.1, 2, 1), r"must say 0 or 1 for amplify\?, got 2"),
        ((20, 0.1, "yes", 1), r"must say 0 or 1 for amplify\?, got 'yes'"),
        ((11, 0.1, 1, 2), r"\(11, 0\.1, 1, 2\), is amplified but lasts only one epoch"),
        ((20,), r"\(20,\), must be \(end epoch, learning rate, amplify\?, factor\)"),
    ],
    ids=str,
)
def test_refusals_name_the_entry(entry, message):
    good = [(10, 0.1, 0, 1), (30, 0.1, 0, 1)]
    with pytest.raises(ValueError, match=f"stage 2 .*{message}"):
        TrainingStrategy([good[0], entry, good[1]], steps_per_epoch=5)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"stage 1 .* only one epoch"):
        TrainingStrategy([(1, 0.1, 1, 2)], steps_per_epoch=5)
    with pytest.raises(ValueError, match="at least one stage"):
        TrainingStrategy([], steps_per_epoch=5)
    with pytest.raises(ValueError, match=r"steps_per_epoch .* got 0"):
        TrainingStrategy(PAPER, steps_per_epoch=0)
