"""Optimizers that methods complete, each with its settings.

An optimizer is an entry in ``OPTIMIZERS``: a class whose fields are its flags and whose
call gives the optax transformation.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from training.settings.flags import Part, flag
from training.settings.lazy import Transformation, optax


class Optimizer(Part):
    """A base optimizer."""

    usual_rate: ClassVar[float] = 0.001  # the default of --learning-rate
    # Whether it decays weights itself. For others the decay is added to the gradient,
    # as in PyTorch.
    decays_weights: ClassVar[bool] = False
    # Whether its updates hardly depend on the scale of gradients.
    scale_invariant: ClassVar[bool] = True

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        """The optax transformation; ``rate`` is the learning rate by step."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _WithMomentum(Optimizer):
    momentum: float = flag(
        lambda c: 0.0 if c.optimizer == "rmsprop" else 0.9,
        "Momentum coefficient. Unset: 0.9, for rmsprop 0.",
        low=0,
        below=1,
    )


@dataclasses.dataclass(frozen=True)
class SGD(_WithMomentum):
    """Stochastic gradient descent with heavy-ball momentum."""

    usual_rate = 0.05
    scale_invariant = False
    nesterov: ClassVar[bool] = False

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.sgd(rate, self.momentum or None, nesterov=self.nesterov)

    def cycled(self, rate: optax.Schedule, momentum: optax.Schedule) -> Transformation:
        """With a momentum that changes, too."""
        sgd = optax.inject_hyperparams(optax.sgd, static_args="nesterov")
        return sgd(rate, momentum, nesterov=self.nesterov)


@dataclasses.dataclass(frozen=True)
class Nesterov(SGD):
    """Stochastic gradient descent with Nesterov momentum."""

    nesterov = True


@dataclasses.dataclass(frozen=True)
class RMSprop(_WithMomentum):
    """RMSprop."""

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.rmsprop(rate, momentum=self.momentum or None)


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam."""

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.adam(rate)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay."""

    decays_weights = True

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.adamw(rate, weight_decay=decay)


@dataclasses.dataclass(frozen=True)
class LARS(_WithMomentum):
    """Layer-wise adaptive rates: updates in proportion to the norms of the weights.

    You, Gitman and Ginsburg, arXiv 1708.03888, 2017.
    """

    usual_rate = 1.0  # times optax's trust coefficient, 0.001
    decays_weights = True

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.lars(rate, weight_decay=decay, momentum=self.momentum)


@dataclasses.dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad."""

    usual_rate = 0.01

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.adagrad(rate)


@dataclasses.dataclass(frozen=True)
class Adadelta(Optimizer):
    """Adadelta."""

    usual_rate = 1.0

    def __call__(self, rate: optax.Schedule, decay: float) -> Transformation:
        return optax.adadelta(rate)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "nesterov": Nesterov,
    "adam": Adam,
    "adamw": AdamW,
    "lars": LARS,
    "rmsprop": RMSprop,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
}


def usual_rates() -> str:
    """The default of --learning-rate in words: that of most optimizers last."""
    named: dict[float, list[str]] = {}
    for name, optimizer in OPTIMIZERS.items():
        named.setdefault(optimizer.usual_rate, []).append(name)
    del named[Optimizer.usual_rate]
    parts = [f"{rate:g} for {' and '.join(names)}" for rate, names in named.items()]
    return ", ".join([*parts, f"else {Optimizer.usual_rate:g}"])
