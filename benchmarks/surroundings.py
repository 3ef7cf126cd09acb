"""What surrounds a network's step costs: optimizer, window, metrics, gate and records.

    python -m benchmarks.surroundings

The papers' ResNet-18. The peer is the least that trains it: one compiled function of
a batch that is ready on the device, forward, backward, running statistics and
``optax.sgd``. Beside it, in turn: the training step as ``train.py`` compiles it
(gathers and normalises its batch, takes accuracy and norms, leaves out what is not
finite), the same with prediction, and with prediction inside the whole loop, with
records, TensorBoard and the lines that a file would get. Evaluation and checkpoints
are left out.
"""

import contextlib
import dataclasses
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Column, Table

from benchmarks import measure
from training import data, networks, optimizers, parallel, records
from training.config import Config
from training.display import Display, epoch_line
from training.loop import Loop
from training.session import Session
from training.step import make_initial_state

BARE = "bare step"
_ARMS = {
    "train.py's step, sgd": "sgd",
    "train.py's step, plp": "plp",
    "train.py's loop, plp, with records": "plp",
}


def make_bare(config: Config, dataset: data.Dataset, steps: int) -> Callable[[], Any]:
    """A function that takes steps with nothing around them; it returns the loss."""
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    part = slice(config.batch_size)
    dtype = networks.DTYPES[config.precision]
    pixels = jnp.asarray(dataset.train.images[part])
    images = data.normalize(pixels, dataset.mean, dataset.std, dtype)
    labels = jnp.asarray(dataset.train.labels[part])
    tx = optax.chain(
        optax.add_decayed_weights(measure.OPTIMIZER["weight_decay"]),
        optax.sgd(measure.OPTIMIZER["learning_rate"], measure.OPTIMIZER["momentum"]),
    )
    start = make_initial_state(module, tx, images.shape[1:], dtype)(jax.random.key(0))

    def step(params: Any, statistics: Any, opt_state: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            logits, changed = module.apply(
                {"params": params, "batch_stats": statistics},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), changed["batch_stats"]

        (loss, changed), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return loss, optax.apply_updates(params, updates), changed, opt_state

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    carry = [start.params, start.batch_stats, start.opt_state]

    def run() -> Any:
        for _ in range(steps):
            loss, *carry[:] = compiled(*carry)
        return loss

    return run


def make_recorded(
    config: Config, dataset: data.Dataset, stack: contextlib.ExitStack
) -> Callable[[], Any]:
    """A function that trains an epoch as ``train.py`` does; ``stack`` ends the run."""
    workdir = stack.enter_context(tempfile.TemporaryDirectory())
    fields = {**vars(config), "workdir": str(Path(workdir, "run"))}
    never = {"checkpoint_epochs": 0, "checkpoint_minutes": 1e6}
    config = Config(**{**fields, **never})
    steps = len(dataset.train.labels) // config.batch_size
    schedule = optimizers.make_schedule(
        config, steps_per_epoch=steps, total_steps=steps
    )
    tx = optimizers.make_optimizer(config, schedule, steps_per_epoch=steps)
    module = networks.make_network(config, dataset.num_classes, axis_name=parallel.AXIS)
    dataset = dataclasses.replace(dataset, test=dataset.train)  # to compile with
    loop = Loop(config, dataset, module, tx, networks.DTYPES[config.precision])
    loop.start(0)
    loop.compile()
    directory = stack.enter_context(records.Run(config))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    session = Session(config, directory, loop, dataset)
    epochs = config.epochs
    assert epochs is not None  # a configuration is complete
    display = stack.enter_context(Display(epochs * steps, 0, config.batch_size))

    def run() -> None:
        epoch = session.progress.epoch + 1
        trained = loop.train_epoch(
            session.progress,
            lambda metrics, count: display.advance(epoch, metrics, count),
            pauses=session.pauses,
            save=lambda: None,
        )
        metrics = {
            "epoch": epoch,
            "step": int(loop.state.step),
            "train_loss": trained["loss"],
            "train_accuracy": trained["accuracy"],
            "validation_loss": trained["loss"],
            "validation_accuracy": trained["accuracy"],
            "parameter_norm": loop.parameter_norm(),
            "images_per_second": trained["images_per_second"],
        }
        is_best, _ = session.end_epoch(metrics)
        display.line(epoch_line(metrics, epochs, is_best))

    return run


def run(
    width: int, batch_size: int, steps: int, rounds: int, model: str = "resnet18"
) -> dict[str, Any]:
    """Measures all arms; returns what the record holds.

    Args:
      width: Channels of the network's first stage.
      batch_size: Images in a step.
      steps: Steps of an arm in a round; those of an epoch of the recorded arm.
      rounds: Timed rounds.
      model: The network.
    """
    dataset = measure.synthetic(steps * batch_size)
    configs = {
        method: measure.training_config(
            model=model,
            width=width,
            batch_size=batch_size,
            method=method,
            epochs=rounds + 1,
        )
        for method in ("sgd", "plp")
    }
    with contextlib.ExitStack() as stack:
        *stepping, recorded = _ARMS
        arms = {
            BARE: make_bare(configs["sgd"], dataset, steps),
            **{
                name: measure.Training(configs[_ARMS[name]], dataset).run
                for name in stepping
            },
            recorded: make_recorded(configs[_ARMS[recorded]], dataset, stack),
        }
        seconds = measure.alternate(arms, rounds=rounds)
    return {
        "network": model,
        "width": width,
        "batch_size": batch_size,
        "steps": steps,
        "rounds": rounds,
        "arms": {
            name: {
                "milliseconds": 1e3 * float(np.median(values)) / steps,
                "time_ratio": measure.ratio(seconds, name, BARE),
                "best_ratio": float(values.min() / seconds[BARE].min()),
            }
            for name, values in seconds.items()
        },
    }


def table(record: dict[str, Any]) -> Table:
    """The record as a table."""
    result = Table(
        Column("arm", no_wrap=True),
        "a step (ms)",
        f"/ {BARE}'s",
        "at best",
        title=f"{record['network']}, width {record['width']}, batch "
        f"{record['batch_size']}, {record['rounds']} rounds of {record['steps']} "
        f"steps: median (quartiles), and best against best",
    )
    for name, arm in record["arms"].items():
        result.add_row(
            name,
            f"{arm['milliseconds']:.0f}",
            measure.tell(arm["time_ratio"], ".3f"),
            f"{arm['best_ratio']:.3f}",
        )
    return result


def main() -> None:
    """Runs the benchmark, prints its table and writes its record."""
    fast = measure.on_accelerator()
    parser = measure.parser(__doc__, rounds=20)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128 if fast else 32)
    parser.add_argument("--steps", type=int, default=50 if fast else 2)
    options = parser.parse_args()
    record = run(options.width, options.batch_size, options.steps, options.rounds)
    Console(width=130).print(table(record))
    print("record:", measure.write_record("surroundings", record, options.out))


if __name__ == "__main__":
    main()
