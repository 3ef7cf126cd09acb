"""Networks without normalisation, in whose first layers gradients vanish.

The problem that deep cascade learning (Marquez, Hare and Niranjan, 2018) is meant for,
and that amplification (arXiv 2305.18445) may remedy. Scale ``tune`` trains every arm at
each of its rates with a seed that is not reported; the others take the best rate there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import models
from experiments.studies.cascade import observe
from experiments.study import SMALL, Arm, Comparison, Scale, Study
from models.blocks import BlockNetwork
from training.settings.config import Config

TUNING_SEED = 1000
SGD, EARLY = "sgd", "early"
# The arms whose gradients are drawn.
DRAWN = (SGD, "he", "batch", "conv")
_SGD_RATES = (0.01, 0.05, 0.25)
_ADAM_RATES = (0.0003, 0.001, 0.003)


class Method(NamedTuple):
    """A way to train.

    Attributes:
      label: What reports call it.
      rate: The one of ``rates`` with the lowest validation loss at scale tune.
      fields: Fields of ``training.settings.config.Config``.
      rates: The rates to try.
    """

    label: str
    rate: float
    fields: Mapping[str, Any]
    rates: tuple[float, ...] = _SGD_RATES


def _amplified(rate: float, layers: str, factor: int, form: str) -> Method:
    fields = {
        "method": "amplify",
        "amplify_select": layers,
        "amplify_factor": float(factor),
        "amplify_propagate": form == "propagated",
    }
    names = {"scores": "layers by score", "all": "all layers", EARLY: "early layers"}
    return Method(f"{names[layers]} x {factor}, {form}", rate, fields)


# Amplification of all layers alone is SGD at the factor times the rate.
METHODS = {
    SGD: Method("SGD", 0.01, {}),
    "plp": Method("PLP", 0.01, {"method": "plp"}),
    "adam": Method("Adam", 0.001, {"optimizer": "adam"}, _ADAM_RATES),
    "he": Method("SGD, He's initialisation", 0.05, {"kernel_init": "he"}),
    "he-adam": Method(
        "Adam, He's initialisation",
        0.001,
        {"kernel_init": "he", "optimizer": "adam"},
        _ADAM_RATES,
    ),
    "batch": Method("SGD, batch normalisation", 0.01, {"norm": "batch"}),
    "conv": Method("cascade, convolutional head", 0.05, {"cascade": "conv"}),
    "dense": Method("cascade, dense head", 0.05, {"cascade": "dense"}),
    "finetuned": Method("cascade, then end to end", 0.05, {"cascade": "conv"}),
    **{
        f"{layers}-{factor}-{form}": _amplified(rate, layers, factor, form)
        for layers, factor, form, rate in (
            (EARLY, 2, "alone", 0.01),
            (EARLY, 10, "alone", 0.01),
            (EARLY, 100, "alone", 0.01),
            (EARLY, 2, "propagated", 0.01),
            (EARLY, 10, "propagated", 0.01),
            (EARLY, 100, "propagated", 0.01),
            ("all", 2, "propagated", 0.01),
            ("all", 3, "propagated", 0.01),
            ("all", 10, "propagated", 0.01),
            ("scores", 10, "alone", 0.01),
            ("scores", 10, "propagated", 0.01),
        )
    },
}


def _epochs_per_block(config: Config) -> int:
    if config.dataset == "digits":
        return 3
    return 10 if config.train_fraction == 1 else 2


def _derived(name: str, rate: float) -> Callable[[Config], dict[str, Any]]:
    """Fields that depend on the network and on the length of the run.

    All arms have as many epochs for each block. Training end to end after a cascade
    takes a quarter more, so that the two share their stages.
    """

    def derived(config: Config) -> dict[str, Any]:
        fields = METHODS[name].fields
        network = models.create(config.model)
        assert isinstance(network, BlockNetwork)
        blocks = list(network.blocks())
        each = _epochs_per_block(config)
        total = each * len(blocks)
        if "cascade" in fields:
            return {
                "learning_rate": rate,
                "cascade_epochs": each,
                "cascade_finetune": total // 4 if name == "finetuned" else 0,
            }
        if fields.get("method") != "amplify":
            return {"learning_rate": rate, "epochs": total}
        # Layers are selected in the first epoch, and amplified from the second on.
        found = {"strategy": str([(total, rate, 1, fields["amplify_factor"])])}
        if fields["amplify_select"] == EARLY:
            found["amplify_select"] = ",".join(blocks[: len(blocks) // 2])
        return found

    return derived


def at_rate(name: str, rate: float) -> str:
    """The arm that trains a method at a rate."""
    return f"{name}-at-{rate:g}"


def _arm(name: str, arm: str, label: str, rate: float, **more: Any) -> Arm:
    return Arm(arm, label, METHODS[name].fields, derived=_derived(name, rate), **more)


_MAIN = tuple(
    _arm(name, name, method.label, method.rate, baseline=None if name == SGD else SGD)
    for name, method in METHODS.items()
)
_TUNED = tuple(
    _arm(
        name,
        at_rate(name, rate),
        f"{method.label}, rate {rate:g}",
        rate,
        group="rates",
    )
    for name, method in METHODS.items()
    for rate in method.rates
)
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
        Scale(
            "tune",
            models=("vgg16",),
            seeds=1,
            fields=_DIGITS,
            arms=tuple(arm.name for arm in _TUNED),
            first_seed=TUNING_SEED,
        ),
    ),
    observe=observe,
    extra_comparisons=(
        Comparison("finetuned", "conv"),
        Comparison("conv", "batch"),
        Comparison("conv", "he-adam"),
    ),
)
