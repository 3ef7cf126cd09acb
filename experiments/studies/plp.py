"""Parameter linear prediction, compared with SGD and with its matched rate."""

import dataclasses

from experiments.rates import matched
from experiments.study import SMALL, Arm, Scale, Study


def _plp(period: int) -> Arm:
    return Arm(
        f"plp-{period}",
        f"PLP, period {period}",
        {"method": "plp", "plp_period": period},
        baseline="sgd",
        matched=f"matched-{period}",
    )


def _matched(period: int) -> Arm:
    factor = matched(period=period)
    return Arm(f"matched-{period}", f"SGD, rate x {factor}", {}, rate=float(factor))


def _cycled(arm: Arm) -> Arm:
    """The same arm with a momentum that falls while the rate rises.

    PyTorch's schedule does so by default; the paper does not say whether its own did.
    """
    return dataclasses.replace(
        arm,
        name=f"{arm.name}-cycled",
        label=f"{arm.label}, cycled momentum",
        fields={**arm.fields, "cycle_momentum": True},
        baseline=arm.baseline and f"{arm.baseline}-cycled",
        matched=arm.matched and f"{arm.matched}-cycled",
        group="cycled momentum",
    )


_ARMS = (
    Arm("sgd", "SGD", {}),
    _plp(4),
    _plp(3),
    _matched(4),
    _matched(3),
    Arm("lookahead", "Lookahead", {"method": "lookahead"}, baseline="sgd"),
    Arm("average", "window average", {"method": "average"}, baseline="sgd"),
)
_CYCLED = tuple(
    _cycled(arm) for arm in _ARMS if arm.name in ("sgd", "plp-4", "matched-4")
)

STUDY = Study(
    name="plp",
    title="Parameter linear prediction (arXiv 2310.10958)",
    question="Does parameter linear prediction reach a lower loss or a higher accuracy "
    "than SGD, and than SGD at its matched rate, the learning rate that prediction "
    "amounts to on steady updates? Lookahead and the average of the window are other "
    "ways to use the last few parameters.",
    preset="plp-paper",
    fields={"method": "sgd"},
    arms=(*_ARMS, *_CYCLED),
    scales=(
        Scale(
            "full",
            models=("resnet18", "vgg16", "googlenet"),
            seeds=10,
            # One split a seed, as ten repetitions of a random split would have.
            fields={"split_per_seed": True},
        ),
        Scale(
            "small",
            models=("resnet18",),
            seeds=3,
            # 700 steps, not 31,200: ten times the paper's rates, and two cycles.
            fields={
                **SMALL,
                "train_fraction": 0.2,
                "epochs": 5,
                "learning_rate": 0.01,
                "max_learning_rate": 0.02,
                "cycle_steps": 140,
            },
            arms=tuple(arm.name for arm in _ARMS),
        ),
        Scale(
            "quick",
            models=("resnet18", "vgg16", "googlenet"),
            seeds=6,
            # Digits have 17 steps in an epoch: half a cycle of the rate in two epochs,
            # and rates at which so few steps suffice.
            fields={
                "dataset": "digits",
                "width": 4,
                "epochs": 6,
                "batch_size": 64,
                "learning_rate": 0.02,
                "max_learning_rate": 0.04,
                "cycle_steps": 34,
            },
        ),
    ),
)
