"""The methods under study, each with its settings.

A method is an entry in ``METHODS``: a class whose fields are its flags and whose call
completes the base optimizer. A name may stand for several of them, which complete it
one after the other.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from training.errors import ConfigError
from training.settings.flags import Part, flag
from training.settings.lazy import Transformation, optax, plp_optax
from training.settings.plan import Plan


class Method(Part):
    """A method under study."""

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        """Completes an optimizer, such as SGD with a learning rate."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Window(Method):
    """A window over the parameters, at whose end they jump."""

    prefix = "plp"
    window: int = flag(
        3, "Number of parameter values in the window.", low=2, below=10_000
    )
    period: int = flag(
        lambda c: max(4, c.plp_window),
        "Optimizer steps in a cycle, at least the window. Unset: 4, or --plp-window if "
        "that is larger.",
        low=1,
    )


@dataclasses.dataclass(frozen=True)
class PLP(_Window):
    """Parameter linear prediction."""

    step: float = flag(1.0, "How far to predict, in optimizer steps.")
    fit: Literal["midpoint", "least_squares"] = flag(
        "midpoint", "The line through the window. The paper's is midpoint."
    )

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        prediction = plp_optax.plp(
            self.step, window=self.window, period=self.period, fit=self.fit
        )
        return optax.chain(base, prediction)


@dataclasses.dataclass(frozen=True)
class Average(_Window):
    """A jump to the average of the window."""

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        coefficients = plp_optax.average_coefficients(self.window)
        window = plp_optax.affine_window(coefficients, period=self.period)
        return optax.chain(base, window)


@dataclasses.dataclass(frozen=True)
class Lookahead(Method):
    """Lookahead."""

    prefix = "lookahead"
    steps: int = flag(
        5, "Optimizer steps between synchronisations (k).", low=1, below=10_000
    )
    alpha: float = flag(0.5, "Step size of the slow weights (alpha).")

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        return optax.chain(base, plp_optax.lookahead(self.steps, self.alpha))


@dataclasses.dataclass(frozen=True)
class Anderson(Method):
    """Anderson acceleration, on the window of the last updates."""

    prefix = "anderson"
    history: int = flag(10, "Number of updates that are combined.", low=2, below=10_000)
    period: int | None = flag(
        None,
        "Optimizer steps in a cycle that ends in one jump, at least the window. Unset: "
        "a jump at every step, for full batches on plain gradient descent.",
        low=2,
    )
    min_signal: float | None = flag(
        None,
        "No jump where the mean product of different updates is a smaller part of "
        "their mean square: about 0 for noise, 1 for steady updates.",
    )

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        window = plp_optax.anderson(
            self.history, period=self.period, min_signal=self.min_signal
        )
        return optax.chain(base, window)


@dataclasses.dataclass(frozen=True)
class EmaNesterov(Method):
    """Extrapolation along the average update, which falls to 0 during the run."""

    extrapolation: float = flag(
        0.5,
        "How far to go along the average update, in multiples of it; falls linearly "
        "to 0 by the end of the run.",
        low=0,
        below=1,
    )
    extrapolation_decay: float = flag(
        0.95, "EMA decay of the average update.", low=0, below=1
    )

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        extrapolation = optax.linear_schedule(self.extrapolation, 0.0, plan.total_steps)
        link = plp_optax.ema_nesterov(extrapolation, decay=self.extrapolation_decay)
        return optax.chain(base, link)


@dataclasses.dataclass(frozen=True)
class OuterNesterov(Method):
    """Nesterov momentum over cycles of steps."""

    prefix = "outer"
    rate: float = flag(0.7, "Learning rate of the outer Nesterov momentum.", above=0)
    momentum: float = flag(0.9, "Momentum over cycles.", low=0, below=1)
    period: int = flag(20, "Optimizer steps in a cycle.", low=1)

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        link = plp_optax.outer_nesterov(
            self.rate, momentum=self.momentum, period=self.period
        )
        return optax.chain(base, link)


