"""From a configuration to a learning rate, a strategy and an optax chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import plp_optax
from training import rules
from training.config import Config
from training.errors import ConfigError


def make_strategy(
    config: Config, *, steps_per_epoch: int
) -> plp_optax.TrainingStrategy | None:
    """Returns the strategy that sets learning rate and amplification, if there is one.

    Raises:
      ConfigError: If the strategy makes no sense.
    """
    c: Any = config
    if config.strategy is None:
        return None
    try:
        if config.strategy in rules.NAMED_STRATEGIES:
            return plp_optax.paper_strategy(
                steps_per_epoch=steps_per_epoch,
                epochs=c.epochs,
                deep=config.strategy == "paper-deep",
            )
        stages = rules.listed_strategy(config.strategy)
        return plp_optax.TrainingStrategy(stages, steps_per_epoch=steps_per_epoch)
    except ValueError as error:
        raise ConfigError(f"--strategy {config.strategy}: {error}") from error


def make_schedule(
    config: Config, *, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step.

    The strategy's, if there is one; else a linear warm-up, then the schedule that was
    chosen.

    Args:
      config: A complete configuration.
      steps_per_epoch: Optimizer steps in an epoch.
      total_steps: Optimizer steps in all epochs.
    """
    strategy = make_strategy(config, steps_per_epoch=steps_per_epoch)
    if strategy is not None:
        return strategy.learning_rate
    c: Any = config  # complete: what the chosen schedule needs is set
    rate = c.learning_rate
    warmup_steps = min(round(c.warmup_epochs * steps_per_epoch), total_steps)
    rest = max(1, total_steps - warmup_steps)
    match config.schedule:
        case "constant":
            main = optax.constant_schedule(rate)
        case "cyclic":
            main = triangular_schedule(rate, c.max_learning_rate, c.cycle_steps)
        case "step":
            # The milestones of common CIFAR-100 practice: 60, 120, 160 of 200 epochs.
            milestones = (round(part * rest) for part in (0.3, 0.6, 0.8))
            main = optax.join_schedules(
                [optax.constant_schedule(rate * 0.2**i) for i in range(4)],
                list(milestones),
            )
        case "cosine":
            main = optax.cosine_decay_schedule(rate, rest)
    if not warmup_steps:
        return main
    # One step above 0, since a first step at rate 0 would be a step for nothing.
    warmup = optax.linear_schedule(rate / (warmup_steps + 1), rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def triangular_schedule(base: float, peak: float, half_period: int) -> optax.Schedule:
    """Rises from ``base`` to ``peak`` in ``half_period`` steps, and falls again.

    Smith, Cyclical Learning Rates for Training Neural Networks (arXiv 1506.01186).
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        position = (count % (2 * half_period)) / half_period
        return base + (peak - base) * (1 - abs(1 - position))

    return schedule


def make_optimizer(
    config: Config, schedule: optax.Schedule, *, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole chain, everything in its place.

    Amplification first, where it sees raw gradients; weight decay; the optimizer; and
    what jumps the parameters last.

    Raises:
      ConfigError: If the library refuses an option.
    """
    try:
        return optax.chain(
            *_amplification(config, steps_per_epoch),
            # L2 decay joins the gradient, as in PyTorch; AdamW brings its own.
            *(
                [optax.add_decayed_weights(config.weight_decay)]
                if config.weight_decay and config.optimizer != "adamw"
                else []
            ),
            _base(config, schedule),
            *_window(config),
        )
    except ValueError as error:
        raise ConfigError(f"--method {config.method}: {error}") from error


def _amplification(
    config: Config, steps_per_epoch: int
) -> list[optax.GradientTransformationExtraArgs]:
    if config.method not in ("amplify", "amplify+plp"):
        return []
    c: Any = config  # complete: what the method needs is set
    select = c.amplify_select
    if select not in ("scores", "random", "all"):
        select = [name.strip() for name in select.split(",")]
    strategy: Any = make_strategy(config, steps_per_epoch=steps_per_epoch)
    # Without meaning, and so unset, where scores do not select.
    threshold = {} if select != "scores" else {"threshold": c.amplify_threshold}
    return [
        plp_optax.amplify_layers(
            strategy,
            select=select,
            ratio=c.amplify_ratio,
            seed=c.seed,
            measure=c.amplify_measure,
            **threshold,
            two_sided=c.amplify_two_sided,
            factor=c.amplify_factor,
            reselect_every=c.amplify_reselect_every,
            apply=not c.amplify_propagate,
        )
    ]


def _window(config: Config) -> list[optax.GradientTransformationExtraArgs]:
    c: Any = config  # complete: what the method needs is set
    match config.method:
        case "plp" | "amplify+plp":
            return [
                plp_optax.plp(
                    c.plp_step, window=c.plp_window, period=c.plp_period, fit=c.plp_fit
                )
            ]
        case "lookahead":
            coefficients = plp_optax.lookahead_coefficients(
                c.lookahead_steps, c.lookahead_alpha
            )
            return [plp_optax.affine_window(coefficients, period=c.lookahead_steps)]
        case "average":
            coefficients = plp_optax.average_coefficients(c.plp_window)
            return [plp_optax.affine_window(coefficients, period=c.plp_period)]
    return []


def _base(
    config: Config, schedule: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    momentum = config.momentum or None
    match config.optimizer:
        case "sgd":
            return optax.sgd(schedule, momentum)
        case "nesterov":
            return optax.sgd(schedule, momentum, nesterov=True)
        case "rmsprop":
            return optax.rmsprop(schedule, momentum=momentum)
        case "adamw":
            return optax.adamw(schedule, weight_decay=config.weight_decay)
        case "adam":
            return optax.adam(schedule)
        case "adagrad":
            return optax.adagrad(schedule)
        case "adadelta":
            return optax.adadelta(schedule)
