"""Techniques that make training faster or smaller, alone and together.

Those of a review, "Accelerating Neural Network Training" (arXiv 2312.10024): mixed
precision, gradient accumulation and pinned memory; and what its recipes add: clipping.
*All together* accumulates in the review's sense, which enlarges the batch; a batch that
is split saves memory in another way, and computes the same step.
"""

from typing import Any

import jax

from experiments.rates import amplified_after_a_third, matched
from experiments.study import SMALL, Arm, Scale, Study
from training.engine.engine import Engine
from training.recipe import Prepared
from training.run.callbacks import Callback
from training.settings.config import Config
from training.settings.presets import PRESETS

# -- Measurements ----------------------------------------------------------------------


class Memory(Callback):
    """The memory of the training function, and the most that the device has had in use.

    A device reports its peak since the process began, so it counts only if this run
    raised it.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes the compiled program, before the run."""
        self._engine = engine
        self._before = _peak()

    @property
    def measures(self) -> dict[str, Any]:
        """``memory``: see :meth:`Engine.memory`, and ``device_peak`` or None."""
        peak = _peak()
        rose = peak if peak > self._before else None
        return {"memory": {**self._engine.memory(), "device_peak": rose}}


def _peak() -> int:
    statistics = jax.local_devices()[0].memory_stats() or {}
    peak: int = statistics.get("peak_bytes_in_use", 0)
    return peak


def observe(prepared: Prepared, config: Config) -> Memory:
    """Measures the memory of every run."""
    return Memory(prepared.engine)


# -- The study -------------------------------------------------------------------------

NONE, ALL, PINNED = "none", "all", "host-pinned"

_BFLOAT16 = {"precision": "bfloat16"}
_ENLARGED = {"batches_per_step": 2}
_HOST = {"input": "host"}
_CLIPPED = {"clip_value": 0.01}
_ALL = {**_BFLOAT16, **_ENLARGED, **_HOST, **_CLIPPED}
# Amplifies gradients, also before Adam and AdamW, which undo most of it.
_AMPLIFY = {"method": "amplify", "amplify_inner": False}
_FACTOR = matched()


def _plain(preset: str, **changes: Any) -> dict[str, Any]:
    """A preset without its techniques and its clipping, with our validation part."""
    left_out = ("model", "method", "validation_fraction", *_ENLARGED, *_CLIPPED)
    plain = PRESETS[f"{preset}-plain"]
    kept = {n: x for n, x in plain.items() if n not in left_out}
    return {**kept, **changes}


# The review's rates for ViT and EfficientNet, 2e-5 and 0.01, are for fine-tuning.
_NETWORKS = {
    "resnet50": _plain("accelerate-resnet50"),
    "vit-tiny": _plain("accelerate-vit", learning_rate=1e-3),
    "efficientnet-b0": _plain("accelerate-efficientnet", learning_rate=0.05),
}


def _amplified(config: Config) -> dict[str, Any]:
    rate = _NETWORKS.get(config.model, {}).get("learning_rate", 0.05)
    return amplified_after_a_third(config, rate)


def _alone(name: str, label: str, fields: dict[str, Any]) -> Arm:
    return Arm(name, label, fields, baseline=NONE)


_ARMS = (
    Arm(NONE, "no technique", {}),
    _alone("bfloat16", "bfloat16", _BFLOAT16),
    _alone("float16", "float16", {"precision": "float16"}),
    _alone("split", "batch split in 2", {"batch_parts": 2}),
    _alone("enlarged", "batch enlarged by 2", _ENLARGED),
    _alone("host", "host input", {**_HOST, "pin_memory": False}),
    _alone(PINNED, "host input, pinned", _HOST),
    _alone("clipped", "clipping to 0.01", _CLIPPED),
    _alone(ALL, "all together", _ALL),
    Arm(
        "all-plp",
        "all and PLP",
        {**_ALL, "method": "plp"},
        baseline="all",
        matched="all-matched",
    ),
    Arm("all-matched", f"all, rate x {_FACTOR}", _ALL, rate=float(_FACTOR)),
    # The same program and rates as amplification, without it.
    Arm(
        "all-noop",
        "all and amplification by 1",
        {**_ALL, **_AMPLIFY, "amplify_factor": 1.0},
        derived=_amplified,
    ),
    Arm(
        "all-amplify",
        "all and amplification",
        {**_ALL, **_AMPLIFY},
        baseline="all-noop",
        derived=_amplified,
    ),
)
# Where batches are not transferred, pinned memory means nothing.
_ON_CPU = tuple(arm.name for arm in _ARMS if arm.name != PINNED)
# Most of the time of small runs is compilation, which takes up to two minutes an arm.
_FEW = (NONE, "bfloat16", "all", "all-plp", "all-noop", "all-amplify")

STUDY = Study(
    name="acceleration",
    title="Acceleration techniques (arXiv 2312.10024)",
    question="What do mixed precision, accumulation, input from the host and clipping "
    "cost or save in time and memory, and in accuracy, alone and together? And what do "
    "prediction and amplification add to all of them?",
    fields={"method": "sgd"},
    model_fields=_NETWORKS,
    arms=_ARMS,
    scales=(
        Scale("full", models=tuple(_NETWORKS), seeds=5, fields={}),
        Scale(
            "small",
            models=("vit-tiny", "efficientnet-b0"),  # ResNet-50 would take hours
            seeds=3,
            fields={**SMALL, "train_fraction": 0.2, "epochs": 8},
            arms=(NONE, "bfloat16", "enlarged", "all"),
        ),
        Scale(
            "quick",
            models=tuple(_NETWORKS),
            seeds=5,
            fields={
                "dataset": "digits",
                "width": 4,
                "epochs": 6,
                "batch_size": 32,
                "augment": False,
            },
            only={"vit-tiny": (*_FEW, "all-matched"), "efficientnet-b0": _FEW},
            arms=_ON_CPU,
        ),
    ),
    observe=observe,
)
