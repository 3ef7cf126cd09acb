"""What the trainer adds to a bare training step.

    python -m benchmarks.trainer_overhead

On the papers' ResNet-18. The peer is one compiled function of a batch that is ready on
the device: forward and backward pass, running statistics and ``optax.sgd``. The arms
alternate: the training step of ``train.py`` (gathers and normalises its batch, computes
accuracy and norms, skips what is not finite); the same with prediction; and with
prediction inside the session, with records, TensorBoard and the lines on the screen.
Evaluation and checkpoints are left out.
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
from training import data, networks, recipe
from training.callbacks import Callback
from training.config import Config
from training.session import Session
from training.state import make_initial_state
from training.workdir import WorkDirectory

BARE = "bare step"
_ARMS = {
    "step, sgd": "sgd",
    "step, plp": "plp",
    "session, plp, with records": "plp",
}


def make_bare(config: Config, dataset: data.Dataset, steps: int) -> Callable[[], Any]:
    """Returns a function that takes bare steps; it returns the loss."""
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    batch = slice(config.batch_size)
    dtype = networks.DTYPES[config.precision]
    pixels = jnp.asarray(dataset.train.images[batch])
    images = data.normalize(pixels, dataset.mean, dataset.std, dtype)
    labels = jnp.asarray(dataset.train.labels[batch])
    tx = optax.chain(
        optax.add_decayed_weights(measure.OPTIMIZER["weight_decay"]),
        optax.sgd(measure.OPTIMIZER["learning_rate"], measure.OPTIMIZER["momentum"]),
    )
    start = make_initial_state(module, tx, images.shape[1:], dtype)(jax.random.key(0))

    def step(params: Any, batch_stats: Any, opt_state: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            return measure.training_loss(module, variables, images, labels)

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
    """Returns a function that trains and records an epoch; ``stack`` ends the run."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    config = dataclasses.replace(
        config,
        workdir=str(Path(folder, "run")),
        checkpoint_epochs=0,
        checkpoint_minutes=1e6,
    )
    program = recipe.build(config, dataset)
    total_steps = config.epochs * program.steps_per_epoch
    directory = stack.enter_context(WorkDirectory(config))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    session = Session(
        config,
        directory,
        dataset,
        program,
        optax.constant_schedule(measure.OPTIMIZER["learning_rate"]),
        total_steps,
        Callback(),
    )

    def run() -> None:
        session.train_epoch()
        session.record(session.validate())

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
            epochs=rounds + 2,  # the last one would be saved
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
        f"/ {BARE}",
        "at best",
        title=f"{record['network']}, width {record['width']}, batch "
        f"{record['batch_size']}, {record['rounds']} rounds of {record['steps']} "
        f"steps: median (quartiles), and best against best",
    )
    for name, arm in record["arms"].items():
        result.add_row(
            name,
            f"{arm['milliseconds']:.0f}",
            measure.quartiles_text(arm["time_ratio"], ".3f"),
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
    print("record:", measure.write_record("trainer_overhead", record, options.out))


if __name__ == "__main__":
    main()
