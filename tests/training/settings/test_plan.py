"""The paper's strategies, scaled to other numbers of epochs."""

import pytest

from plp_optax import TrainingStrategy
from training.engine.optimizer import make_strategy
from training.settings.config import resolve
from training.settings.plan import NAMED_STRATEGIES, paper_stages

LEAST = {"paper": 8, "paper-deep": 15}


@pytest.mark.parametrize("name", NAMED_STRATEGIES)
@pytest.mark.parametrize("epochs", [15, 16, 30, 60, 150, 300])
def test_scaled(name, epochs):
    strategy = TrainingStrategy(paper_stages(name, epochs), steps_per_epoch=1)
    full = NAMED_STRATEGIES[name]
    assert strategy.epochs == epochs
    for stage, (end, rate, amplify, factor) in zip(strategy.stages, full, strict=True):
        assert abs(stage.end_epoch - end * epochs / 150) <= 0.5
        assert stage[1:] == (rate, bool(amplify), factor)
    # One analysis epoch a window, and the rate drops where the second one begins.
    first, second = strategy.windows
    assert first.stop == second.start
    before, after = map(strategy.learning_rate, (second.start - 1, second.start))
    assert before > after


def test_other_optimizers_have_their_own_usual_rate():
    for optimizer, rates in {
        "nesterov": [0.1, 0.1, 0.01, 0.01],
        "adamw": [0.001, 0.001, 0.0001, 0.0001],
    }.items():
        config = resolve({"method": "amplify", "optimizer": optimizer})
        strategy = make_strategy(config, steps_per_epoch=1)
        found = [stage.learning_rate for stage in strategy.stages]
        assert found == pytest.approx(rates)


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_the_least_number_of_epochs_is_enough(name, least):
    assert TrainingStrategy(paper_stages(name, least), 1).epochs == least
    with pytest.raises(ValueError, match=f"epochs must be at least {least}, .* got"):
        paper_stages(name, least - 1)
