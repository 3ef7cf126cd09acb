"""The cost of a training step on accelerators that are not attached, by their compiler.

    python -m benchmarks.ahead_of_time --topology v5e:2x2

The training step of `train.py` is compiled for the devices of a topology: with
`--platform tpu` by libtpu (`pip install "jax[tpu]"`), with `--platform cuda` by JAX's
CUDA plugin for the GPU that `--target-config` describes, with `--platform attached` for
the devices of this machine. Nothing is run. All figures are the compiler's, for one
device and one step: they are estimates, and cannot be compared with measured times.

With several topologies the batch of a device remains the same.
"""

import importlib.util
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import measure, tables
from training import data, recipe
from training.engine import parallel
from training.engine.engine import Engine
from training.errors import ConfigError, UserError
from training.run.provenance import version
from training.settings import config as config_lib
from training.settings.config import Config

METHODS = (tables.BASE, "plp", "amplify", "amplify+plp", "lookahead")
IMAGES = 40_000  # the training images of CIFAR-100 without the validation part
_HOST = (2, 2, 1)  # at most this many TPU chips share a host
_COLLECTIVE = re.compile(
    r" = (.+?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


# -- Devices ---------------------------------------------------------------------------


def make_mesh(platform: str, topology: str, target_config: str = "") -> Mesh:
    """The devices of a topology, which need not be attached, as a mesh.

    Args:
      platform: tpu, cuda, or attached for the devices of this machine.
      topology: For a TPU its kind and layout, such as v5e:4x4. For GPUs slices x hosts
        x devices, such as 1x1x8. For attached devices their number, or all.
      target_config: The file of XLA that describes the GPU.

    Raises:
      ConfigError: If there is no such topology, or no compiler for it.
    """
    match platform:
        case "tpu":
            devices = _tpu(topology)
        case "cuda":
            devices = _cuda(topology, target_config)
        case _:
            devices = _attached(topology)
    return Mesh(np.array(devices), (parallel.AXIS,))


def _tpu(topology: str) -> list[Any]:
    # Otherwise libtpu asks the cloud's metadata server about the machine, and refuses
    # to be loaded by two processes, as if they shared a TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    layout = re.fullmatch(r"\w+:(\d+)x(\d+)(?:x(\d+))?", topology)
    if layout is None:
        raise ConfigError(
            f"--topology {topology} is not a kind of TPU and a layout, such as v5e:2x2"
        )
    sizes = [int(size or 1) for size in layout.groups()]
    try:
        return topologies.get_topology_desc(
            topology_name=topology,
            platform="tpu",
            chips_per_host_bounds=tuple(map(min, sizes, _HOST)),
        ).devices
    except (jax.errors.JaxRuntimeError, RuntimeError, OSError) as error:
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(
                '--platform tpu needs libtpu: pip install "jax[tpu]"'
            ) from error
        raise ConfigError(
            f"--topology {topology} is not known to libtpu ({_sentence(error)}): "
            f"choose another one, such as v5e:2x2"
        ) from error


def _cuda(topology: str, target_config: str) -> list[Any]:
    if not re.fullmatch(r"\d+x\d+x\d+", topology):
        raise ConfigError(
            f"--topology {topology} is not slices x hosts x devices, such as 1x1x8"
        )
    try:
        description = Path(target_config).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--platform cuda needs the description of a GPU, and --target-config "
            f"{target_config or 'was not given'}: take one of XLA's "
            f"xla/backends/gpu/target_config/specs, such as h100_sxm.txtpb"
        ) from error
    try:
        return topologies.get_topology_desc(
            topology_name="gpu",
            platform="cuda",
            target_config=description,
            topology=topology,
        ).devices
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise ConfigError(
            f"the GPU of {target_config} cannot be compiled for ({_sentence(error)}): "
            f'pip install "jax[cuda12]", and take the file of its version of XLA or '
            f"delete the fields that it names above"
        ) from error


def _attached(topology: str) -> list[Any]:
    devices = jax.devices()
    numbers = {"all": len(devices)} | {str(n + 1): n + 1 for n in range(len(devices))}
    if topology not in numbers:
        raise ConfigError(
            f"--topology {topology} is neither all nor a number of devices from 1 to "
            f"{len(devices)}"
        )
    return devices[: numbers[topology]]


# -- Compiling -------------------------------------------------------------------------


def make_config(**fields: Any) -> Config:
    """A training of CIFAR-100 as `train.py` does it, except for ``fields``.

    Without an average, which would take the memory of one more copy of the parameters.
    """
    return config_lib.resolve({"dataset": "cifar100", "average": "none", **fields})


def make_arguments(
    engine: Engine,
    config: Config,
    dataset: data.Dataset,
    mesh: Mesh,
    resident: int | None = None,
) -> tuple[Any, ...]:
    """Shapes and shardings of what the training function takes on the mesh.

    Args:
      engine: Made from configuration and data.
      config: The configuration.
      dataset: The data.
      mesh: The devices.
      resident: How many images are resident; by default those of the data.
    """

    def shaped(spec: PartitionSpec, *shape: int, like: Any) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)

    same, split = PartitionSpec(), PartitionSpec(parallel.AXIS)
    state = jax.tree.map(
        lambda x: shaped(same, *x.shape, like=x), engine.initial_state(0)
    )
    images, labels = dataset.train
    if config.input == "host":
        lead = mesh.size, config.batch_size // mesh.size
        batch = (shaped(split, *lead, *x.shape[1:], like=x) for x in dataset.train)
        return state, data.Examples(*batch)
    count = resident or len(images)
    rows = shaped(same, count, math.prod(images.shape[1:]), like=images)
    order = shaped(same, count, like=labels)
    span = shaped(split, mesh.size, 2, like=labels)
    return state, (data.Examples(rows, order), order), span


