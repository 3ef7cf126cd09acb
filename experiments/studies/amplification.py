"""Layer-wise gradient amplification, compared with other explanations of its gain."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from experiments.rates import paper_strategy, stages, strategy
from experiments.study import SMALL, Arm, Comparison, Scale, Study
from training.settings.config import Config

_DEEP = ("resnet50", "resnet101")
_VGG = ("vgg16", "vgg19")

# Fixed in advance, where thresholds are not swept: that of the preset and, for the
# deep networks, that of the deep preset.
THRESHOLD = 1.5
THRESHOLD_DEEP = 2.0

# The factor was not published. 2 is that of the named strategies.
FACTOR = 2.0

# The part of the layers that is drawn at random: about as many as scores choose at the
# fixed threshold, 1 to 3 of about 20.
RATIO = 0.1

_MEASURES = {"g1": "g1", "g1_per_weight": "g1 per weight", "g2": "g2"}


# -- Layers selected by their scores ---------------------------------------------------


def _fields(measure: str = "g2", case: int = 1, **others: Any) -> dict[str, Any]:
    return {
        "method": "amplify",
        "amplify_measure": measure,
        "amplify_two_sided": case == 2,
        **others,
    }


def _scores(measure: str, case: int) -> Arm:
    """Layers whose scores are above the mean (case 1), or also below it (case 2)."""
    return Arm(
        f"{measure.replace('_', '-')}-case{case}",
        f"{_MEASURES[measure]} case {case}",
        _fields(measure, case),
        baseline="noop",
        matched=_plain_name(_rise(FACTOR)),
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


# Amplified like the others, by 1: a plain control whose program, and so whose rounding,
# is that of the arms that amplify.
_NOOP = {"method": "amplify", "amplify_factor": 1.0}

_FIXED = tuple(_scores(measure, case) for measure in _MEASURES for case in (1, 2))
# Settings that the paper does not publish.
_FORMS = (
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


# Learning rates that fall with the noise of a layer. Their mean over the layers, each
# counted once, is 1. Even rates are the control whose program, and so whose rounding,
# is the same.
_NOISE = {"method": "noise-adaptive"}
_ADAPTIVE = (
    Arm(
        "noise-even",
        "noise-adaptive rates, all equal",
        {**_NOISE, "noise_alpha": 1e6},
        baseline="original",
        group="noise",
    ),
    *(
        Arm(
            f"noise-{alpha:g}",
            f"noise-adaptive rates, alpha {alpha:g}",
            {**_NOISE, "noise_alpha": alpha},
            baseline="noise-even",
            group="noise",
        )
        for alpha in (1.0, 0.1)
    ),
)
# The one of 0.001, 0.002, 0.004, 0.008 and 0.016 with the lowest validation loss of
# amplification by 1, over the seeds 1000 and 1001.
_ATTENTION_RATE = 0.008
DIGITS: Mapping[str, Any] = {
    "dataset": "digits",
    "width": 4,
    "epochs": 12,
    "batch_size": 64,
    "augment": False,
    # The papers' preset has no validation split; comparisons of the best epoch need
    # one.
    "validation_fraction": 0.2,
}


# -- Sweeps ----------------------------------------------------------------------------


def variant(name: str) -> Arm | None:
    """An arm of a sweep.

    Args:
      name: A way to select layers, and one setting of it: ``g1-case2-t0.9`` (the
        threshold, in the paper 0.7 to 2.5 by 0.1, and 1.0 to 3.0 by 0.25 for the deep
        networks), ``g2-case1-r5`` (layers selected again every 5 epochs),
        ``g2-case1-f3`` (the factor); or ``rate-1.2``, the matched rate of a factor.
    """
    of, _, setting = name.rpartition("-")
    if re.fullmatch(r"rate-\d+(\.\d+)?", name):
        return _plain(float(setting), "factor")
    arm = next((arm for arm in _FIXED if arm.name == of), None)
    if arm is None or not re.fullmatch(r"[tf]\d+(\.\d+)?|r\d+", setting):
        return None
    value = float(setting[1:])

    def swept(label: str, field: Mapping[str, float], **others: Any) -> Arm:
        fields = {**arm.fields, **field}
        return Arm(name, f"{arm.label}, {label}", fields, **others)

    match setting[0]:
        case "t":
            field = {"amplify_threshold": value}
            return swept(f"threshold {value}", field, group="sweep")
        case "r":
            field = {"amplify_reselect_every": int(value)}
            label = f"selected again every {value:g} epochs"
            return swept(label, field, baseline=of, group="reselection")
        case _:
            field, matched = {"amplify_factor": value}, _plain_name(_rise(value))
            label = f"factor {value:g}"
            return swept(label, field, baseline="noop", matched=matched, group="factor")


# -- The study -------------------------------------------------------------------------

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
        *_FORMS,
        *_ADAPTIVE,
    ),
    variant=variant,
    extra_comparisons=(
        *(
            Comparison(arm.name, control)
            for arm in _FIXED
            for control in ("original", "random", "all")
        ),
        Comparison("g2-case1", "drop"),
        *(
            Comparison(arm.name, control)
            for arm in _ADAPTIVE[1:]
            for control in ("g2-case1", "random")
        ),
    ),
    scales=(
        Scale(
            "full",
            models=("vgg19", "resnet18", "resnet34", *_DEEP),
            seeds=10,
            # Without a validation split, as in the paper, there are test curves.
            fields={"test_each_epoch": True},
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
            fields=DIGITS,
            arms=(
                *(*_DECIDING, "rate-2", "drop"),
                *(arm.name for arm in _FIXED if arm.name not in _DECIDING),
                *("g2-case1-t0.7", "g2-case1-t2.3", "g2-case1-r2"),
                *(f"g2-case1-f{factor}" for factor in ("1.5", "3", "5", "10")),
                *("rate-1.05", "rate-1.2", "rate-1.4", "rate-1.9"),
                *(arm.name for arm in (*_FORMS, *_ADAPTIVE)),
            ),
        ),
        # AdamW, whose updates are amplified.
        Scale(
            "attention",
            models=("vit-tiny",),
            seeds=5,
            fields={
                **DIGITS,
                "optimizer": "adamw",
                "weight_decay": 0.05,
                **paper_strategy(DIGITS["epochs"], _ATTENTION_RATE),
            },
            arms=(
                *(arm for arm in _DECIDING if arm != "original"),
                *("rate-2", "noise-even", "noise-1"),
            ),
        ),
    ),
    model_fields={
        model: {"strategy": "paper-deep", "amplify_threshold": THRESHOLD_DEEP}
        for model in _DEEP
    },
)
