"""From a configuration to a network."""

import contextlib

import jax
import jax.numpy as jnp

import models
from models.blocks import BlockNetwork
from models.vit import ViT
from training.settings.config import Config
from training.settings.methods import Amplify


def precision(config: Config) -> contextlib.AbstractContextManager[None]:
    """The context in which everything of a run is computed."""
    return jax.enable_x64(config.precision == "float64")


def make_network(
    config: Config, num_classes: int, *, axis_name: str | None
) -> models.Network:
    """Returns the network that a run trains.

    In a stage of a cascade it is cut after a block, and the blocks before that one are
    frozen. Batch statistics are averaged over the axis.
    """
    network = models.create(
        config.model,
        num_classes,
        stem=config.stem,
        head=config.cascade or config.head,
        width=config.width,
        dtype=jnp.dtype(config.precision),
        axis_name=axis_name,
    )
    if config.dropout is not None:
        network = network.clone(dropout_rate=config.dropout)
    amplify = config.get(Amplify)
    if isinstance(network, ViT):
        # Propagated amplification tells the blocks apart.
        is_shared = jax.default_backend() == "cpu" and not (
            amplify and amplify.propagate
        )
        network = network.clone(share_blocks=is_shared)
    if isinstance(network, BlockNetwork):
        network = network.clone(
            normalization=config.norm, kernel_init=config.kernel_init
        )
    number = config.cascade_stage
    if number is not None:
        assert isinstance(network, BlockNetwork)
        # A stage after those of the blocks trains all of them.
        if number <= len(network.blocks()):
            network = network.clone(cut=number, frozen=number - 1)
    return network
