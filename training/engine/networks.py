"""From a configuration to a network."""

import jax.numpy as jnp

import models
from training.settings.config import Config

# Types of the network's arithmetic; its parameters are at least float32.
DTYPES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
    "float64": jnp.float64,
}


def make_network(
    config: Config, num_classes: int, *, axis_name: str | None
) -> models.Network:
    """Returns the network; ``axis_name`` is the axis that batch statistics share."""
    network = models.create(
        config.model,
        num_classes,
        stem=config.stem,
        head=config.head,
        width=config.width,
        dtype=DTYPES[config.precision],
        axis_name=axis_name,
    )
    if config.dropout is None:
        return network
    return network.clone(dropout_rate=config.dropout)
