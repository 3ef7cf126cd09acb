"""Where the time of a training step goes, in JAX and in PyTorch.

    python -m benchmarks.time_share

Both train ResNet-18 as in ``benchmarks.throughput``, PyTorch eager. Each part of the
step is also timed alone, in the same rounds: all convolutions of the network forward,
their gradients by the input and by the filter, all normalisations forward and backward,
and the optimizer's update. In JAX a part is a program of its own, on the devices of the
step. The rest is the step's time less these: activations, loss, input, waits, and what
the parts take more or less inside the step than alone. A profile would not do for JAX:
on a CPU convolutions end after their entry in the trace.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure, throughput
from benchmarks.tables import REST, STEP, STEP_PARTS, rest_of_step
from training import recipe
from training.engine import networks, parallel
from training.engine.optimizer import make_optimizer
from training.run import style
from training.settings.config import Config

FORWARD, INPUT, FILTER, NORM, UPDATE = STEP_PARTS
COLORS = (
    *(style.ORANGE, style.GREEN, style.VERMILION, style.PURPLE),
    *(style.GREY, style.PALE),
)


class Layer(NamedTuple):
    """A layer that is applied alone.

    Attributes:
      module: The Flax module.
      variables: Its variables.
      x: Its inputs for a batch, ``[devices, images of a device, ...]``.
      y: Its outputs, of the same leading axes.
    """

    module: Any
    variables: Any
    x: Any
    y: Any


def run(
    model: str = "resnet18",
    width: Sequence[int] = (16, 64),
    batch_size: int = 128,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measures each width; takes the flags, returns the figures."""
    if jax.default_backend() != "cpu":
        raise SystemExit("time_share compares steps on a CPU: set JAX_PLATFORMS=cpu")
    if absent := throughput.why_no_torch():
        raise SystemExit(f"time_share: {absent}")
    torch = importlib.import_module("benchmarks.torch_networks")
    settings, cells = torch.set_up(parallel.cores()), []
    for channels in width:
        config = measure.training_config(
            model=model, width=channels, batch_size=batch_size
        )
        dataset = measure.synthetic(batch_size)
        theirs = torch.TorchTraining(config, dataset, device="cpu", compiled=False)
        theirs.run()  # which gives it gradients
        ours = measure.Training(config, dataset)
        their_parts = dict(zip(STEP_PARTS, torch.make_parts(theirs), strict=True))
        libraries = {
            "JAX": {STEP: ours.run, **make_parts(config)},
            "PyTorch": {STEP: theirs.run, **their_parts},
        }
        seconds = measure.alternate(
            {
                f"{library}, {part}": arm
                for library, arms in libraries.items()
                for part, arm in arms.items()
            },
            rounds=rounds,
        )
        for library, arms in libraries.items():
            own = {part: seconds[f"{library}, {part}"] for part in arms}
            cells.append(
                {
                    "width": channels,
                    "library": library,
                    # The best rounds: on a shared machine medians do not add up.
                    "milliseconds": {p: 1e3 * float(s.min()) for p, s in own.items()},
                    "median_milliseconds": {
                        p: 1e3 * float(np.median(s)) for p, s in own.items()
                    },
                }
            )
    return {"torch": settings, "cells": cells}


def make_parts(config: Config) -> dict[str, Callable[[], Any]]:
    """The parts of a step in JAX, each a compiled program of the same devices."""
    convolutions = layers_of(config, nn.Conv)
    norms = layers_of(config, nn.BatchNorm)

    def apply(layer: Layer, variables: Any, x: Any) -> Any:
        return layer.module.apply(variables, x, mutable=["batch_stats"])[0]

    def by_input(layer: Layer, variables: Any, x: Any, y: Any) -> Any:
        return jax.vjp(lambda x: apply(layer, variables, x), x)[1](y)

    def by_filter(layer: Layer, variables: Any, x: Any, y: Any) -> Any:
        return jax.vjp(lambda v: apply(layer, v, x), variables)[1](y)

    def both_ways(layer: Layer, variables: Any, x: Any, y: Any) -> Any:
        z, pull = jax.vjp(lambda v, x: apply(layer, v, x), variables, x)
        return z, pull(y)

    return {
        FORWARD: _program(lambda layer, v, x, _: apply(layer, v, x), convolutions),
        # The images need no gradient.
        INPUT: _program(by_input, convolutions[1:]),
        FILTER: _program(by_filter, convolutions),
        NORM: _program(both_ways, norms),
        UPDATE: _update(config),
    }


