"""Every method on one network that converges, each against its strongest control."""

from typing import Any

from experiments import tried_rates
from experiments.rates import matched, paper_strategy
from experiments.study import Comparison, Scale, Study
from experiments.tried_rates import RecipeMethod
from training.settings.config import Config

RATES = (0.025, 0.05, 0.1, 0.2, 0.4)
# The best of the rates of SGD that have run at scale tune; 0.025 has not.
_RATE = 0.2
SGD, NOOP, CONSTANT = "sgd", "noop", "constant"


def _strategy(config: Config, rate: float) -> dict[str, str]:
    return paper_strategy(config.epochs, rate)


def _amplified(label: str, base: str | None = NOOP, **fields: Any) -> RecipeMethod:
    fields = {"method": "amplify", **fields}
    rates = RATES if base is None else ()
    return RecipeMethod(label, 0.1, rates, fields, base=base, derived=_strategy)


METHODS = {
    SGD: RecipeMethod("SGD", _RATE, RATES),
    "plp": RecipeMethod(
        "PLP, period 4", _RATE, (), {"method": "plp"}, base=SGD, drift=float(matched())
    ),
    "lookahead": RecipeMethod(
        "Lookahead", _RATE, (), {"method": "lookahead"}, base=SGD, drift=0.5
    ),
    "noise": RecipeMethod(
        "noise-adaptive rates", _RATE, (), {"method": "noise-adaptive"}, base=SGD
    ),
    CONSTANT: RecipeMethod(
        "power average, constant rate",
        0.05,
        RATES,
        {"schedule": "constant", "average": "power"},
        base=SGD,
    ),
    NOOP: _amplified("amplification by 1", None, amplify_factor=1.0),
    "g2-case1": _amplified("g2 case 1"),
    "random": _amplified("random layers", amplify_select="random", amplify_ratio=0.1),
    "all": _amplified("all layers", amplify_select="all"),
}
# Decays of shorter runs, for the epochs in the middle of a run at a constant rate. Of
# their rates 0.1, 0.2 and 0.4 have run at scale tune; of the constant one's the first
# three.
SHORTER = {
    f"sgd-{epochs}-epochs": RecipeMethod(
        f"SGD, {epochs} epochs", rate, RATES, {"epochs": epochs}
    )
    for epochs, rate in ((6, 0.2), (12, 0.2))
}
_COMPARED = tried_rates.compared(METHODS)
_SHORTER = tried_rates.compared(SHORTER)
_TRIED = tried_rates.tried(METHODS | SHORTER)
_NAMES = tuple(arm.name for arm in _COMPARED)
_CONVERGED: dict[str, Any] = {
    "dataset": "cifar100",
    "width": 16,
    "stem": "imagenet",
    "batch_size": 128,
    "epochs": 24,
    "validation_fraction": 0.1,
    "augment": True,
    "precise_bn": 16,  # on both sides: an average has no running statistics
}

STUDY = Study(
    name="head_to_head",
    title="Every method on one network that converges",
    question="On a network that is trained until it generalises: does any method lower "
    "the loss or raise the accuracy, compared with SGD at its tuned rate and with its "
    "strongest control?",
    fields={"method": "none", "optimizer": "nesterov", "schedule": "cosine"},
    arms=(*_COMPARED, *_SHORTER, *_TRIED),
    scales=(
        Scale(
            "full",
            models=("resnet18",),
            seeds=5,
            fields={
                **_CONVERGED,
                "width": 64,
                "stem": "cifar",
                "epochs": 100,
            },
            arms=_NAMES,
        ),
        Scale(
            "converged",
            models=("resnet18",),
            seeds=5,
            fields=_CONVERGED,
            arms=(*_NAMES, *SHORTER),
        ),
        Scale(
            "quick",
            models=("tiny",),
            seeds=6,
            fields={"dataset": "digits", "width": 8, "batch_size": 64, "epochs": 10,
                    "precise_bn": 16},
            arms=_NAMES,
        ),
        tried_rates.scale_tune(METHODS | SHORTER, "resnet18", _CONVERGED),
    ),
    extra_comparisons=(
        Comparison(NOOP, SGD),
        *(Comparison("g2-case1", other) for other in ("random", "all", SGD)),
        Comparison("noise", "g2-case1"),
    ),
)  # fmt: skip
