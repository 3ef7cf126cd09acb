"""Networks without normalisation, in whose first layers gradients vanish.

The problem that deep cascade learning (Marquez, Hare and Niranjan, 2018) is meant for,
and that amplification (arXiv 2305.18445) may remedy. Each method has its best rate of
three.
"""

import dataclasses
import functools
from typing import Any

import models
from experiments import tried_rates
from experiments.studies.cascade import observe
from experiments.study import SMALL, Comparison, Scale, Study
from experiments.tried_rates import RecipeMethod
from models.blocks import BlockNetwork
from training.settings.config import Config

SGD, EARLY = "sgd", "early"
# The arms whose gradients are drawn.
DRAWN = (SGD, "he", "batch", "conv")
_SGD_RATES = (0.01, 0.05, 0.25)
_ADAM_RATES = (0.0003, 0.001, 0.003)


def _derived(
    config: Config, rate: float, *, asked: dict[str, Any], finetunes: bool = False
) -> dict[str, Any]:
    """Fields that depend on the network and on the length of the run.

    All arms have as many epochs for each block. Training end to end after a cascade
    takes a quarter more, so that the two share their stages.
    """
    network = models.create(config.model)
    assert isinstance(network, BlockNetwork)
    blocks = list(network.blocks())
    each = _epochs_per_block(config)
    total = each * len(blocks)
    if "cascade" in asked:
        return {
            "learning_rate": rate,
            "cascade_epochs": each,
            "cascade_finetune": total // 4 if finetunes else 0,
        }
    if asked.get("method") != "amplify":
        return {"learning_rate": rate, "epochs": total}
    # Layers are selected in the first epoch, and amplified from the second on.
    found = {"strategy": str([(total, rate, 1, asked["amplify_factor"])])}
    if asked["amplify_select"] == EARLY:
        found["amplify_select"] = ",".join(blocks[: len(blocks) // 2])
    return found


def _epochs_per_block(config: Config) -> int:
    if config.dataset == "digits":
        return 3
    return 10 if config.train_fraction == 1 else 2


def _method(
    label: str, rate: float, rates: tuple[float, ...] = _SGD_RATES, **fields: Any
) -> RecipeMethod:
    finetunes = fields.pop("finetunes", False)
    derived = functools.partial(_derived, asked=fields, finetunes=finetunes)
    return RecipeMethod(label, rate, rates, fields, base=SGD, derived=derived)


def _amplified(layers: str, factor: int, form: str) -> RecipeMethod:
    names = {"scores": "layers by score", "all": "all layers", EARLY: "early layers"}
    return _method(
        f"{names[layers]} x {factor}, {form}",
        0.01,
        method="amplify",
        amplify_select=layers,
        amplify_factor=float(factor),
        amplify_propagate=form == "propagated",
    )


# Amplification of all layers alone is SGD at the factor times the rate.
METHODS = {
    SGD: dataclasses.replace(_method("SGD", 0.01), base=None),
    "plp": _method("PLP", 0.01, method="plp"),
    "adam": _method("Adam", 0.001, _ADAM_RATES, optimizer="adam"),
    "he": _method("SGD, He's initialisation", 0.05, kernel_init="he"),
    "he-adam": _method(
        "Adam, He's initialisation",
        0.001,
        _ADAM_RATES,
        kernel_init="he",
        optimizer="adam",
    ),
    "batch": _method("SGD, batch normalisation", 0.01, norm="batch"),
    "conv": _method("cascade, convolutional head", 0.05, cascade="conv"),
    "dense": _method("cascade, dense head", 0.05, cascade="dense"),
    "finetuned": _method(
        "cascade, then end to end", 0.05, cascade="conv", finetunes=True
    ),
    **{
        f"{layers}-{factor}-{form}": _amplified(layers, factor, form)
        for layers, form, factors in (
            (EARLY, "alone", (2, 10, 100)),
            (EARLY, "propagated", (2, 10, 100)),
            ("all", "propagated", (2, 3, 10)),
            ("scores", "alone", (10,)),
            ("scores", "propagated", (10,)),
        )
        for factor in factors
    },
}
_MAIN = tried_rates.compared(METHODS)
_TUNED = tried_rates.tried(METHODS)
_DIGITS = {"dataset": "digits", "width": 8, "batch_size": 64}
_NAMES = tuple(arm.name for arm in _MAIN)
# Without the factors that did no better, or diverged, in tuning.
_QUICK = (
    *(
        name
        for name, method in METHODS.items()
        if method.fields.get("method") != "amplify"
    ),
    *("early-100-alone", "early-10-propagated", "all-3-propagated"),
    "scores-10-propagated",
)

STUDY = Study(
    name="vanishing",
    title="Vanishing gradients: deep networks without normalisation",
    question="Where gradients vanish in the first layers of a deep network, which of "
    "deep cascade learning, amplification and prediction trains it, compared with "
    "Adam, with He's initialisation and with batch normalisation?",
    fields={
        "method": "none",
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "head": "linear",
        "norm": "none",
    },
    arms=(*_MAIN, *_TUNED),
    scales=(
        Scale(
            "full",
            models=("vgg16", "vgg29"),
            seeds=5,
            fields={"dataset": "cifar100", "width": 64, "batch_size": 128},
            arms=_NAMES,
        ),
        Scale(
            "small",
            models=("vgg16",),
            seeds=3,
            fields={**SMALL, "train_fraction": 0.1},
            arms=(SGD, "adam", "he", "he-adam", "batch", "conv"),
        ),
        Scale("quick", models=("vgg16",), seeds=9, fields=_DIGITS, arms=_QUICK),
        tried_rates.scale_tune(METHODS, "vgg16", _DIGITS),
    ),
    observe=observe,
    extra_comparisons=(
        Comparison("finetuned", "conv"),
        Comparison("conv", "batch"),
        Comparison("conv", "he-adam"),
    ),
)
