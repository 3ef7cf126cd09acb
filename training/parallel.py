"""The one place where a step meets the devices.

A step is a plain per-device function that averages over ``AXIS``; here it is mapped
over all local devices. ``jax.pmap`` is used nowhere else, so that another way of
mapping needs no change elsewhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.errors import ConfigError

AXIS = "batch"


def compile_step(
    step: Callable[..., Any], *arguments: Any, donate: bool = False
) -> Callable[..., Any]:
    """Maps a step over the devices and compiles it for arguments like the given ones.

    The last argument is a batch, a tree of arrays with a leading axis over the devices
    (:func:`shard`). The others are the same on all devices and come from
    :func:`replicate`. So must be every output, that is, averaged or summed over
    ``AXIS``: this is not checked.

    Args:
      step: A function of one device's view.
      *arguments: Arguments of the shapes, dtypes and shardings to come.
      donate: Whether a call may reuse the memory of its first argument.
    """
    replicated = len(arguments) - 1
    mapped: Any = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(*(None,) * replicated, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
    )
    return mapped.lower(*arguments).compile()


def replicated() -> NamedSharding:
    """The sharding of what is the same on every local device."""
    # That which pmap returns for out_axes=None: with another one the second call of a
    # step would compile again.
    return NamedSharding(_mesh(), PartitionSpec())


def replicate(tree: Any) -> Any:
    """Puts a tree on every local device."""
    return jax.device_put(tree, replicated())


def send(tree: Any) -> Any:
    """Sends arrays [devices, ...] from the host, a part to each device."""
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    kinds = {m.kind for m in jax.local_devices()[0].addressable_memories()}
    if jax.default_backend() != "cpu" and "pinned_host" in kinds:
        # From pinned memory a transfer runs beside the computation.
        tree = jax.device_put(tree, sharding.with_memory_kind("pinned_host"))
    return jax.device_put(tree, sharding)


def shard(tree: Any) -> Any:
    """Splits leading axes over the devices: [n, ...] to [devices, n/devices, ...]."""
    devices = jax.local_device_count()
    return jax.tree.map(
        lambda x: x.reshape(devices, x.shape[0] // devices, *x.shape[1:]), tree
    )


def check_batch_size(batch_size: int, accumulate: int = 1) -> None:
    """Raises unless the devices, and parts on each, divide the batch.

    Raises:
      ConfigError: With the nearest batch sizes that would do.
    """
    devices = jax.local_device_count()
    parts = devices * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        nearest = f"{below} or {below + parts}" if below else f"{parts}"
        times = f" times --accumulate {accumulate}" if accumulate > 1 else ""
        raise ConfigError(
            f"--batch-size {batch_size} cannot be split evenly over {devices} "
            f"devices{times}: take {nearest}"
        )


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def device_index() -> jax.Array:
    """Inside a step: the position of this device, 0 to the number of devices - 1."""
    return jax.lax.axis_index(AXIS)
