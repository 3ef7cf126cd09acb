"""What prediction's settings do, and what it does to other optimizers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.studies.rates import at_rate, matched
from experiments.study import SMALL, Arm, Comparison, Scale, Study


class _Trial(NamedTuple):
    """Prediction with some settings, and what it is compared with."""

    arm: Arm
    plain: Arm
    control: Arm  # at the matched rate


def _behind_sgd(name: str, group: str, **settings: Any) -> _Trial:
    """Prediction behind SGD; settings with the same matched rate share its arm."""
    told = (f"{n} {value}".replace("_", " ") for n, value in settings.items())
    fields = {f"plp_{setting}": value for setting, value in settings.items()}
    plain = Arm("sgd", "SGD", {})
    factor = matched(**settings)
    control = Arm(
        f"matched-{factor.numerator}-{factor.denominator}",
        f"SGD, rate x {factor}",
        {},
        at_rate(float(factor)),
    )
    return _Trial(
        Arm(name, ", ".join(("PLP", *told)), {"method": "plp", **fields}, group=group),
        plain,
        plain if factor == 1 else control,
    )


def _behind(optimizer: str, label: str) -> _Trial:
    """Prediction behind another optimizer."""
    fields: Mapping[str, Any] = {"optimizer": optimizer}
    factor = matched()
    return _Trial(
        Arm(
            f"{optimizer}-plp",
            f"{label} and PLP",
            {**fields, "method": "plp"},
            group="optimizer",
        ),
        Arm(optimizer, label, fields, group="optimizer"),
        Arm(
            f"matched-{optimizer}",
            f"{label}, rate x {factor}",
            fields,
            at_rate(float(factor)),
            group="optimizer",
        ),
    )


# One setting at a time. Windows stand beside period 5, the least that holds them all.
_SETTINGS = (
    _behind_sgd("plp", ""),
    *(_behind_sgd(f"step-{step}", "step", step=step) for step in (0.25, 0.5, 2, 4)),
    *(_behind_sgd(f"period-{n}", "period", period=n) for n in (3, 5, 8)),
    *(_behind_sgd(f"window-{n}", "window", window=n, period=5) for n in (2, 4, 5)),
    _behind_sgd("least-squares", "fit", fit="least_squares"),
    _behind_sgd("least-squares-5", "fit", fit="least_squares", window=5, period=5),
)
_OPTIMIZERS = (
    _behind("nesterov", "Nesterov"),
    _behind("adam", "Adam"),
    _behind("adamw", "AdamW"),
    _behind("rmsprop", "RMSProp"),
    _behind("adagrad", "AdaGrad"),
    _behind("adadelta", "AdaDelta"),
)
_ARMS = (
    _SETTINGS[0].plain,
    *(trial.arm for trial in _SETTINGS),
    *(trial.control for trial in _SETTINGS),
    *(arm for t in _OPTIMIZERS for arm in (t.plain, t.arm, t.control)),
)

STUDY = Study(
    name="ablation",
    title="Settings of prediction, and other base optimizers",
    question="What do the step, the period, the window and the fit of parameter linear "
    "prediction do behind SGD, and what does prediction do behind other optimizers? "
    "Each stands beside the plain optimizer, and beside it at the learning rate that "
    "the prediction amounts to on steady updates.",
    preset=None,
    fields={"method": "sgd"},
    arms=tuple({arm.name: arm for arm in _ARMS}.values()),
    comparisons=tuple(
        Comparison(trial.arm.name, control)
        for trial in (*_SETTINGS, *_OPTIMIZERS)
        for control in dict.fromkeys((trial.plain.name, trial.control.name))
    ),
    full=Scale(
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
    small=Scale(
        models=("tiny",),
        seeds=3,
        fields={**SMALL, "train_fraction": 0.2, "epochs": 3},
    ),
    quick=Scale(
        models=("tiny",),
        seeds=6,
        fields={"dataset": "digits", "width": 8, "epochs": 10, "batch_size": 64},
    ),
)
