"""Using what a run has trained."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from training import cascade, data
from training.data.pixels import normalize
from training.engine import networks
from training.engine.evaluation import Evaluation
from training.engine.step import measure
from training.errors import RunError
from training.layout import File
from training.run import records, workdir
from training.run.checkpoints import read
from training.settings import config as config_lib
from training.settings.config import Config

_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
      module: The network, as ``module.apply(variables, images, train=False)``; it maps
        normalised images ``[n, height, width, channels]`` to logits ``[n, classes]``.
      variables: The variables of the best epoch, the average, or the merged ones.
      config: The run's configuration.
      mean: Mean of the training images by channel, of pixels in [0, 1].
      std: Their standard deviation.
      image_shape: Height, width and channels of the training images.
      label_names: One name a class.
      facts: The data that it was trained on; see :attr:`training.data.Dataset.facts`.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: Config
    mean: np.ndarray
    std: np.ndarray
    image_shape: tuple[int, ...]
    label_names: tuple[str, ...]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each class.

        Args:
          images: uint8 ``[n, height, width, channels]``, as in the data set.

        Returns:
          Probabilities ``[n, classes]``, which sum to 1.

        Raises:
          ValueError: If the images have another type or shape.
        """
        logits = list(self._batches(self._probabilities, images))
        return np.concatenate(logits or [np.zeros((0, len(self.label_names)))])

    def evaluate(self, examples: data.Examples) -> Evaluation:
        """Evaluates the network on examples.

        Raises:
          ValueError: If there are none, or the images have another type or shape.
        """
        if not len(examples.labels):
            raise ValueError("there are no examples to evaluate")
        sums = list(self._batches(self._sums, *examples))
        return Evaluation.of(jax.tree.map(lambda *x: np.sum(x, axis=0), *sums))

    def _batches(
        self, function: Callable[..., Any], images: np.ndarray, *others: np.ndarray
    ) -> Iterator[Any]:
        """The results of a function, batch by batch, as NumPy arrays."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must be uint8 [n, {', '.join(map(str, self.image_shape))}], "
                f"got {images.dtype} {list(images.shape)}"
            )
        with networks.precision(self.config):
            for start in range(0, len(images), _BATCH):
                batch = (x[start : start + _BATCH] for x in (images, *others))
                yield jax.tree.map(np.asarray, function(*batch))

    def check(self) -> None:
        """Raises an error of Flax or JAX if the attributes do not fit each other."""
        with networks.precision(self.config):
            image = jax.ShapeDtypeStruct((1, *self.image_shape), np.uint8)
            jax.eval_shape(self._logits, image)

    def _logits(self, images: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.precision)
        pixels = normalize(images, self.mean, self.std, dtype)
        logits: Any = self.module.apply(self.variables, pixels, train=False)
        return logits

    @functools.cached_property
    def _probabilities(self) -> Callable[..., jax.Array]:
        return jax.jit(lambda images: jax.nn.softmax(self._logits(images)))

    @functools.cached_property
    def _sums(self) -> Callable[..., dict[str, jax.Array]]:
        def sums(images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
            everything = jnp.ones(labels.shape, bool)
            return measure(self._logits(images), labels, everything)

        return jax.jit(sums)


def find_run(run: str | Path) -> tuple[Path, Config]:
    """The work directory and the configuration of a run.

    Args:
      run: The run's work directory. A cascade stands for its last stage.

    Raises:
      UserError: If the directory does not hold a run.
    """
    path = Path(run)
    if not (path / File.CONFIG).is_file():
        raise RunError(f"{path} holds no run: name the work directory of one")
    fields = config_lib.read(path / File.CONFIG)
    config = config_lib.resolve({}, fields | {"workdir": str(path)})
    if config.cascade is not None and config.cascade_stage is None:
        *_, last = cascade.stage_configs(config).values()
        return find_run(str(last.workdir))
    return path, config


def load(run: str | Path, *, average: bool = False, merged: bool = False) -> Trained:
    """Loads the best network of a run.

    Args:
      run: The run's work directory. A cascade stands for its last stage.
      average: Whether to take the average at the end of the run (``--average``)
        instead.
      merged: Whether to take what ``python -m training merge`` has made instead.

    Raises:
      UserError: If the directory does not hold a run with saved variables.
    """
    path, config = find_run(run)
    if average and merged:
        raise RunError("the average and the merged variables are two: choose one")
    kept, missing = path / File.BEST, ""
    if average:
        kept = path / File.AVERAGE
        missing = "average: only a finished run whose --average has begun has one"
    elif merged:
        kept = path / File.MERGED
        missing = "merged variables: python -m training merge makes them"
    if missing and not kept.is_file():
        raise RunError(f"{path} holds no {missing}")
    variables, notes = read(kept)
    workdir.refuse_other_run(kept, notes, config_lib.signature(config))
    facts = records.read_facts(path / File.DATASET)
    if notes.get("data", facts) != facts:
        raise RunError(
            f"{path / File.DATASET} is damaged (it is not what {kept.name} was "
            f"trained with)"
        )
    trained = Trained(
        networks.make_network(config, facts["num_classes"], axis_name=None),
        variables,
        config,
        mean=np.array(facts["mean"], np.float32),
        std=np.array(facts["std"], np.float32),
        image_shape=tuple(facts["image_shape"]),
        label_names=tuple(facts["label_names"]),
        facts=facts,
    )
    try:
        trained.check()
    except (ValueError, TypeError, FlaxError) as error:
        raise RunError(
            f"{kept} does not fit {File.CONFIG} and "
            f"{File.DATASET}: one of them was changed"
        ) from error
    return trained