def layers_of(config: Config, kind: type[nn.Module]) -> list[Layer]:
    """All layers of a kind in a network in training, with random numbers."""
    devices = jax.local_device_count()
    network: Any = networks.make_network(config, 100, axis_name=None)
    rng = np.random.default_rng(0)
    found = []

    def random(like: Any) -> np.ndarray:
        return rng.standard_normal(like.shape).astype(like.dtype)

    def see(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        y = call(*args, **kwargs)
        if isinstance(context.module, kind):
            variables = context.module.variables
            found.append((context.module.clone(parent=None), variables, args[0], y))
        return y

    def forward(images: jax.Array) -> None:
        with nn.intercept_methods(see):
            variables = network.init(jax.random.key(0), images, train=False)
            found.clear()
            network.apply(variables, images, train=True, mutable=["batch_stats"])

    shape = (config.batch_size // devices, 32, 32, 3)
    jax.eval_shape(forward, jax.ShapeDtypeStruct(shape, jnp.float32))
    layers = []
    for module, variables, x, y in found:
        if kind is nn.BatchNorm:
            module = module.clone(axis_name=parallel.AXIS)
        batch = (np.stack([random(value)] * devices) for value in (x, y))
        layers.append(Layer(module, jax.tree.map(random, variables), *batch))
    return layers


def _program(part: Callable[..., Any], layers: list[Layer]) -> Callable[[], Any]:
    """A function that does a part of the step for all layers, and waits for it."""

    def step(variables: Any, batch: Any) -> Any:
        results = [
            part(layer, v, x, y)
            for layer, v, (x, y) in zip(layers, variables, batch, strict=True)
        ]
        # Everything is computed; one number of each result leaves the program.
        leaves = jax.tree.leaves(jax.lax.optimization_barrier(results))
        return jax.lax.pmean(sum(x.ravel()[0] for x in leaves), parallel.AXIS)

    variables = parallel.replicate([layer.variables for layer in layers])
    batch = parallel.send([(layer.x, layer.y) for layer in layers])
    compiled = parallel.compile_step(step, variables, batch).result()
    return lambda: jax.block_until_ready(compiled(variables, batch))


def _update(config: Config) -> Callable[[], Any]:
    """A function that takes the optimizer's step, and waits for it."""
    dataset = measure.synthetic(config.batch_size)
    tx = make_optimizer(config, recipe.count_steps(config, dataset))
    init, _ = measure.make_loss(config, dataset)
    params = parallel.replicate(init()["params"])

    def step(carry: Any, gradient: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    carry = [parallel.replicate((jax.tree.map(jnp.copy, params), tx.init(params)))]
    none = parallel.send(np.zeros(jax.local_device_count()))
    compiled = parallel.compile_step(step, carry[0], params, none, donate=True).result()

    def update() -> None:
        carry[0] = jax.block_until_ready(compiled(carry[0], params, none))

    return update


def draw(path: Path, record: Mapping[str, Any]) -> None:
    """Draws the parts of each library's step, to a PNG file."""
    widths = sorted({cell["width"] for cell in record["cells"]})
    figure = style.figure(
        f"What takes the time of a training step of {record['model']}? "
        f"Batch {record['batch_size']}, {record['cores']} CPU cores",
        1.7 * len(widths) + 0.9,
    )
    for axes, width in zip(
        figure.subplots(len(widths), squeeze=False)[:, 0], widths, strict=True
    ):
        cells = [cell for cell in record["cells"] if cell["width"] == width]
        longest = max(cell["milliseconds"][STEP] for cell in cells)
        for place, cell in enumerate(cells):
            parts = {p: cell["milliseconds"][p] for p in STEP_PARTS}
            parts[REST] = max(rest_of_step(cell["milliseconds"]), 0)
            left = 0.0
            for (part, length), color in zip(parts.items(), COLORS, strict=True):
                axes.barh(place, length, 0.7, left, color=color, label=part)
                if length > 0.08 * longest:
                    text = part.replace(" ", "\n") + f"\n{length:.0f}"
                    axes.text(left + length / 2, place, text, ha="center", va="center",
                              fontsize=style.SMALL - 1)  # fmt: skip
                left += length
        axes.set_yticks(range(len(cells)), [cell["library"] for cell in cells])
        axes.invert_yaxis()
        style.dress(axes, xlabel="milliseconds", ylabel="", title=f"width {width}")
    style.legend(figure, title=f"best of {record['rounds']} rounds; parts timed alone")
    figure.savefig(path)


if __name__ == "__main__":
    measure.main("time_share", __doc__, run, split_cpu=True)