def map_over_mesh(step: Callable[..., Any], arguments: int, mesh: Mesh) -> Any:
    """Maps a training step over devices, which need not be attached.

    By ``shard_map``, with the results of the program's ``pmap``
    (:func:`training.engine.parallel.compile_step`).
    """

    def step_of_slice(*arguments: Any) -> Any:
        *same, batch = arguments
        return step(*same, jax.tree.map(lambda x: x[0], batch))

    # With check_vma a gradient would be summed over the devices before the step
    # averages it.
    return jax.shard_map(
        step_of_slice,
        mesh=mesh,
        in_specs=(*(PartitionSpec(),) * (arguments - 1), PartitionSpec(parallel.AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )


def lower_step(
    mesh: Mesh, config: Config, dataset: data.Dataset, resident: int | None = None
) -> tuple[Any, Any]:
    """Lowers a configuration's training step for a mesh; see :func:`make_arguments`.

    Returns:
      Shapes of the training state, and the step, which can be compiled.
    """
    engine = recipe.assemble(config, dataset)
    state, *others = make_arguments(engine, config, dataset, mesh, resident)
    mapped = map_over_mesh(engine.train_function, 1 + len(others), mesh)
    return state, jax.jit(mapped, donate_argnums=0).lower(state, *others)


def describe(state: Any, compiled: Any) -> dict[str, Any]:
    """The compiler's figures for a training step, on one device."""
    memory = compiled.memory_analysis()
    # The GPU's compiler gives none.
    costs = compiled.cost_analysis() or {}
    count, size = count_collectives(compiled.as_text())
    optimal = costs.get("optimal_seconds", 0.0)
    return {
        "parameter_bytes": _bytes(state.params),
        "state_bytes": _bytes(state),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        "operations": costs.get("flops"),
        "accessed_bytes": costs.get("bytes accessed"),
        # Negative where libtpu cannot estimate some of the operations.
        "optimal_seconds": optimal if optimal > 0 else None,
        "collectives": count,
        "collective_bytes": size,
    }


def count_collectives(hlo: str) -> tuple[int, int]:
    """Number of the collective operations of a compiled program, and their bytes."""
    found = _COLLECTIVE.findall(hlo)
    return len(found), sum(
        int(bits or 8) // 8 * math.prod(int(n) for n in sizes.split(",") if n)
        for shapes in found
        for bits, sizes in _ARRAY.findall(shapes)
    )


# -- The command -----------------------------------------------------------------------


def run(
    platform: str = "tpu",
    topology: Sequence[str] = ("v5e:2x2",),
    target_config: str = "",
    model: Sequence[str] = ("resnet18",),
    width: int = 64,
    methods: Sequence[str] = METHODS,
    precision: Sequence[str] = ("bfloat16",),
    input: Sequence[str] = ("resident",),
    device_batch: int = 128,
    steps_per_call: int = 10,
    images: Sequence[int] = (IMAGES,),
) -> dict[str, Any]:
    """Compiles all combinations; takes the flags, returns the figures.

    Raises:
      UserError: If there is no such topology, or no compiler for it.
    """
    if platform != "attached":
        # Only tracing needs a device, and any will do.
        jax.config.update("jax_platforms", "cpu")
    meshes = {name: make_mesh(platform, name, target_config) for name in topology}
    dataset = measure.synthetic(IMAGES)
    cells = []
    for name, count, *choice in itertools.product(
        topology, images, model, precision, input, methods
    ):
        fields = dict(
            zip(("model", "precision", "input", "method"), choice, strict=True)
        )
        mesh = meshes[name]
        config = make_config(
            width=width,
            batch_size=device_batch * mesh.size,
            steps_per_call=steps_per_call if fields["input"] == "resident" else None,
            **fields,
        )
        cell = {"topology": name, "devices": mesh.size, "images": count, **fields}
        cell["device_kind"] = mesh.devices.flat[0].device_kind
        print(*cell.values(), sep=", ", file=sys.stderr, flush=True)
        try:
            state, lowered = lower_step(mesh, config, dataset, count)
            start = time.perf_counter()
            compiled = lowered.compile()
            cell["compile_seconds"] = time.perf_counter() - start
            cell |= describe(state, compiled)
        except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
            cell["failed"] = _sentence(error)
            print(f"does not compile: {cell['failed']}", file=sys.stderr)
        cells.append(cell)
    return {
        "kind": "estimates of the compiler; nothing was run",
        "libtpu": version("libtpu"),
        "cuda_plugin": version("jax-cuda12-plugin"),
        "cells": cells,
    }


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    options = vars(measure.parser(__doc__, run).parse_args(argv))
    out = options.pop("out")
    out = out or tables.RECORDS / f"ahead_of_time-{options['platform']}.json"
    try:
        record = {**options, **run(**options)}
    except UserError as error:
        print(f"ahead_of_time: {error}", file=sys.stderr)
        return 2
    measure.report("ahead_of_time", record, out)
    return int(any("failed" in cell for cell in record["cells"]))


if __name__ == "__main__":
    sys.exit(main())
