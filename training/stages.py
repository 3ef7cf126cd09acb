"""The stages of a cascade: which blocks are trained, with which head, and how long.

In deep cascade learning (Marquez, Hare and Niranjan, IEEE TNNLS 29(11), 2018) a stage
trains one block of a network, with a new head and with the blocks before it frozen.
Each stage is a run of its own, in a directory of the cascade's work directory.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from models import Network
from models.cascade import StageNetwork
from training import data
from training.engine import networks
from training.engine.state import Given
from training.errors import ConfigError
from training.run import workdir
from training.settings.config import Config

_TRAINED, _FROZEN = "trained", "frozen"
_BATCH = 256


class Stage(NamedTuple):
    """A stage of a cascade.

    Attributes:
      number: Its place, from 1.
      block: The name of the block that it trains; "all" if it trains all.
      start: The index of the first block that is trained. Those before are frozen.
      stop: The index after the last one.
      has_new_head: Whether its head is drawn, and not that of the stage before.
      epochs: Passes over the training set.
    """

    number: int
    block: str
    start: int
    stop: int
    has_new_head: bool
    epochs: int

    def configure(self, config: Config) -> Config:
        """The configuration of its run, from that of the cascade."""
        assert config.workdir is not None
        return dataclasses.replace(
            config,
            cascade_stage=self.number,
            epochs=self.epochs,
            workdir=str(Path(config.workdir, workdir.STAGES, f"{self.number:02d}")),
            overwrite=False,
            resume="auto",
        )


def make_stages(config: Config) -> tuple[Stage, ...]:
    """The stages of a cascade, in order."""
    c: Any = config
    # The number of classes does not matter here.
    blocks = networks.make_network(config, 1, axis_name=None).blocks()
    end = len(blocks)
    stages = [
        Stage(
            i + 1, block, i, i + 1, True, c.cascade_epochs + i * c.cascade_extra_epochs
        )
        for i, block in enumerate(blocks)
    ]
    if c.cascade_finetune:
        stages.append(Stage(end + 1, "all", 0, end, False, c.cascade_finetune))
    return tuple(stages)


def last_run(config: Config) -> Path:
    """The work directory of a cascade's last stage."""
    return Path(str(make_stages(config)[-1].configure(config).workdir))


def make_network(
    config: Config, num_classes: int, *, axis_name: str | None
) -> nn.Module:
    """The network that a run trains: of a stage, its blocks and its head.

    See :func:`training.engine.networks.make_network`.
    """
    network = networks.make_network(config, num_classes, axis_name=axis_name)
    if config.cascade_stage is None:
        return network
    assert config.cascade is not None
    stage = make_stages(config)[config.cascade_stage - 1]
    return StageNetwork(network, stage.start, stage.stop, config.cascade)


class Trained:
    """The parameters that a run trains, of all that its network has.

    Args:
      module: The network. It trains all parameters unless it is a stage's.
      image_shape: Height, width and channels.
    """

    def __init__(self, module: nn.Module, image_shape: tuple[int, ...]) -> None:
        self._frozen: frozenset[Any] = frozenset()
        if isinstance(module, StageNetwork) and module.start:
            params = _blocks_before(module, image_shape)["params"]
            self._frozen = frozenset(traverse_util.flatten_dict(params))

    def __call__(self, params: Any) -> Any:
        """The same tree without the frozen leaves, which become empty nodes."""
        if not self._frozen:
            return params
        labels = self._labels(params)
        return jax.tree.map(
            lambda label, x: x if label == _TRAINED else optax.MaskedNode(),
            labels,
            params,
        )

    def only(
        self, tx: optax.GradientTransformationExtraArgs
    ) -> optax.GradientTransformationExtraArgs:
        """An optimizer that sees the trained parameters only, and moves no others."""
        if not self._frozen:
            return tx
        parts: dict[Any, Any] = {_TRAINED: tx, _FROZEN: optax.set_to_zero()}
        return optax.partition(parts, self._labels)

    def _labels(self, params: Any) -> Any:
        flat = traverse_util.flatten_dict(params)
        labels = {p: _FROZEN if p in self._frozen else _TRAINED for p in flat}
        return traverse_util.unflatten_dict(labels)


def _blocks_before(module: StageNetwork, image_shape: tuple[int, ...]) -> Any:
    """The variables of the frozen blocks, as shapes."""
    network: Network = module.network
    images = jnp.zeros((1, *image_shape), network.dtype)
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), images, train=False, stop=module.start)
    )


def has_cache(config: Config) -> bool:
    """Whether a run trains on what frozen blocks make of the images, computed once."""
    if not config.cascade_cache or config.cascade_stage is None:
        return False
    return make_stages(config)[config.cascade_stage - 1].start > 0


def frozen_outputs(
    config: Config, dataset: data.Dataset, given: Given | None
) -> data.Examples:
    """What a stage's frozen blocks make of the training images, with their labels.

    Args:
      config: The configuration of the stage's run.
      dataset: The data.
      given: The variables that the stage starts from.

    Raises:
      ConfigError: If it does not fit in the memory.
    """
    module = make_network(config, dataset.num_classes, axis_name=None)
    variables = traverse_util.unflatten_dict(given or {}, sep="/")
    dtype = networks.DTYPES[config.precision]
    images, labels = dataset.train

    @jax.jit
    def run(images: jax.Array) -> Any:
        pixels = data.normalize(images, dataset.mean, dataset.std, dtype)
        return module.apply(variables, pixels, method="frozen")

    one = jax.eval_shape(run, images[:1])
    gib = len(images) * one.size * one.dtype.itemsize / 2**30
    if gib > (limit := _memory_gib()):
        raise ConfigError(
            f"--cascade-cache needs {gib:.3g} GiB in stage {config.cascade_stage}, and "
            f"there are {limit:.3g}: leave it out"
        )
    batches = range(0, len(images), _BATCH)
    parts = [np.asarray(run(images[start : start + _BATCH])) for start in batches]
    return data.Examples(np.concatenate(parts), labels)


def _memory_gib() -> float:
    """The memory of a device, or of this machine if that is not known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", pages) / 2**30


def handed_on(variables: Any, stage: Stage) -> Given:
    """What a stage starts from, of the variables of the one before."""
    flat = traverse_util.flatten_dict(variables, sep="/")
    is_head = re.compile(r"\w+/head/").match
    return {p: x for p, x in flat.items() if not (stage.has_new_head and is_head(p))}
