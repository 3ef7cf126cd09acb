"""Why prediction does what it does: its limits of stability, and its matched rate.

The theory (``experiments.stability``) assumes the full batch, a constant learning rate,
and a loss whose curvature does not depend on the size of the batch or of the weights.
So the network ``plain`` has no normalisation and is trained on its complete training
part in one batch. The others are trained as usual, on small batches. There noise keeps
the curvature below the full batch's limits, and batch normalisation ties it to the norm
of the weights: the loss does not change when they are scaled, and its Hessian shrinks
with their square.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.curvature import top_eigenvalue
from experiments.rates import matched
from experiments.study import SMALL, Arm, Scale, Study
from experiments.training_loss import TrainingLoss
from experiments.tuning import rounded
from training.data.pixels import normalize
from training.engine import networks
from training.engine.state import TrainState
from training.errors import ConfigError
from training.recipe import Prepared
from training.run.callbacks import Callback
from training.settings import config as config_lib
from training.settings.config import Config

# -- The arms --------------------------------------------------------------------------

PERIOD = 4
MATCHED = matched(period=PERIOD)


class Regime(NamedTuple):
    """Settings that arms which are compared share.

    Attributes:
      name: The group of its arms, and the end of their names.
      label: Its name in reports.
      momentum: The coefficient.
      nesterov: Nesterov momentum, not heavy ball.
      full_batch_rate: The learning rate of SGD and PLP on the full batch.
      mini_batch_rate: And on small ones, for networks with batch normalisation.
    """

    name: str
    label: str
    momentum: float
    nesterov: bool
    full_batch_rate: float
    mini_batch_rate: float


# At a low rate the curvature that SGD meets stays below all limits; at a high one it
# rises to SGD's limit, with heavy ball at least beyond PLP's. Chosen on pilot runs with
# the digits.
REGIMES = (
    Regime("none-low", "no momentum, low rate", 0.0, False, 0.3, 0.03),
    Regime("none-high", "no momentum, high rate", 0.0, False, 2.0, 1.0),
    Regime("heavy-low", "heavy ball 0.9, low rate", 0.9, False, 0.08, 0.01),
    Regime("heavy-high", "heavy ball 0.9, high rate", 0.9, False, 0.6, 0.5),
    Regime("nesterov-high", "Nesterov 0.9, high rate", 0.9, True, 0.6, 0.5),
)
LABELS = {"sgd": "SGD", "plp": "PLP", "matched": f"SGD, rate x {MATCHED}"}

# Networks without normalisation, which train on the full batch.
FULL_BATCH_MODELS = ("plain",)
# The images of each set, without its test part.
_IMAGES_OF = {"digits": 1438, "cifar10": 50_000, "cifar100": 50_000}


def _full_batch(config: Config) -> int:
    if config.dataset not in _IMAGES_OF:
        raise ConfigError(
            f"--dataset must be one of {', '.join(_IMAGES_OF)} in this study, got "
            f"{config.dataset}"
        )
    images = _IMAGES_OF[config.dataset]
    left = images - round(config.validation_fraction * images)
    return round(config.train_fraction * left)


def _derived(regime: Regime, config: Config) -> dict[str, Any]:
    if config.model not in FULL_BATCH_MODELS:
        return {"learning_rate": regime.mini_batch_rate}
    return {"learning_rate": regime.full_batch_rate, "batch_size": _full_batch(config)}


def _arms(regime: Regime) -> tuple[Arm, ...]:
    """SGD, prediction, and SGD at the matched rate."""
    optimizer = "nesterov" if regime.nesterov else "sgd"

    def arm(method: str, fields: dict[str, Any], **others: Any) -> Arm:
        return Arm(
            f"{method}-{regime.name}",
            f"{LABELS[method]}, {regime.label}",
            {"optimizer": optimizer, "momentum": regime.momentum, **fields},
            group=regime.name,
            derived=functools.partial(_derived, regime),
            **others,
        )

    sgd, matched = arm("sgd", {}), arm("matched", {}, rate=float(MATCHED))
    predicting = {"method": "plp", "plp_period": PERIOD}
    plp = arm("plp", predicting, baseline=sgd.name, matched=matched.name)
    return sgd, plp, matched


# -- Measurements ----------------------------------------------------------------------

# Length of a sketch. Distances have a relative error (standard deviation) of
# 1/sqrt(2 * 256), 4 %; they are exact for networks with no more parameters.
_DIMENSIONS = 256


def sketch(displacement: Any) -> np.ndarray:
    """A short vector that stands for a parameter-like tree.

    Every parameter is added, with a random sign, to one of ``_DIMENSIONS`` numbers
    chosen at random (a count sketch). This map is linear and the same for all trees of
    one size, so the distance of two sketches is that of their trees plus a random
    error.

    Args:
      displacement: Parameters minus those at the start. Subtracting first keeps
        rounding small.

    Returns:
      float32 ``[_DIMENSIONS]``, or all parameters if they are no more than that.

    References:
      Charikar et al., "Finding frequent items in data streams", 2002.
    """
    leaves = [np.ravel(x) for x in jax.tree.leaves(displacement)]
    flat = np.concatenate(leaves).astype(np.float64)
    if flat.size > _DIMENSIONS:
        # The legacy generator, because its stream never changes.
        generator = np.random.RandomState(0)
        place = generator.randint(_DIMENSIONS, size=flat.size)
        sign = generator.choice([-1.0, 1.0], size=flat.size)
        short = np.zeros(_DIMENSIONS)
        np.add.at(short, place, sign * flat)
        flat = short
    return flat.astype(np.float32)


def distance(path: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of two paths relative to the distance that the first has covered.

    Args:
      path: Sketches ``[times, dimensions]`` of displacements from the start.
      other: Those of a path from the same start, at the same times.

    Returns:
      ``||path - other|| / ||path||`` at each time; NaN where the first has not moved.
    """
    covered = np.linalg.norm(path, axis=-1)
    apart = np.linalg.norm(path - other, axis=-1)
    unknown = np.full_like(apart, np.nan)
    return np.divide(apart, covered, out=unknown, where=covered > 0)


