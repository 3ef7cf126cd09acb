"""Learning rates that follow from others: what the controls of studies are made of."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import plp_optax
from experiments.stability import plp_cycle
from training.engine.optimizer import make_strategy
from training.errors import ConfigError
from training.settings import config as config_lib
from training.settings.config import Config
from training.settings.plan import paper_stages


def multiplied(config: Config, factor: float) -> dict[str, Any]:
    """The fields of a configuration that hold learning rates, all times a factor."""
    if config.strategy is not None:
        return strategy(
            stage._replace(learning_rate=factor * stage.learning_rate)
            for stage in stages(config)
        )
    fields = config_lib.fields(config)
    rates = {n: fields[n] for n in ("learning_rate", "max_learning_rate")}
    return {n: factor * rate for n, rate in rates.items() if rate is not None}


def matched(**settings: Any) -> Fraction:
    """The multiple of the learning rate that matches parameter linear prediction.

    Training at this multiple goes as far as prediction does while updates are steady.
    The settings are those of :func:`plp_optax.plp`.
    """
    multiplier = plp_cycle(**settings).rate_multiplier
    # Without rounding errors, so that equal rates are equal.
    return Fraction(multiplier).limit_denominator(1000)


def stages(config: Config) -> list[plp_optax.Stage]:
    """The stages of a configuration that has a strategy."""
    found = make_strategy(config, steps_per_epoch=1)
    assert found is not None
    return [plp_optax.Stage(*stage) for stage in found.stages]


def strategy(stages: Iterable[plp_optax.Stage]) -> dict[str, str]:
    """Stages as a field of a configuration."""
    return {"strategy": str([tuple(stage) for stage in stages])}


def paper_strategy(epochs: int, rate: float) -> dict[str, str]:
    """The amplification paper's strategy at another rate than its 0.1.

    Raises:
      ConfigError: If there are too few epochs for it.
    """
    try:
        listed = paper_stages("paper", epochs)
    except ValueError as error:
        raise ConfigError(f"--strategy paper: {error}") from error
    return {"strategy": str([(end, 10 * rate * r, *rest) for end, r, *rest in listed])}


def amplified_after_a_third(config: Config, rate: float) -> dict[str, str]:
    """A constant rate, with amplification by 2 from a third of the epochs on."""
    start = max(1, config.epochs // 3)
    return {"strategy": str([(start, rate, 0, 1), (config.epochs, rate, 1, 2.0)])}
