"""The methods under study, each a function that completes the base optimizer.

A method takes the base optimizer (weight decay, momentum, learning rate), the
configuration, which is complete, and the training strategy, if there is one. It returns
the transformation that training uses.
"""

from typing import Any, TypeAlias

import optax

import plp_optax
from training.config import Config
from training.errors import ConfigError

Transformation: TypeAlias = optax.GradientTransformationExtraArgs
Strategy: TypeAlias = plp_optax.TrainingStrategy | None


def none(base: Transformation, config: Config, strategy: Strategy) -> Transformation:
    """The base optimizer alone."""
    del config, strategy
    return base


def plp(base: Transformation, config: Config, strategy: Strategy) -> Transformation:
    """Parameter linear prediction, after the optimizer, to see its final update."""
    del strategy
    c: Any = config
    prediction = plp_optax.plp(
        c.plp_step, window=c.plp_window, period=c.plp_period, fit=c.plp_fit
    )
    return optax.chain(base, prediction)


def lookahead(
    base: Transformation, config: Config, strategy: Strategy
) -> Transformation:
    """Lookahead, as a window."""
    del strategy
    c: Any = config
    coefficients = plp_optax.lookahead_coefficients(
        c.lookahead_steps, c.lookahead_alpha
    )
    window = plp_optax.affine_window(coefficients, period=c.lookahead_steps)
    return optax.chain(base, window)


def average(base: Transformation, config: Config, strategy: Strategy) -> Transformation:
    """A jump to the average of the window."""
    del strategy
    c: Any = config
    coefficients = plp_optax.average_coefficients(c.plp_window)
    return optax.chain(base, plp_optax.affine_window(coefficients, period=c.plp_period))


def amplify(base: Transformation, config: Config, strategy: Strategy) -> Transformation:
    """Layer-wise amplification, before the optimizer, to see raw gradients."""
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
    base: Transformation, config: Config, strategy: Strategy
) -> Transformation:
    """Amplification before the optimizer, prediction after it."""
    return amplify(plp(base, config, strategy), config, strategy)


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