# Two cycles on the full batch, so that measurements fall on ends of cycles.
_EPOCHS_BETWEEN = 2 * PERIOD
_IMAGES = 512
_TOLERANCE = 0.01


class Observer(Callback):
    """Follows curvature and path of a run.

    Attributes:
      measures: ``step``: the optimizer steps at which it measured, 0 first. At each,
        ``top_eigenvalue`` of the Hessian of the training loss on a fixed batch (the
        full one, or the first 512 training images), its ``residual``, and whether it
        ``converged``. ``distance``: how far PLP's parameters are from those of ``sgd``
        and ``matched``, in parts of the distance that PLP has moved, at each step but
        0. Whichever of two runs comes last has it, so that a run has those that are
        known by then.
    """

    def __init__(self, prepared: Prepared, config: Config) -> None:
        """Takes a compiled configuration; measures at the start of this run."""
        is_full_batch = config.model in FULL_BATCH_MODELS
        self._every = _EPOCHS_BETWEEN if is_full_batch else 1
        dataset = prepared.dataset
        part = slice(config.batch_size if is_full_batch else _IMAGES)
        # In half precision rounding would drown the derivative of a gradient.
        if config.precision != "float64":
            config = dataclasses.replace(config, precision="float32")
        module = networks.make_network(config, dataset.num_classes, axis_name=None)
        self._sketches: list[Any] = []
        self._config = config
        self._rate = config.learning_rate or 0.0
        self._paths = Path(str(config.workdir)).parents[1] / "paths"
        self._seen: dict[str, list[Any]] = {
            name: [] for name in ("step", "top_eigenvalue", "residual", "converged")
        }
        with networks.precision(config):
            images = normalize(
                jnp.asarray(dataset.train.images[part]),
                dataset.mean,
                dataset.std,
                jnp.dtype(config.precision),
            )
            labels = jnp.asarray(dataset.train.labels[part])
            self._loss = Partial(TrainingLoss(module), images, labels)
            start = prepared.engine.initial_state(config.seed)
            self._start = jax.device_get(start.params)
            self._measure(0, self._start)

    def on_epoch(self, state: TrainState, metrics: dict[str, Any]) -> None:
        """See :class:`Callback`."""
        if metrics["epoch"] % self._every == 0:
            self._measure(metrics["step"], jax.device_get(state.params))

    def _measure(self, step: int, params: Any) -> None:
        found = top_eigenvalue(
            self._loss, params, tolerance=_TOLERANCE, key=jax.random.key(0)
        )
        values = (step, found.value, found.residual, found.converged)
        for seen, value in zip(self._seen.values(), values, strict=True):
            seen.append(value)
        moved = jax.tree.map(lambda a, b: a - b, params, self._start)
        self._sketches.append(sketch(moved))
        self._paths.mkdir(parents=True, exist_ok=True)
        np.save(self._path(self._config.method, self._rate), self._sketches)

    @property
    def measures(self) -> dict[str, Any]:
        """The measurements."""
        distances = self._distances()
        return {**self._seen, **({"distance": distances} if distances else {})}

    def _path(self, method: str, rate: float) -> Path:
        """The file of a run's sketches, in a folder that the study's runs share."""
        chosen = config_lib.chosen(self._config)
        common = {
            name: value
            for name, value in chosen.items()
            if name not in ("method", "learning_rate") and not name.startswith("plp_")
        }
        fingerprint = config_lib.fingerprint(common)
        return self._paths / f"{fingerprint}-{method}-{rate:.5g}.npy"

    def _distances(self) -> dict[str, list[float]]:
        """Distances from the runs that this one is compared with, if they are there."""
        rate, factor = self._rate, float(MATCHED)
        ours, found = np.stack(self._sketches), {}
        is_plp = self._config.method == "plp"
        for name, of_plp in (("sgd", 1.0), ("matched", factor)):
            other = (
                self._path("sgd", rate * of_plp)
                if is_plp
                else self._path("plp", rate / of_plp)
            )
            if not other.exists() or len(theirs := np.load(other)) != len(ours):
                continue
            pair = (ours, theirs) if is_plp else (theirs, ours)
            found[name] = [rounded(x, 5) for x in distance(*pair)[1:]]
        return found


