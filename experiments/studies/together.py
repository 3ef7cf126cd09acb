"""Prediction and amplification, alone and together."""

from experiments.studies.rates import at_rate, matched
from experiments.study import SMALL, Arm, Comparison, Scale, Study

_AMPLIFY = {"method": "amplify"}
_FACTOR = matched()

STUDY = Study(
    name="together",
    title="Parameter linear prediction and gradient amplification together",
    question="Do the two methods add up? Each alone and both stand beside SGD, and "
    "prediction beside the learning rate that it amounts to, without and with "
    "amplification. All follow the strategy of learning rates of the amplification "
    "paper.",
    preset="amplify-paper",
    fields={"method": "sgd"},
    arms=(
        Arm("sgd", "SGD", {}),
        Arm("matched", f"SGD, rate x {_FACTOR}", {}, at_rate(float(_FACTOR))),
        Arm("plp", "PLP", {"method": "plp"}),
        Arm("amplify", "amplification", _AMPLIFY),
        Arm(
            "matched-amplify",
            f"amplification, rate x {_FACTOR}",
            _AMPLIFY,
            at_rate(float(_FACTOR)),
        ),
        Arm("amplify-plp", "amplification and PLP", {"method": "amplify+plp"}),
    ),
    comparisons=(
        Comparison("plp", "sgd"),
        Comparison("plp", "matched"),
        Comparison("amplify", "sgd"),
        Comparison("amplify-plp", "sgd"),
        Comparison("amplify-plp", "plp"),
        Comparison("amplify-plp", "amplify"),
        Comparison("amplify-plp", "matched-amplify"),
    ),
    full=Scale(models=("resnet18", "vgg19"), seeds=5, fields={}),
    small=Scale(
        models=("resnet18",),
        seeds=3,
        fields={**SMALL, "train_fraction": 0.1, "epochs": 12},
    ),
    quick=Scale(
        models=("resnet18", "vgg19"),
        seeds=3,
        fields={
            "dataset": "digits",
            "width": 4,
            "epochs": 12,
            "batch_size": 64,
            "augment": False,
        },
    ),
)
