"""Devices and processes: the only module that maps a step over devices.

A step is a plain per-device function that averages over ``AXIS``. Here it is mapped
over all devices of all processes, with ``jax.pmap``.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training.errors import ConfigError, RunError, UserError
from training.settings.config import Config

AXIS = "batch"

# Devices of a CPU, and the fewest examples that each computes at a time: on two cores
# four devices are quicker than two, and with fewer examples `tiny` is slower.
_CPU_DEVICES, _CPU_EXAMPLES = (4, 2), 16

# Compilation leaves Python free, and part of it keeps one core only.
_COMPILER = ThreadPoolExecutor(thread_name_prefix="compiler")

_JOIN_SECONDS = 120  # for all processes to start
_HEARTBEAT_SECONDS = 30  # without a sign of life, until a process counts as lost


def split_cpu(config: Config) -> None:
    """Makes several devices of a CPU with several cores, before JAX uses it.

    XLA's convolutions are quicker on small batches, and each device keeps a core busy.
    Nothing changes for small batches and those that do not split evenly, for several
    hosts, and where the number of devices is set.
    """

    def fits(devices: int) -> bool:
        pieces = devices * config.batch_parts
        size = config.batch_size
        return size % pieces == 0 and size >= _CPU_EXAMPLES * pieces

    count = next(filter(fits, _CPU_DEVICES), None)
    is_set = (
        jax.config.jax_num_cpu_devices != -1  # type: ignore[attr-defined]
        or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or config.distributed
        or config.coordinator_address
    )
    if count and not is_set and cores() > 1:
        with contextlib.suppress(RuntimeError):  # JAX has been used in this process
            jax.config.update("jax_num_cpu_devices", count)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compile_step(
    step: Callable[..., Any], *arguments: Any, donate: bool = False
) -> Future[Callable[..., Any]]:
    """Maps a step over the devices and compiles it for arguments like the given ones.

    It is traced at once, and compiled in a thread while the next one is traced.
    The last argument is a batch, a tree of arrays with a leading axis over the devices
    (:func:`shard`). The others are the same on all devices and come from
    :func:`replicate`. Every output must be the same on all devices, that is, averaged
    or summed over ``AXIS``; this is not checked.
    With ``donate`` a call may reuse the memory of its first argument.
    """
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(*(None,) * (len(arguments) - 1), 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
    )
    if jax.process_count() > 1:
        # Functions compiled ahead of time refuse the arrays of a single process, so a
        # first call compiles.
        first, *others = arguments
        jax.block_until_ready(mapped(jax.tree.map(jnp.copy, first), *others))
        done: Future[Callable[..., Any]] = Future()
        done.set_result(mapped)
        return done
    return _COMPILER.submit(mapped.lower(*arguments).compile)


def replicated() -> NamedSharding:
    """The sharding of arrays that are the same on every local device."""
    # The one that pmap returns for out_axes=None; with another one the second call of a
    # step would compile again.
    return NamedSharding(_mesh(), PartitionSpec())


def replicate(tree: Any) -> Any:
    """Puts a tree on every local device."""
    return jax.device_put(tree, replicated())


def can_pin() -> bool:
    """Whether page-locked host memory is of use: not on a CPU, which sends nothing."""
    kinds = {memory.kind for memory in jax.local_devices()[0].addressable_memories()}
    return jax.default_backend() != "cpu" and "pinned_host" in kinds


def send(tree: Any, *, pin: bool = False) -> Any:
    """Sends arrays ``[devices, ...]`` from the host, one part to each device.

    With ``pin`` by way of page-locked host memory, from which a transfer overlaps with
    the computation.
    """
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))
    if pin:
        tree = jax.device_put(tree, sharding.with_memory_kind("pinned_host"))
    return jax.device_put(tree, sharding)


def shard(tree: Any) -> Any:
    """Splits leading axes over all devices, and returns the part of the local ones.

    ``[n, ...]`` becomes ``[local devices, n / devices, ...]``.
    """
    parts = jax.process_count(), jax.local_device_count()

    def own(x: np.ndarray) -> np.ndarray:
        split = x.reshape(*parts, x.shape[0] // math.prod(parts), *x.shape[1:])
        return split[jax.process_index()]

    return jax.tree.map(own, tree)


def check_batch_size(batch_size: int, parts: int = 1) -> None:
    """Raises unless the batch splits evenly over devices, and over parts on each.

    Raises:
      ConfigError: With the nearest batch sizes that do.
    """
    devices = jax.device_count()
    pieces = devices * parts
    if batch_size % pieces:
        below = batch_size // pieces * pieces
        nearest = f"{below} or {below + pieces}" if below else f"{pieces}"
        times = f" times --batch-parts {parts}" if parts > 1 else ""
        raise ConfigError(
            f"--batch-size {batch_size} cannot be split evenly over {devices} "
            f"devices{times}: choose {nearest}"
        )


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def device_index() -> jax.Array:
    """Inside a step: the index of this device, from 0."""
    return jax.lax.axis_index(AXIS)


def join(config: Config) -> None:
    """Joins the other processes of a run on several hosts, if there are any.

    Raises:
      RunError: If they are not found.
    """
    if not (config.distributed or config.coordinator_address):
        return
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            initialization_timeout=_JOIN_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(
            f"the processes of the run did not find each other ({reason}): give "
            f"--coordinator-address, --num-processes and --process-id to each"
        ) from error


def is_coordinator() -> bool:
    """Whether this process writes the records."""
    return jax.process_index() == 0


def maximum(number: int) -> int:
    """The largest of the processes' numbers. All processes must call it."""
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def from_coordinator(make: Callable[[], Any]) -> Any:
    """Returns to all processes the JSON value that the coordinator makes.

    All must call it.

    Raises:
      RunError: In all processes, with the message of a UserError that ``make`` raised.
    """
    if jax.process_count() == 1:
        return make()
    answer, error = b"", None
    if is_coordinator():
        try:
            answer = json.dumps({"value": make()}).encode()
        except UserError as raised:
            error = raised
            answer = json.dumps({"error": str(raised)}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(answer))))
    padded = np.zeros(size, np.uint8)
    padded[: len(answer)] = np.frombuffer(answer, np.uint8)
    received = json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())
    if "error" in received:
        raise RunError(received["error"]) from error
    return received["value"]