# -- The study -------------------------------------------------------------------------

STUDY = Study(
    name="mechanism",
    title="Why prediction does what it does: curvature and the matched rate",
    question="Is parameter linear prediction the matched learning rate while learning "
    "rate x curvature is small? And does its limit of stability stand far below the "
    "matched rate's with heavy-ball momentum, and above it without momentum, as the "
    "linear map of its cycle predicts?",
    fields={
        "method": "sgd",
        "epochs": 12,
        "batch_size": 64,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "weight_decay": 5e-4,
        "augment": False,
    },
    arms=tuple(arm for regime in REGIMES for arm in _arms(regime)),
    scales=(
        Scale(
            "full",
            models=("plain", "resnet18"),
            seeds=5,
            fields={"dataset": "cifar100", "width": 64, "batch_size": 128},
        ),
        Scale(
            "small",
            models=("plain",),
            seeds=3,
            # 900 images in a batch: most of the time goes into measuring the curvature.
            fields={**SMALL, "width": 4, "train_fraction": 0.02},
            arms=tuple(
                f"{method}-heavy-{rate}"
                for rate in ("low", "high")
                for method in LABELS
            ),
        ),
        Scale(
            "quick",
            models=("plain", "tiny"),
            seeds=4,
            first_seed=4,  # the rates were chosen on seeds 0 to 3
            fields={"dataset": "digits", "width": 8, "train_fraction": 1.0},
        ),
    ),
    # An eighth of CIFAR's training part, 5,000 images, fits into one batch.
    model_fields={
        "plain": {"epochs": 128, "weight_decay": 0.0, "train_fraction": 1 / 8}
    },
    observe=Observer,
)
