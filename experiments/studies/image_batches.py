"""Predictors on small batches of images, at rates tuned with one budget.

They are compared, each at its best rate, with the base at its own, and with the base at
the method's rate times its drift.
"""

import functools

import numpy as np

from experiments import tried_rates
from experiments.study import SMALL, Comparison, Scale, Study

RATES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
BASE = "nesterov"
_Method = functools.partial(tried_rates.RecipeMethod, rates=RATES)


def falling_drift(extrapolation: float) -> float:
    """EMA-Nesterov's 1 / (1 - beta), as beta falls to 0: its mean over the run.

    Weighted by the learning rate, half a cosine, as it multiplies lengths of steps.
    """
    part = np.linspace(0, 1, 1001)
    drift = 1 / (1 - extrapolation * (1 - part))
    return round(float(np.average(drift, weights=1 + np.cos(np.pi * part))), 2)


# With the settings of the study small_batches.
METHODS = {
    BASE: _Method("SGD-Nesterov", 0.4),
    "lookahead": _Method(
        "Lookahead", 0.4, fields={"method": "lookahead"}, base=BASE, drift=0.5
    ),
    "ema": _Method(
        "EMA-Nesterov",
        0.2,
        fields={"method": "ema-nesterov"},
        base=BASE,
        drift=falling_drift(0.5),
    ),
    "outer": _Method(
        "outer Nesterov",
        0.2,
        fields={"method": "outer-nesterov", "outer_momentum": 0.5, "outer_period": 10},
        base=BASE,
        drift=0.7 / (1 - 0.5),
    ),
    # On steady updates a jump goes back to the average of the window, 4.5 steps.
    "adaptive": _Method(
        "Anderson, noise gate",
        0.1,
        fields={
            "method": "anderson",
            "anderson_period": 20,
            "anderson_min_signal": 0.5,
        },
        base=BASE,
        drift=1 - 4.5 / 20,
    ),
    "constant": _Method(
        "SGD-Nesterov, constant rate", 0.025, fields={"schedule": "constant"}
    ),
}
_COMPARED = tried_rates.compared(METHODS)
_TRIED = tried_rates.tried(METHODS)
_NAMES = tuple(arm.name for arm in _COMPARED)
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
    arms=(*_COMPARED, *_TRIED),
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
        tried_rates.scale_tune(METHODS, "resnet18", _SMALL),
    ),
    # The gain of a rate that falls.
    extra_comparisons=(
        Comparison("constant", BASE),
    ),
)  # fmt: skip
