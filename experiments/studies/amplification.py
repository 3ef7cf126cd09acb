"""Layer-wise gradient amplification, compared with other explanations of its gain."""

from typing import Any

from experiments.rates import stages, strategy
from experiments.study import SMALL, Arm, Comparison, Scale, Study
from training.config import Config

# Fixed in advance, where thresholds are not swept.
THRESHOLD = 1.5
_SWEEP = [round(0.1 * tenths, 1) for tenths in range(7, 26)]  # the paper's 0.7 to 2.5
_MEASURES = {"g1": "g1", "g1_per_weight": "g1 per weight", "g2": "g2"}
# Equation 4's other reading is left out where the paper's tables are repeated.
_PAPER = ("g1", "g2")
_CASES = (1, 2)


def _scores(
    measure: str,
    case: int,
    *,
    threshold: float = THRESHOLD,
    reselect_every: int | None = None,
) -> Arm:
    """Layers selected by their scores: above the mean (case 1), or also below."""
    name = f"{measure.replace('_', '-')}-case{case}"
    label = f"{_MEASURES[measure]} case {case}"
    fields: dict[str, Any] = {
        "method": "amplify",
        "amplify_measure": measure,
        "amplify_two_sided": case == 2,
        "amplify_threshold": threshold,
    }
    if threshold != THRESHOLD:
        return Arm(
            f"{name}-t{threshold}",
            f"{label}, threshold {threshold}",
            fields,
            group="sweep",
            variant_of=name,
            varies="amplify_threshold",
        )
    if reselect_every:
        return Arm(
            f"{name}-r{reselect_every}",
            f"{label}, selected again every {reselect_every} epochs",
            {**fields, "amplify_reselect_every": reselect_every},
            baseline=name,
            group="reselection",
            variant_of=name,
            varies="amplify_reselect_every",
        )
    return Arm(name, label, fields, baseline="original")


def _drop(config: Config) -> dict[str, str]:
    """Divides the rate by the factor once amplification has ended for good.

    Amplification by f raises the effective learning rate for a while and lowers it
    when it ends; with all layers it is training at f times the rate, and its end a
    drop to the rate itself. This is that drop alone.
    """
    listed = stages(config)
    last = max(number for number, stage in enumerate(listed) if stage.amplify)
    factor = listed[last].factor
    return strategy(
        stage._replace(learning_rate=stage.learning_rate / factor)
        if number > last
        else stage
        for number, stage in enumerate(listed)
    )


_FIXED = tuple(_scores(measure, case) for measure in _MEASURES for case in _CASES)
_SWEPT = tuple(
    _scores(measure, case, threshold=threshold)
    for measure in _PAPER
    for case in _CASES
    for threshold in _SWEEP
    if threshold != THRESHOLD
)
_RESELECTED = tuple(
    _scores(measure, case, reselect_every=epochs)
    for measure in _PAPER
    for case in _CASES
    for epochs in (2, 5)
)
_CONTROLS = ("random", "all", "drop")

STUDY = Study(
    name="amplification",
    title="Layer-wise gradient amplification (arXiv 2305.18445)",
    question="Does amplifying the gradients of the layers that stand out help, and is "
    "it the choice of layers that does? The controls are random layers, all layers "
    "(a higher learning rate in the same epochs), and a learning rate that only drops "
    "where amplification ends. The threshold is fixed in advance at "
    f"{THRESHOLD}; runs of other thresholds are a part of their own.",
    preset="amplify-paper",
    fields={"method": "sgd"},
    arms=(
        Arm("original", "original", {}),
        # As many layers as scores choose at the fixed threshold, 1 to 3 of about 20.
        Arm(
            "random",
            "random layers",
            {"method": "amplify", "amplify_select": "random", "amplify_ratio": 0.1},
            baseline="original",
        ),
        *_FIXED,
        Arm(
            "all",
            "all layers",
            {"method": "amplify", "amplify_select": "all"},
            baseline="original",
        ),
        Arm(
            "drop",
            "original, rate drops where amplification ends",
            {},
            baseline="original",
            derived=_drop,
        ),
        *_SWEPT,
        *_RESELECTED,
    ),
    extra_comparisons=tuple(
        Comparison(arm.name, control) for arm in _FIXED for control in _CONTROLS
    ),
    scales=(
        Scale(
            "full",
            models=("vgg19", "resnet18", "resnet34", "resnet50", "resnet101"),
            seeds=10,
            fields={},
        ),
        Scale(
            "small",
            models=("resnet18",),
            seeds=3,
            fields={**SMALL, "train_fraction": 0.1, "epochs": 12},
            arms=(
                "original",
                *_CONTROLS,
                "g1-case1",
                "g1-per-weight-case1",
                "g2-case1",
            ),
        ),
        Scale(
            "quick",
            models=("vgg19", "resnet18"),
            seeds=3,
            fields={
                "dataset": "digits",
                "width": 4,
                "epochs": 12,
                "batch_size": 64,
                "augment": False,
                # The papers' preset has no validation split; comparisons of the best
                # epoch need one.
                "validation_fraction": 0.2,
            },
            arms=(
                "original",
                *_CONTROLS,
                *(arm.name for arm in _FIXED),
                *("g2-case1-t0.7", "g2-case1-t2.3", "g2-case1-r2"),
            ),
        ),
    ),
    model_fields={
        "resnet50": {"strategy": "paper-deep"},
        "resnet101": {"strategy": "paper-deep"},
    },
)
