"""Layer-wise gradient amplification, compared with other explanations of its gain."""

from collections.abc import Callable, Mapping
from typing import Any

from experiments.rates import stages, strategy
from experiments.study import SMALL, Arm, Comparison, Scale, Study
from training.settings.config import Config

_SHALLOW = ("vgg19", "resnet18", "resnet34")
_DEEP = ("resnet50", "resnet101")
_VGG = ("vgg16", "vgg19")

# Fixed in advance, where thresholds are not swept: that of the preset and, for the
# deep networks, that of the deep preset.
THRESHOLD = 1.5
THRESHOLD_DEEP = 2.0
# The paper's: 0.7 to 2.5 by 0.1, and 1.0 to 3.0 by 0.25 for the deep networks.
_SWEEP = [round(0.1 * tenths, 1) for tenths in range(7, 26)]
_SWEEP_DEEP = [0.25 * quarters for quarters in range(4, 13)]

# The factor was not published. 2 is that of the named strategies.
FACTOR = 2.0
_FACTORS = (1.5, 3.0, 5.0, 10.0)

# The part of the layers that is drawn at random: about as many as scores choose at the
# fixed threshold, 1 to 3 of about 20.
RATIO = 0.1

_MEASURES = {"g1": "g1", "g1_per_weight": "g1 per weight", "g2": "g2"}
# Equation 4's other reading is left out where the paper's tables are repeated.
_PAPER = ("g1", "g2")
_CASES = (1, 2)


# -- Layers selected by their scores ---------------------------------------------------


def _fields(measure: str = "g2", case: int = 1, **others: Any) -> dict[str, Any]:
    return {
        "method": "amplify",
        "amplify_measure": measure,
        "amplify_two_sided": case == 2,
        **others,
    }


def _name(measure: str, case: int) -> str:
    return f"{measure.replace('_', '-')}-case{case}"


def _label(measure: str, case: int) -> str:
    return f"{_MEASURES[measure]} case {case}"


def _scores(measure: str, case: int) -> Arm:
    """Layers whose scores are above the mean (case 1), or also below it (case 2)."""
    return Arm(
        _name(measure, case),
        _label(measure, case),
        _fields(measure, case),
        baseline="noop",
        matched=_plain_name(_rise(FACTOR)),
    )


def _swept(measure: str, case: int, threshold: float) -> Arm:
    """The same at a threshold, for the networks for which the paper tries it."""
    shallow = _SHALLOW if threshold in _SWEEP and threshold != THRESHOLD else ()
    deep = _DEEP if threshold in _SWEEP_DEEP and threshold != THRESHOLD_DEEP else ()
    return Arm(
        f"{_name(measure, case)}-t{threshold}",
        f"{_label(measure, case)}, threshold {threshold}",
        _fields(measure, case, amplify_threshold=threshold),
        group="sweep",
        variant_of=_name(measure, case),
        varies="amplify_threshold",
        models=(*shallow, *deep),
    )


def _reselected(measure: str, case: int, epochs: int) -> Arm:
    """The same, with layers selected again."""
    return Arm(
        f"{_name(measure, case)}-r{epochs}",
        f"{_label(measure, case)}, selected again every {epochs} epochs",
        _fields(measure, case, amplify_reselect_every=epochs),
        baseline=_name(measure, case),
        group="reselection",
        variant_of=_name(measure, case),
        varies="amplify_reselect_every",
    )


# -- Controls --------------------------------------------------------------------------


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


def _raised(rise: float) -> Callable[[Config], Mapping[str, str]]:
    """Multiplies the rate in the epochs that amplify, and in no other.

    These are the epochs of an amplified stage but its first, which is analysed.
    """

    def derived(config: Config) -> Mapping[str, str]:
        found, start = [], 0
        for stage in stages(config):
            if stage.amplify:
                analysed = stage._replace(end_epoch=start + 1)
                rate = rise * stage.learning_rate
                found += [analysed, stage._replace(learning_rate=rate)]
            else:
                found.append(stage)
            start = stage.end_epoch
        return strategy(stage._replace(amplify=False, factor=1.0) for stage in found)

    return derived


def _rise(factor: float) -> float:
    """The mean over layers of what rates are multiplied by where layers are amplified.

    Every layer counts once, however large. The mean is known before any run for layers
    drawn at random. Layers selected by scores are about as many; the report measures
    how many.
    """
    return round(1 + RATIO * (factor - 1), 4)


def _plain_name(rise: float) -> str:
    return f"rate-{rise:g}"


def _plain(rise: float, group: str = "") -> Arm:
    return Arm(
        _plain_name(rise),
        f"original, rate x {rise:g} where layers are amplified",
        {},
        group=group,
        derived=_raised(rise),
    )


# -- What the paper does not publish ---------------------------------------------------


def _factor(factor: float) -> Arm:
    return Arm(
        f"g2-case1-f{factor:g}",
        f"g2 case 1, factor {factor:g}",
        _fields(amplify_factor=factor),
        baseline="noop",
        matched=_plain_name(_rise(factor)),
        group="factor",
        variant_of="g2-case1",
        varies="amplify_factor",
    )


# Amplified like the others, by 1: a plain control whose program, and so whose rounding,
# is that of the arms that amplify.
_NOOP = {"method": "amplify", "amplify_factor": 1.0}

