"""The settings of prediction, and prediction after other optimizers."""

from typing import Any

from experiments.rates import matched
from experiments.study import SMALL, Arm, Scale, Study

# Part of the recorded configurations, though they are the defaults.
_DEFAULTS = {"step": 1.0, "window": 3, "period": 4}


def _setting(name: str, group: str, **settings: Any) -> tuple[Arm, Arm | None]:
    """Prediction after SGD with some settings, and SGD at the rate that matches it.

    Where prediction is neutral, SGD itself matches it, and there is no second arm.
    """
    factor = matched(**settings)
    control = Arm(
        f"matched-{factor.numerator}-{factor.denominator}",
        f"SGD, rate x {factor}",
        {},
        rate=float(factor),
    )
    described = (f"{n} {value}".replace("_", " ") for n, value in settings.items())
    arm = Arm(
        name,
        ", ".join(("PLP", *described)),
        {
            "method": "plp",
            **{f"plp_{n}": value for n, value in {**_DEFAULTS, **settings}.items()},
        },
        baseline="sgd",
        matched="sgd" if factor == 1 else control.name,
        group=group,
    )
    return arm, None if factor == 1 else control


def _optimizer(name: str, label: str) -> tuple[Arm, ...]:
    """Another optimizer, prediction after it, and the optimizer at the matched rate."""
    factor = matched()
    fields = {"optimizer": name}
    return (
        Arm(name, label, fields, group="optimizer"),
        Arm(
            f"{name}-plp",
            f"{label} and PLP",
            {**fields, "method": "plp"},
            baseline=name,
            matched=f"matched-{name}",
            group="optimizer",
        ),
        Arm(
            f"matched-{name}",
            f"{label}, rate x {factor}",
            fields,
            rate=float(factor),
            group="optimizer",
        ),
    )


# One setting at a time. Windows are varied at period 5, which holds all of them.
_SETTINGS = (
    _setting("plp", ""),
    *(_setting(f"step-{s}", "step", step=s) for s in (0.25, 0.5, 2, 4)),
    *(_setting(f"period-{n}", "period", period=n) for n in (3, 5, 8)),
    *(_setting(f"window-{n}", "window", window=n, period=5) for n in (2, 4, 5)),
    _setting("least-squares", "fit", fit="least_squares"),
    _setting("least-squares-5", "fit", fit="least_squares", window=5, period=5),
)
# Settings with the same matched rate share its arm.
_MATCHED = {control.name: control for _, control in _SETTINGS if control is not None}

STUDY = Study(
    name="ablation",
    title="Settings of prediction, and other base optimizers",
    question="What do the step, the period, the window and the fit of parameter linear "
    "prediction do after SGD, and what does prediction do after other optimizers? Each "
    "is compared with the plain optimizer, and with it at the matched rate, the "
    "learning rate that the prediction amounts to on steady updates.",
    fields={"method": "sgd"},
    arms=(
        Arm("sgd", "SGD", {}),
        *(arm for arm, _ in _SETTINGS),
        *_MATCHED.values(),
        *_optimizer("nesterov", "Nesterov"),
        *_optimizer("adam", "Adam"),
        *_optimizer("adamw", "AdamW"),
        *_optimizer("rmsprop", "RMSProp"),
        *_optimizer("adagrad", "AdaGrad"),
        *_optimizer("adadelta", "AdaDelta"),
    ),
    scales=(
        Scale(
            "full",
            models=("resnet18",),
            seeds=5,
            fields={
                "dataset": "cifar100",
                "width": 64,
                "epochs": 30,
                "batch_size": 128,
                "augment": True,
            },
        ),
        Scale(
            "small",
            models=("tiny",),
            seeds=3,
            fields={**SMALL, "train_fraction": 0.2, "epochs": 3},
        ),
        Scale(
            "quick",
            models=("tiny",),
            seeds=6,
            fields={"dataset": "digits", "width": 8, "epochs": 10, "batch_size": 64},
        ),
    ),
)
