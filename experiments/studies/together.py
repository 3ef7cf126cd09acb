"""Prediction and amplification, alone and together."""

from experiments.rates import matched
from experiments.studies.amplification import DIGITS
from experiments.study import SMALL, Arm, Comparison, Scale, Study

_AMPLIFY = {"method": "amplify"}
_FACTOR = matched()

STUDY = Study(
    name="together",
    title="Parameter linear prediction and gradient amplification together",
    question="Do the two methods add up? Each alone and both are compared with SGD, "
    "with amplification by 1 (the same program as amplification, without the method), "
    "and prediction with its matched rate, without and with amplification. All follow "
    "the strategy of learning rates of the amplification paper.",
    preset="amplify-paper",
    fields={"method": "sgd"},
    arms=(
        Arm("sgd", "SGD", {}),
        Arm("matched", f"SGD, rate x {_FACTOR}", {}, rate=float(_FACTOR)),
        Arm("plp", "PLP", {"method": "plp"}, baseline="sgd", matched="matched"),
        # The same program as amplification, and so the same rounding.
        Arm("noop", "amplification by 1", {**_AMPLIFY, "amplify_factor": 1.0}),
        Arm("amplify", "amplification", _AMPLIFY, baseline="noop"),
        Arm(
            "matched-amplify",
            f"amplification, rate x {_FACTOR}",
            _AMPLIFY,
            rate=float(_FACTOR),
        ),
        Arm(
            "amplify-plp",
            "amplification and PLP",
            {"method": "amplify+plp"},
            baseline="noop",
            matched="matched-amplify",
        ),
    ),
    extra_comparisons=(
        Comparison("noop", "sgd"),
        Comparison("amplify", "sgd"),
        Comparison("amplify-plp", "sgd"),
        Comparison("amplify-plp", "plp"),
        Comparison("amplify-plp", "amplify"),
    ),
    scales=(
        Scale(
            "full",
            models=("resnet18", "vgg19"),
            seeds=5,
            # Without a validation split, as in the paper, there are test curves.
            fields={"test_each_epoch": True},
        ),
        Scale(
            "small",
            models=("resnet18",),
            seeds=3,
            fields={**SMALL, "train_fraction": 0.1, "epochs": 12},
        ),
        Scale(
            "quick",
            models=("resnet18", "vgg19"),
            seeds=5,
            fields=DIGITS,
        ),
    ),
)
