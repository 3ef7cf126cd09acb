"""From a configuration to a plan, a learning rate and a chain of transformations."""

import jax
import jax.numpy as jnp
import optax

import plp_optax
from training.engine import plateau
from training.errors import ConfigError
from training.settings import flags
from training.settings.averages import TailAverage
from training.settings.config import Config
from training.settings.methods import Amplify, Anderson, Method
from training.settings.optimizers import OPTIMIZERS, SGD, Optimizer
from training.settings.plan import (
    NAMED_STRATEGIES,
    Plan,
    listed_strategy,
    paper_stages,
)
from training.settings.schedules import Cyclic, Plateau, Schedule


def make_plan(config: Config, steps_per_epoch: int) -> Plan:
    """Returns the plan of a run.

    Raises:
      ConfigError: If the run has too many steps, or the strategy makes no sense.
    """
    total = config.epochs * steps_per_epoch
    if total >= 2**31:  # optimizers count in int32
        raise ConfigError(
            f"--epochs {config.epochs} is {total:,} steps, and a run has fewer than "
            f"2**31: choose fewer"
        )
    strategy = make_strategy(config, steps_per_epoch=steps_per_epoch)
    last_step = min(total, config.max_steps or total)
    is_invariant = OPTIMIZERS[config.optimizer].scale_invariant
    return Plan(steps_per_epoch, total, last_step, config.seed, strategy, is_invariant)


def make_strategy(
    config: Config, *, steps_per_epoch: int
) -> plp_optax.TrainingStrategy | None:
    """Returns the strategy that sets learning rate and amplification, if there is one.

    Raises:
      ConfigError: If the strategy makes no sense.
    """
    if config.strategy is None:
        return None
    try:
        if config.strategy in NAMED_STRATEGIES:
            stages = paper_stages(config.strategy, config.epochs)
            optimizer = OPTIMIZERS[config.optimizer]
            if optimizer.scale_invariant:
                # The papers' rate of 0.1 is that of SGD.
                scale = optimizer.usual_rate / 0.1
                stages = [(end, scale * rate, *rest) for end, rate, *rest in stages]
        else:
            stages = listed_strategy(config.strategy)
        return plp_optax.TrainingStrategy(stages, steps_per_epoch=steps_per_epoch)
    except ValueError as error:
        raise ConfigError(f"--strategy {config.strategy}: {error}") from error


def make_schedule(config: Config, plan: Plan) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step."""
    if plan.strategy is not None:
        return plan.strategy.learning_rate
    schedule = config.get(Schedule)
    assert schedule is not None
    assert config.learning_rate is not None
    return schedule(config.learning_rate, plan)


def make_optimizer(config: Config, plan: Plan) -> optax.GradientTransformationExtraArgs:
    """Returns the complete optimizer.

    Amplification, clipping, decay, base optimizer, prediction, average: in this order,
    and the monitor around all but the average.

    Raises:
      ConfigError: If the library refuses an option.
    """
    optimizer, cyclic = config.get(Optimizer), config.get(Cyclic)
    assert optimizer is not None
    links: list[optax.GradientTransformation] = []
    if config.clip_norm is not None:
        links.append(optax.clip_by_global_norm(config.clip_norm))
    if config.clip_value is not None:
        links.append(optax.clip(config.clip_value))
    if config.l1:
        links.append(_add_l1_decay(config.l1))
    if config.weight_decay and not optimizer.decays_weights:
        links.append(optax.add_decayed_weights(config.weight_decay))
    rate = make_schedule(config, plan)
    if cyclic and cyclic.cycle_momentum and isinstance(optimizer, SGD):
        momentum = cyclic.momentum(optimizer.momentum, plan)
        links.append(optimizer.cycled(rate, momentum))
    else:
        links.append(optimizer(rate, config.weight_decay))
    if stalls := config.get(Plateau):
        links.append(plateau.scale_on_plateau(*stalls.rule))
    # A single link stays unchained, so that its state is its own.
    tx = optax.chain(*links) if len(links) > 1 else links[0]
    for method in config.parts:
        if isinstance(method, Method):
            try:
                tx = method(tx, plan)
            except ValueError as error:
                where = f"--method {config.method}: {error}"
                raise ConfigError(flags.naming(method, error) or where) from error
    if config.monitor_layers:
        amplify = config.get(Amplify)
        tx = plp_optax.monitor_layers(
            tx,
            measure="g1_per_weight",
            window=max(2, plan.steps_per_epoch),
            layers=amplify.layers if amplify else "kernels",
        )
    if average := config.get(TailAverage):
        tx = average(tx, plan)
    return optax.with_extra_args_support(tx)


def notes(config: Config) -> list[str]:
    """Settings that have no effect, or less than one may think."""
    found = []
    sgd, amplify = config.get(SGD), config.get(Amplify)
    optimizer = config.get(Optimizer)
    if amplify and optimizer and optimizer.scale_invariant:
        if amplify.multiplies_updates(True):
            found.append(
                f"{config.optimizer} undoes the amplification of gradients, so its "
                f"updates are amplified (--amplify-inner)"
            )
        else:
            found.append(
                f"{config.optimizer} is nearly invariant to the scale of gradients, so "
                f"amplification has little effect"
            )
    by_score = amplify and amplify.select == "scores" and amplify.layers == "kernels"
    if amplify and by_score and config.model == "tiny" and not config.cascade:
        found.append(
            f"among the three layers of tiny no z-score is above 1.41; "
            f"--amplify-threshold is {amplify.threshold:g}"
        )
    if config.get(Anderson) and sgd and sgd.momentum and not sgd.nesterov:
        found.append(
            "a jump leaves heavy-ball momentum as it was, which is slower than "
            "momentum alone: choose --optimizer nesterov or --momentum 0"
        )
    return found


def _add_l1_decay(coefficient: float) -> optax.GradientTransformation:
    """Adds the gradient of ``coefficient * sum(abs(parameters))``."""

    def update(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda u, p: u + coefficient * jnp.sign(p), updates, params)

    return optax.stateless(update)
