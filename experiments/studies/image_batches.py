"""Predictors on small batches of images, at rates tuned with one budget.

Scale ``tune`` trains every method at each of ``RATES`` with a seed that is not
reported. The others compare the methods, each at its best rate there, with the base at
its own, and with the base at the method's rate times its drift.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.study import SMALL, Arm, Comparison, Scale, Study

RATES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
TUNING_SEED = 1000
BASE = "nesterov"


class Method(NamedTuple):
    """What follows the base optimizer.

    Attributes:
      label: What reports call it.
      rate: The one of ``RATES`` with the lowest last validation loss at scale tune.
      drift: How much further it moves on steady updates than the base.
      fields: Fields of ``training.settings.config.Config``.
      base: What it is compared with at the matched rate; itself for a plain one.
    """

    label: str
    rate: float
    drift: float
    fields: Mapping[str, Any]
    base: str = BASE


def falling_drift(extrapolation: float) -> float:
    """EMA-Nesterov's 1 / (1 - beta), as beta falls to 0: its mean over the run.

    Weighted by the learning rate, half a cosine, as it multiplies lengths of steps.
    """
    part = np.linspace(0, 1, 1001)
    drift = 1 / (1 - extrapolation * (1 - part))
    return round(float(np.average(drift, weights=1 + np.cos(np.pi * part))), 2)


_CONSTANT = {"schedule": "constant"}
# With the settings of the study small_batches.
METHODS = {
    BASE: Method("SGD-Nesterov", 0.2, 1.0, {}),
    "lookahead": Method("Lookahead", 0.2, 0.5, {"method": "lookahead"}),
    "ema": Method("EMA-Nesterov", 0.2, falling_drift(0.5), {"method": "ema-nesterov"}),
    "outer": Method(
        "outer Nesterov",
        0.1,
        0.7 / (1 - 0.5),
        {"method": "outer-nesterov", "outer_momentum": 0.5, "outer_period": 10},
    ),
    # On steady updates a jump goes back to the average of the window, 4.5 steps.
    "adaptive": Method(
        "Anderson, noise gate",
        0.1,
        1 - 4.5 / 20,
        {
            "method": "anderson",
            "anderson_period": 20,
            "anderson_min_signal": 0.5,
        },
    ),
    "constant": Method(
        "SGD-Nesterov, constant rate", 0.025, 1.0, _CONSTANT, "constant"
    ),
}


def _compared() -> tuple[Arm, ...]:
    arms = []
    for name, method in METHODS.items():
        base = METHODS[method.base]
        fields = {**method.fields, "learning_rate": method.rate}
        if method is base:
            arms.append(Arm(name, method.label, fields))
            continue
        matched = round(method.rate * method.drift, 4)
        is_base = matched == base.rate
        control = method.base if is_base else f"{name}-matched"
        arms.append(
            Arm(name, method.label, fields, baseline=method.base, matched=control)
        )
        if not is_base:
            label = f"matched rate of {method.label}"
            fields = {**base.fields, "learning_rate": matched}
            arms.append(Arm(control, label, fields))
    return tuple(arms)


def at_rate(name: str, rate: float) -> str:
    """The arm that trains a method at a rate."""
    return f"{name}-at-{rate:g}"


def _tuned() -> tuple[Arm, ...]:
    return tuple(
        Arm(
            at_rate(name, rate),
            f"{method.label}, rate {rate:g}",
            {**method.fields, "learning_rate": rate},
            group="rates",
        )
        for name, method in METHODS.items()
        for rate in RATES
    )


_NAMES = tuple(arm.name for arm in _compared())
_SMALL = {
    **SMALL,
    "width": 4,
    "batch_size": 32,
    "validation_fraction": 0.04,
    "train_fraction": 0.16,
    "epochs": 3,
    "warmup_epochs": 0.25,
}

STUDY = Study(
    name="image_batches",
    title="Predictors on small batches of images",
    question="Does momentum over the slow trajectory or a window lower the loss or "
    "raise the accuracy of SGD with Nesterov momentum, compared with its tuned rate, "
    "and with the matched rate?",
    fields={"method": "sgd", "optimizer": "nesterov"},
    arms=(*_compared(), *_tuned()),
    scales=(
        Scale(
            "full",
            models=("resnet18",),
            seeds=5,
            fields={"dataset": "cifar100", "width": 64, "batch_size": 128,
                    "augment": True, "epochs": 100},
            arms=_NAMES,
        ),
        Scale("small", models=("resnet18",), seeds=5, fields=_SMALL, arms=_NAMES),
        Scale(
            "quick",
            models=("tiny",),
            seeds=6,
            fields={"dataset": "digits", "width": 8, "batch_size": 32, "epochs": 4},
            arms=_NAMES,
        ),
        Scale(
            "tune",
            models=("resnet18",),
            seeds=1,
            fields=_SMALL,
            arms=tuple(arm.name for arm in _tuned()),
            first_seed=TUNING_SEED,
        ),
    ),
    # What a rate that falls is worth.
    extra_comparisons=(
        Comparison("constant", BASE),
    ),
)  # fmt: skip
