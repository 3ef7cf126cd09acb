"""Callbacks: code of a caller that runs while a run trains."""

from typing import Any

from training import data
from training.engine.engine import Engine
from training.engine.state import TrainState
from training.settings.config import Config


class Callback:
    """Called while a run trains. Override what you need.

    Looking at the values of ``state`` waits for the devices. An exception ends the run;
    the same command resumes it from its last checkpoint.

    Examples:
      Stop when the validation accuracy reaches 90 %, and log to another service::

        class Stop(Exception):
            pass

        class MyCallback(Callback):
            def on_epoch(self, state, metrics):
                wandb.log(metrics, step=metrics["step"])
                if metrics["validation_accuracy"] > 0.9:
                    raise Stop

        recipe.train(config.parse(["--dataset", "cifar100"]), MyCallback())
    """

    def on_start(self, config: Config, engine: Engine, dataset: data.Dataset) -> None:
        """Called before a run, and before each stage of a cascade, once compiled."""

    def on_call(self, state: TrainState) -> None:
        """Called after each call of the compiled training function is dispatched."""

    def on_epoch(self, state: TrainState, metrics: dict[str, Any]) -> None:
        """Called with each line of ``metrics.jsonl``, once it is written."""