@dataclasses.dataclass(frozen=True)
class Amplify(Method):
    """Layer-wise gradient amplification, before the optimizer, to see raw gradients."""

    prefix = "amplify"
    select: str = flag(
        "scores",
        "Layers to amplify: scores selects those that stand out; random, all, and "
        "layer names separated by commas are controls.",
    )
    measure: Literal["g1", "g1_per_weight", "g2"] = flag(
        "g2", "How the consistency of a layer's gradients is measured."
    )
    threshold: float = flag(
        lambda c: 1.4 if c.model == "tiny" else 1.5,
        "Standard deviations by which a layer must stand out. Unset: 1.5; 1.4 for "
        "tiny, since among its three layers none can stand out by more than 1.41.",
        only=("amplify_select", ("scores",)),
        low=0,
    )
    two_sided: bool = flag(
        False,
        "Also amplify layers whose score is that much below the mean.",
        only=("amplify_select", ("scores",)),
    )
    lowest: bool = flag(
        False,
        "Amplify the layers whose score is that much below the mean instead; with "
        "--amplify-factor 0 they are frozen.",
        only=("amplify_select", ("scores",)),
    )
    ratio: float | None = flag(
        None,
        "Part of the layers to draw.",
        only=("amplify_select", ("random",)),
        above=0,
        high=1,
    )
    factor: float | None = flag(
        None,
        "Amplification factor, by which gradients are multiplied; 0 freezes. Unset: "
        "the strategy's, which is 2 in the named strategies (an assumption: the paper "
        "does not publish it).",
        low=0,
    )
    layers: Literal["kernels", "modules"] = flag(
        "kernels",
        "What counts as a layer: modules with a kernel, or all modules with "
        "parameters.",
    )
    reselect_every: int | None = flag(
        None, "Select again after this many amplified epochs.", low=1
    )
    propagate: bool = flag(
        False,
        "Amplify inside back-propagation, so that the layers before an amplified one "
        "are amplified too.",
    )
    inner: bool | None = flag(
        None,
        "Amplify the optimizer's updates instead of the gradients that it gets. Unset: "
        "for scale-invariant optimizers, which undo the amplification of a gradient; "
        "these are all but sgd and nesterov.",
    )

    def multiplies_updates(self, scale_invariant: bool) -> bool:
        """Whether the optimizer is inside of the amplification."""
        if self.inner is None:
            return scale_invariant and not self.propagate
        return self.inner

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        assert plan.strategy is not None  # the default of methods that amplify
        is_inner = self.multiplies_updates(plan.scale_invariant)
        amplification = plp_optax.amplify_layers(
            plan.strategy,
            select=self._selector(plan.seed),
            measure=self.measure,
            factor=self.factor,
            reselect_every=self.reselect_every,
            layers=self.layers,
            inner=base if is_inner else None,
            apply=not self.propagate,
        )
        return amplification if is_inner else optax.chain(amplification, base)

    def _selector(self, seed: int) -> plp_optax.Selector:
        match self.select:
            case "scores":
                selector = plp_optax.by_score(
                    self.threshold, two_sided=self.two_sided, lowest=self.lowest
                )
                return _naming(f"--amplify-threshold {self.threshold}", selector)
            case "random":
                assert self.ratio is not None  # checked with the flags
                return plp_optax.at_random(self.ratio, seed=seed)
            case "all":
                return plp_optax.all_layers()
            case names:
                selector = plp_optax.named(*(name.strip() for name in names.split(",")))
                return _naming(f"--amplify-select {names}", selector)


@dataclasses.dataclass(frozen=True)
class NoiseAdaptive(Method):
    """Learning rates by layer, which fall with the noise of its gradient."""

    prefix = "noise"
    alpha: float = flag(
        1.0,
        "How even the rates of the layers are: large values make them equal, small "
        "ones let them fall with the fourth root of the noise.",
        above=0,
    )
    decay: float = flag(
        0.99, "Decay of the averages that estimate the noise.", above=0, below=1
    )

    def __call__(self, base: Transformation, plan: Plan) -> Transformation:
        return plp_optax.noise_adaptive_rates(base, alpha=self.alpha, decay=self.decay)


def _naming(flag: str, selector: plp_optax.Selector) -> plp_optax.Selector:
    """The same selector; a message that it does not fit the layers names the flag."""

    def check(names: tuple[str, ...]) -> None:
        try:
            selector.check(names)
        except ValueError as error:
            raise ConfigError(f"{flag} does not fit the network: {error}") from error

    return selector._replace(check=check)


METHODS: dict[str, type[Method] | tuple[type[Method], ...]] = {
    "none": (),  # the optimizer alone
    "sgd": (),  # the old name of none, in configurations and records
    "plp": PLP,
    "lookahead": Lookahead,
    "average": Average,
    "anderson": Anderson,
    "ema-nesterov": EmaNesterov,
    "outer-nesterov": OuterNesterov,
    "amplify": Amplify,
    "amplify+plp": (PLP, Amplify),
    "noise-adaptive": NoiseAdaptive,
}