_FIXED = tuple(_scores(measure, case) for measure in _MEASURES for case in _CASES)
_VARIANTS = (
    *(
        _swept(measure, case, threshold)
        for measure in _PAPER
        for case in _CASES
        for threshold in sorted({*_SWEEP, *_SWEEP_DEEP})
    ),
    *(
        _reselected(measure, case, epochs)
        for measure in _PAPER
        for case in _CASES
        for epochs in (2, 5)
    ),
    *map(_factor, _FACTORS),
    *(_plain(_rise(factor), "factor") for factor in _FACTORS),
    Arm(
        "g2-case1-propagated",
        "g2 case 1, propagated",
        _fields(amplify_propagate=True),
        baseline="noop",
        group="form",
    ),
    Arm(
        "g2-case1-modules",
        "g2 case 1, all modules are layers",
        _fields(amplify_layers="modules"),
        baseline="noop",
        group="form",
    ),
    # The paper does not say which head its VGG has. The head's layers take part in the
    # standardisation of scores, so that it matters for the selection.
    Arm(
        "noop-linear",
        "amplification by 1, linear head",
        {**_NOOP, "head": "linear"},
        group="head",
        models=_VGG,
    ),
    Arm(
        "g2-case1-linear",
        "g2 case 1, linear head",
        _fields(head="linear"),
        baseline="noop-linear",
        group="head",
        models=_VGG,
    ),
)
# Without a validation split, as in the paper, there are test curves.
_FULL = {"test_each_epoch": True}
# One measure, and everything that could explain its gain instead.
_DECIDING = ("original", "noop", "random", "g2-case1", "all", "rate-1.1")

STUDY = Study(
    name="amplification",
    title="Layer-wise gradient amplification (arXiv 2305.18445)",
    question="Does amplifying the gradients of the layers that stand out help, and is "
    "it the choice of layers that does? The controls are amplification by 1 (the same "
    "program without the method), random layers, all layers, plain training at the "
    "mean rise of the effective learning rate in the same epochs, and a learning rate "
    "that only drops where amplification ends. The threshold is fixed in advance at "
    f"{THRESHOLD} ({THRESHOLD_DEEP} for ResNet-50 and ResNet-101); runs of other "
    "thresholds are a part of their own.",
    preset="amplify-paper",
    fields={"method": "sgd"},
    arms=(
        Arm("original", "original", {}),
        Arm("noop", "amplification by 1", _NOOP, baseline="original"),
        Arm(
            "random",
            "random layers",
            {"method": "amplify", "amplify_select": "random", "amplify_ratio": RATIO},
            baseline="noop",
            matched=_plain_name(_rise(FACTOR)),
        ),
        *_FIXED,
        Arm(
            "all",
            "all layers",
            {"method": "amplify", "amplify_select": "all"},
            baseline="noop",
            matched=_plain_name(FACTOR),
        ),
        _plain(_rise(FACTOR)),
        _plain(FACTOR),
        Arm(
            "drop",
            "original, rate drops where amplification ends",
            {},
            baseline="original",
            derived=_drop,
        ),
        *_VARIANTS,
    ),
    extra_comparisons=(
        *(
            Comparison(arm.name, control)
            for arm in _FIXED
            for control in ("original", "random", "all")
        ),
        Comparison("g2-case1", "drop"),
    ),
    scales=(
        Scale("full", models=(*_SHALLOW, *_DEEP), seeds=10, fields=_FULL),
        Scale(
            "cifar10",
            models=(*_SHALLOW, *_DEEP),
            seeds=10,
            fields={**_FULL, "dataset": "cifar10"},
        ),
        # 30 runs of 58,500 steps: 6 hours at 80 steps/s, which is assumed of an H100
        # or H200 in float32. --dry-run measures it.
        Scale("gpu", models=("resnet18",), seeds=5, fields=_FULL, arms=_DECIDING),
        # 20 runs of 9,360 steps: 16 minutes at 200 steps/s, which is assumed of an
        # H200, and 8 compilations.
        Scale(
            "gpu-short",
            models=("resnet18",),
            seeds=5,
            fields={**_FULL, "width": 32, "epochs": 24},
            arms=("noop", "random", "g2-case1", "rate-1.1"),
        ),
        Scale(
            "small",
            models=("resnet18",),
            seeds=3,
            fields={**SMALL, "train_fraction": 0.1, "epochs": 12},
            arms=(*_DECIDING, "drop", "g1-case1", "g1-per-weight-case1"),
        ),
        Scale(
            "quick",
            models=("vgg19", "resnet18"),
            seeds=5,
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
                *(*_DECIDING, "rate-2", "drop"),
                *(arm.name for arm in _FIXED if arm.name not in _DECIDING),
                *("g2-case1-t0.7", "g2-case1-t2.3", "g2-case1-r2"),
                *(arm.name for arm in _VARIANTS if arm.group in ("factor", "form")),
                *(arm.name for arm in _VARIANTS if arm.group == "head"),
            ),
        ),
    ),
    model_fields={
        model: {"strategy": "paper-deep", "amplify_threshold": THRESHOLD_DEEP}
        for model in _DEEP
    },
)
