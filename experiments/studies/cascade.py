"""Deep cascade learning, compared with training end to end.

Marquez, Hare and Niranjan, "Deep Cascade Learning", IEEE TNNLS 29(11), 2018.
"""

from typing import Any

import flax.linen as nn
import jax
import optax
from flax import traverse_util

from experiments.rates import amplified_after_a_third, matched
from experiments.study import SMALL, Arm, Scale, Study
from experiments.training_loss import TrainingLoss
from training import data
from training.data.pixels import normalize
from training.engine import networks
from training.engine.engine import Engine
from training.engine.state import TrainState
from training.recipe import Prepared
from training.run.callbacks import Callback
from training.settings.config import Config

# -- Measurements ----------------------------------------------------------------------

# Images on which the gradient is measured.
_IMAGES = 256


class Costs(Callback):
    """Costs of each stage's training function, and norms of gradients.

    Args:
      has_gradients: Whether to measure gradients, which takes time.
    """

    def __init__(self, has_gradients: bool) -> None:
        self._has_gradients = has_gradients
        self._stages: list[dict[str, Any]] = []
        self._gradients: list[dict[str, Any]] = []
        self._norms: Any = None
        self._is_first = False

    def on_start(self, config: Config, engine: Engine, dataset: data.Dataset) -> None:
        """See :class:`Callback`."""
        # A loop on the device counts as one step.
        operations = (engine.train_call.cost_analysis() or {}).get("flops")
        self._stages.append({"operations": operations, **engine.memory()})
        if self._has_gradients:
            module = networks.make_network(config, dataset.num_classes, axis_name=None)
            dtype = jax.numpy.dtype(config.precision)
            self._norms = make_norms(module, dataset, dtype)
            self._is_first = True

    def on_call(self, state: TrainState) -> None:
        """See :class:`Callback`."""
        if self._is_first:
            self._measure(state)

    def on_epoch(self, state: TrainState, metrics: dict[str, Any]) -> None:
        """See :class:`Callback`."""
        if self._has_gradients:
            self._measure(state)

    def _measure(self, state: TrainState) -> None:
        self._is_first = False
        norms = jax.device_get(self._norms(**state.variables))
        self._gradients.append(
            {
                "stage": len(self._stages),
                "step": int(state.step),
                # A frozen layer has no gradient at all.
                "norms": {n: float(f"{x:.4g}") for n, x in norms.items() if x},
            }
        )

    @property
    def measures(self) -> dict[str, Any]:
        """``stages`` and ``gradients``.

        A stage has the ``operations`` of a step, and what :meth:`Engine.memory` says.
        Gradients are those of the loss without decay, after the first step of a stage
        and after each of its epochs: ``stage``, ``step``, and ``norms`` of the kernels.
        """
        return {"stages": self._stages, "gradients": self._gradients}


def make_norms(module: nn.Module, dataset: data.Dataset, dtype: Any) -> Any:
    """Returns ``norms(params, batch_stats)``, a dict from layers to gradient norms.

    The gradient is that of the loss on the first training images, and its norms are
    those of the kernels.
    """
    images, labels = (x[:_IMAGES] for x in dataset.train)
    pixels = normalize(images, dataset.mean, dataset.std, dtype)

    @jax.jit
    def norms(params: Any, batch_stats: Any) -> dict[str, jax.Array]:
        loss = TrainingLoss(module)
        gradient = jax.grad(loss, argnums=2)(pixels, labels, params, batch_stats)
        flat = traverse_util.flatten_dict(gradient)
        return {
            "/".join(path[:-1]): optax.tree.norm(x)
            for path, x in flat.items()
            if path[-1] == "kernel"
        }

    return norms


def observe(prepared: Prepared | None, config: Config) -> Costs:
    """Measures costs of every run, and gradients of the first seed."""
    return Costs(has_gradients=config.seed == 0)


# -- The study -------------------------------------------------------------------------

END_TO_END, AMPLIFIED = "end-to-end", "amplify"
_FACTOR = matched()


def _amplified(config: Config) -> dict[str, Any]:
    rates = amplified_after_a_third(config, config.learning_rate or 0.0)
    return {"method": "amplify", **rates}


def _cascade(name: str, label: str, fields: dict[str, Any]) -> Arm:
    return Arm(name, label, {"cascade_finetune": 0, **fields}, baseline=END_TO_END)


_FINETUNED = {"cascade": "conv", "cascade_finetune": 2}

STUDY = Study(
    name="cascade",
    title="Deep cascade learning",
    question="Does training a network block by block save memory or operations, and "
    "what does it cost in accuracy, compared with training end to end? And do the "
    "gradients of the first layers vanish, as the method supposes?",
    fields={
        "method": "sgd",
        "optimizer": "sgd",
        "momentum": 0.9,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "head": "linear",
        "weight_decay": 1e-3,
        "validation_fraction": 0.1,
    },
    arms=(
        Arm(END_TO_END, "end to end", {}),
        _cascade("dense", "cascade, dense head", {"cascade": "dense"}),
        # Until its last stage the next arm is the one after it, drawn over it.
        _cascade("finetuned", "cascade, then end to end", _FINETUNED),
        _cascade("conv", "cascade, convolutional head", {"cascade": "conv"}),
        Arm(
            AMPLIFIED,
            "end to end, amplification",
            {},
            baseline=END_TO_END,
            derived=_amplified,
        ),
        Arm(
            "plp",
            "end to end, PLP",
            {"method": "plp"},
            baseline=END_TO_END,
            matched="matched",
        ),
        Arm("matched", f"end to end, rate x {_FACTOR}", {}, rate=float(_FACTOR)),
    ),
    scales=(
        Scale(
            "full",
            models=("vgg16", "resnet18"),
            seeds=5,
            # The authors' lengths; end to end for as long as the longest stage.
            fields={
                "dataset": "cifar10",
                "width": 64,
                "batch_size": 64,
                "learning_rate": 0.01,
                "epochs": 140,
                "cascade_epochs": 20,
                "cascade_extra_epochs": 10,
            },
        ),
        Scale(
            "small",
            models=("vgg16",),
            seeds=3,
            fields={
                **SMALL,
                "train_fraction": 0.1,
                "learning_rate": 0.02,
                "epochs": 12,
                "cascade_epochs": 2,
            },
        ),
        Scale(
            "quick",
            models=("resnet18",),
            seeds=5,
            fields={
                "dataset": "digits",
                "width": 8,
                "batch_size": 64,
                "learning_rate": 0.02,
                "epochs": 10,
                "cascade_epochs": 3,
            },
        ),
    ),
    observe=observe,
)
