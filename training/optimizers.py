"""From a configuration to a learning-rate schedule and an optax chain."""

from typing import Any

import optax

import plp_optax
from training.config import Config


def make_schedule(
    config: Config, *, steps_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step.

    A linear warm-up, then the schedule that was chosen.

    Args:
      config: A complete configuration.
      steps_per_epoch: Optimizer steps in an epoch.
      total_steps: Optimizer steps in the whole run.
    """
    c: Any = config  # complete: what the chosen schedule needs is set
    rate = c.learning_rate
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), total_steps)
    rest = max(1, total_steps - warmup_steps)
    match config.schedule:
        case "constant":
            main = optax.constant_schedule(rate)
        case "cyclic":
            main = triangular_schedule(rate, c.max_learning_rate, c.cycle_steps)
        case "step":
            # The milestones of common CIFAR-100 practice: 60, 120, 160 of 200 epochs.
            milestones = (round(part * rest) for part in (0.3, 0.6, 0.8))
            main = optax.piecewise_constant_schedule(
                rate, dict.fromkeys(milestones, 0.2)
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

    def schedule(count):  # type: ignore[no-untyped-def]
        position = (count % (2 * half_period)) / half_period
        return base + (peak - base) * (1 - abs(1 - position))

    return schedule


def make_optimizer(
    config: Config, schedule: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """Returns the whole chain: weight decay, optimizer, and the method last."""
    c: Any = config  # complete: what the chosen method needs is set
    links = [_base(config, schedule)]
    # L2 decay joins the gradient, as in PyTorch; AdamW brings its own.
    if config.weight_decay and config.optimizer != "adamw":
        links.insert(0, optax.add_decayed_weights(config.weight_decay))
    match config.method:
        case "plp":
            links.append(
                plp_optax.plp(
                    c.plp_step, window=c.plp_window, period=c.plp_period, fit=c.plp_fit
                )
            )
        case "lookahead":
            coefficients = plp_optax.lookahead_coefficients(
                c.plp_window, c.lookahead_alpha
            )
            links.append(plp_optax.affine_window(coefficients, period=c.plp_window))
        case "average":
            coefficients = plp_optax.average_coefficients(c.plp_window)
            links.append(plp_optax.affine_window(coefficients, period=c.plp_period))
    return optax.chain(*links)


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
