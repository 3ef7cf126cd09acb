"""The time that the trainer adds to a bare training step.

    python -m benchmarks.trainer_overhead

The bare step is one compiled function of a batch that is ready on the device: forward
and backward pass, running statistics and ``optax.sgd``. It alternates with the training
step of ``train.py`` (gathers and normalises its batch, computes accuracy and norms,
skips steps that are not finite); the same with prediction; and with prediction inside a
session, which writes records and TensorBoard's events and prints a line an epoch.
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
import numpy as np
import optax

from benchmarks import measure
from training import data, recipe
from training.engine.engine import Engine
from training.engine.state import TrainState
from training.run.callbacks import Callback
from training.run.loop import Prepared, TrainingLoop
from training.run.workdir import WorkDirectory
from training.settings import config as config_lib
from training.settings.config import Config

BARE = "bare step"
STEPS = {"step, sgd": "sgd", "step, plp": "plp"}
SESSION = "session, plp, with records"


def run(
    model: str = "resnet18",
    width: int = 64,
    batch_size: int = 32,
    steps: int = 2,
    rounds: int = 20,
) -> dict[str, Any]:
    """Measures all arms; takes the flags, returns the figures."""
    dataset = measure.synthetic(steps * batch_size)
    configs = {
        method: measure.training_config(
            model=model,
            width=width,
            batch_size=batch_size,
            method=method,
            epochs=rounds + 2,  # the last one would be saved
        )
        for method in STEPS.values()
    }
    trainings = {
        name: measure.Training(configs[method], dataset)
        for name, method in STEPS.items()
    }
    engine = trainings["step, plp"].engine
    with contextlib.ExitStack() as stack:
        session = make_session(configs["plp"], dataset, engine, stack)
        arms = {
            BARE: make_bare(configs["sgd"], dataset, engine.initial_state(0), steps),
            **{name: training.run for name, training in trainings.items()},
            SESSION: session,
        }
        seconds = measure.alternate(arms, rounds=rounds)
    return {
        "arms": {
            name: {
                "milliseconds": 1e3 * float(np.median(values)) / steps,
                "time_ratio": measure.quartiles(values / seconds[BARE]),
                "best_ratio": float(values.min() / seconds[BARE].min()),
            }
            for name, values in seconds.items()
        },
    }


def make_bare(
    config: Config, dataset: data.Dataset, start: TrainState, steps: int
) -> Callable[[], Any]:
    """Returns a function that takes bare steps and returns the last loss."""
    _, loss_fn = measure.make_loss(config, dataset)
    tx = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(config.learning_rate, config_lib.fields(config)["momentum"]),
    )

    def step(params: Any, batch_stats: Any, opt_state: Any) -> Any:
        loss_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, batch_stats), gradient = loss_and_grad(params, batch_stats)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return loss, optax.apply_updates(params, updates), batch_stats, opt_state

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    carry = [start.params, start.batch_stats, tx.init(start.params)]

    def take_steps() -> Any:
        for _ in range(steps):
            # Donated arrays are gone after the call: the carry holds their successors.
            loss, *carry[:] = compiled(*carry)
        return loss

    return take_steps


def make_session(
    config: Config,
    dataset: data.Dataset,
    engine: Engine,
    stack: contextlib.ExitStack,
) -> Callable[[], Any]:
    """Returns a function that trains and records an epoch; ``stack`` ends the run."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    config = dataclasses.replace(
        config,
        workdir=str(Path(folder, "run")),
        checkpoint_epochs=0,
        checkpoint_minutes=1e6,
    )
    directory = stack.enter_context(WorkDirectory(config))
    stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
    schedule = optax.constant_schedule(config.learning_rate)
    plan = recipe.count_steps(config, dataset)
    prepared = Prepared(dataset, engine, schedule, plan, None)
    session = TrainingLoop(config, directory, prepared, Callback())

    def train_and_record() -> None:
        session.train_epoch()
        session.record(session.validate())

    return train_and_record


if __name__ == "__main__":
    measure.main(
        "trainer_overhead",
        __doc__,
        run,
        on_accelerator={"batch_size": 128, "steps": 50},
    )
