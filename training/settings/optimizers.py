"""From a configuration to a learning rate, a strategy and an optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import plp_optax
from training.errors import ConfigError
from training.settings import plateau, registry
from training.settings.config import Config
from training.settings.strategy import (
    NAMED_STRATEGIES,
    listed_strategy,
    paper_stages,
)


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
        if config.strategy in NAMED_STRATEGIES:
            stages = paper_stages(config.strategy, c.epochs)
        else:
            stages = listed_strategy(config.strategy)
        return plp_optax.TrainingStrategy(stages, steps_per_epoch=steps_per_epoch)
    except ValueError as error:
        raise ConfigError(f"--strategy {config.strategy}: {error}") from error


def make_schedule(config: Config, *, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step.

    The strategy's, if there is one; otherwise a linear warm-up followed by
    ``config.schedule``.
    """
    strategy = make_strategy(config, steps_per_epoch=steps_per_epoch)
    if strategy is not None:
        return strategy.learning_rate
    c: Any = config  # complete: what the chosen schedule needs is set
    rate = c.learning_rate
    warmup_steps = _warmup_steps(config, steps_per_epoch)
    rest = max(1, config.epochs * steps_per_epoch - warmup_steps)
    match config.schedule:
        case "constant" | "plateau":
            main = optax.constant_schedule(rate)
        case "cyclic":
            main = triangular_schedule(rate, c.max_learning_rate, c.cycle_steps)
        case "step":
            # The milestones of common CIFAR-100 practice: 60, 120, 160 of 200 epochs.
            milestones = [round(part * rest) for part in (0.3, 0.6, 0.8)]
            rates = [optax.constant_schedule(rate * 0.2**i) for i in range(4)]
            main = optax.join_schedules(rates, milestones)
        case "cosine":
            main = optax.cosine_decay_schedule(rate, rest)
        case "onecycle":
            main = optax.cosine_onecycle_schedule(rest, rate)
    if not warmup_steps:
        return _with_wide_count(main)
    # Starts above 0: a step at rate 0 would change nothing.
    warmup = optax.linear_schedule(rate / (warmup_steps + 1), rate, warmup_steps)
    return _with_wide_count(optax.join_schedules([warmup, main], [warmup_steps]))


def make_momentum(config: Config, *, steps_per_epoch: int) -> optax.Schedule:
    """Returns the momentum that falls by 0.1 while the cyclic rate rises to its peak.

    It is ``torch.optim.lr_scheduler.CyclicLR``'s default, which cycles momentum between
    0.9 and 0.8.
    """
    c: Any = config
    cycle = triangular_schedule(c.momentum, c.momentum - 0.1, c.cycle_steps)
    constant = optax.constant_schedule(c.momentum)
    warmup_steps = _warmup_steps(config, steps_per_epoch)
    return _with_wide_count(optax.join_schedules([constant, cycle], [warmup_steps]))


def _with_wide_count(schedule: optax.Schedule) -> optax.Schedule:
    # Optimizers count in int32, from which JAX computes in float32 even where float64
    # is enabled.
    return lambda count: schedule(jnp.asarray(count, int))


def _warmup_steps(config: Config, steps_per_epoch: int) -> int:
    steps = round((config.warmup_epochs or 0) * steps_per_epoch)
    return min(steps, config.epochs * steps_per_epoch)


def triangular_schedule(base: float, peak: float, half_period: int) -> optax.Schedule:
    """Rises from ``base`` to ``peak`` in ``half_period`` steps, and falls again.

    Smith, Cyclical Learning Rates for Training Neural Networks (arXiv 1506.01186).
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        count = jnp.asarray(count)
        position = (count % (2 * half_period)) / half_period
        return base + (peak - base) * (1 - abs(1 - position))

    return schedule


def add_l1_decay(coefficient: float) -> optax.GradientTransformation:
    """Adds the gradient of ``coefficient * sum(abs(parameters))``."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda u, p: u + coefficient * jnp.sign(p), updates, params)

    return optax.stateless(update)


def make_optimizer(
    config: Config, *, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole optimizer.

    Amplification, clipping, decay, base optimizer, prediction: in this order.

    Raises:
      ConfigError: If the library refuses an option.
    """
    parts: list[optax.GradientTransformation] = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.clip_value is not None:
        parts.append(optax.clip(config.clip_value))
    if config.l1:
        parts.append(add_l1_decay(config.l1))
    if config.weight_decay and config.optimizer != "adamw":
        # L2 decay is added to the gradient, as in PyTorch. AdamW has its own.
        parts.append(optax.add_decayed_weights(config.weight_decay))
    parts.append(_base(config, steps_per_epoch))
    if config.plateau_patience is not None:
        parts.append(plateau.scale_on_plateau(config.plateau_patience))
    # A single part stays unchained, so that its state is its own.
    base = optax.chain(*parts) if len(parts) > 1 else parts[0]
    method = registry.load(registry.METHODS[config.method])
    try:
        return optax.with_extra_args_support(method(base, config, steps_per_epoch))
    except ValueError as error:
        raise ConfigError(f"--method {config.method}: {error}") from error


def _base(
    config: Config, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    schedule = make_schedule(config, steps_per_epoch=steps_per_epoch)
    momentum = config.momentum or None
    match config.optimizer:
        case "sgd" | "nesterov" if config.cycle_momentum:
            make_sgd = optax.inject_hyperparams(optax.sgd, static_args="nesterov")
            return make_sgd(
                schedule,
                make_momentum(config, steps_per_epoch=steps_per_epoch),
                nesterov=config.optimizer == "nesterov",
            )
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
