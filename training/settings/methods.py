"""The methods under study, each a function that completes the base optimizer.

A method takes the base optimizer (weight decay, momentum, learning rate), the
configuration, which is complete, and the number of optimizer steps in an epoch. It
returns the transformation that training uses.
"""

from typing import Any, TypeAlias

import optax

import plp_optax
from training.errors import ConfigError
from training.settings import optimizers
from training.settings.config import Config

Transformation: TypeAlias = optax.GradientTransformationExtraArgs


def none(base: Transformation, config: Config, steps_per_epoch: int) -> Transformation:
    """The base optimizer alone."""
    del config, steps_per_epoch
    return base


def plp(base: Transformation, config: Config, steps_per_epoch: int) -> Transformation:
    """Parameter linear prediction, after the optimizer, to see its final update."""
    del steps_per_epoch
    c: Any = config
    prediction = plp_optax.plp(
        c.plp_step, window=c.plp_window, period=c.plp_period, fit=c.plp_fit
    )
    return optax.chain(base, prediction)


def lookahead(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """Lookahead, as a window."""
    del steps_per_epoch
    c: Any = config
    coefficients = plp_optax.lookahead_coefficients(
        c.lookahead_steps, c.lookahead_alpha
    )
    window = plp_optax.affine_window(coefficients, period=c.lookahead_steps)
    return optax.chain(base, window)


def average(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """A jump to the average of the window."""
    del steps_per_epoch
    c: Any = config
    coefficients = plp_optax.average_coefficients(c.plp_window)
    return optax.chain(base, plp_optax.affine_window(coefficients, period=c.plp_period))


def adaptive_window(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """Anderson acceleration, on the window of the last updates."""
    del steps_per_epoch
    c: Any = config
    window = plp_optax.adaptive_window(
        c.adaptive_window, period=c.adaptive_period, min_signal=c.adaptive_min_signal
    )
    return optax.chain(base, window)


def ema_nesterov(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """Extrapolation along the average update, which falls to 0 during the run."""
    c: Any = config
    extrapolation = optax.linear_schedule(
        c.extrapolation, 0.0, c.epochs * steps_per_epoch
    )
    link = plp_optax.ema_nesterov(extrapolation, decay=c.extrapolation_decay)
    return optax.chain(base, link)


def outer_nesterov(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """Nesterov momentum over cycles of steps."""
    del steps_per_epoch
    c: Any = config
    link = plp_optax.outer_nesterov(
        c.outer_rate, momentum=c.outer_momentum, period=c.outer_period
    )
    return optax.chain(base, link)


def tail_average(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """The mean of the last parameters, for evaluation next to them."""
    c: Any = config
    start = round(c.tail_start * c.epochs * steps_per_epoch)
    return optax.chain(base, plp_optax.tail_average(start=start))


def amplify(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """Layer-wise amplification, before the optimizer, to see raw gradients."""
    strategy = optimizers.make_strategy(config, steps_per_epoch=steps_per_epoch)
    assert strategy is not None  # methods that amplify have one
    c: Any = config
    amplification = plp_optax.amplify_layers(
        strategy,
        select=_selector(config),
        measure=c.amplify_measure,
        factor=c.amplify_factor,
        reselect_every=c.amplify_reselect_every,
        layers=c.amplify_layers,
        apply=not c.amplify_propagate,
    )
    return optax.chain(amplification, base)


def amplify_and_plp(
    base: Transformation, config: Config, steps_per_epoch: int
) -> Transformation:
    """Amplification before the optimizer, prediction after it."""
    return amplify(plp(base, config, steps_per_epoch), config, steps_per_epoch)


def _selector(config: Config) -> plp_optax.Selector:
    c: Any = config
    match c.amplify_select:
        case "scores":
            selector = plp_optax.by_score(
                c.amplify_threshold, two_sided=c.amplify_two_sided
            )
            return _naming(f"--amplify-threshold {c.amplify_threshold}", selector)
        case "random":
            return plp_optax.at_random(c.amplify_ratio, seed=c.seed)
        case "all":
            return plp_optax.all_layers()
        case names:
            selector = plp_optax.named(*(name.strip() for name in names.split(",")))
            return _naming(f"--amplify-select {names}", selector)


def _naming(flag: str, selector: plp_optax.Selector) -> plp_optax.Selector:
    """The same selector; a message that it does not fit the layers names the flag."""

    def check(names: tuple[str, ...]) -> None:
        try:
            selector.check(names)
        except ValueError as error:
            raise ConfigError(f"{flag} does not fit the network: {error}") from error

    return selector._replace(check=check)
