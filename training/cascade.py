"""Deep cascade learning: a network trained block by block, each block in a run.

In deep cascade learning (Marquez, Hare and Niranjan, IEEE TNNLS 29(11), 2018) a stage
trains one block, with a new head and with the blocks before it frozen. A stage is an
ordinary run, in a directory of the cascade's work directory: its network is cut after
the block (:func:`training.engine.networks.make_network`), and it starts from the best
variables of the stage before.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from models.blocks import BlockNetwork
from training.engine import networks
from training.layout import File
from training.settings.config import Config


def stage_configs(config: Config) -> dict[str, Config]:
    """The configurations of the stages' runs, in order.

    Args:
      config: The cascade's configuration.

    Returns:
      The configurations by the block that is trained; "all" if all are.
    """
    first, more = config.cascade_epochs, config.cascade_extra_epochs
    assert config.workdir is not None
    assert first is not None
    assert more is not None
    # The number of classes does not matter here.
    network = networks.make_network(config, 1, axis_name=None)
    assert isinstance(network, BlockNetwork)
    epochs = {block: first + i * more for i, block in enumerate(network.blocks())}
    if config.cascade_finetune:
        epochs["all"] = config.cascade_finetune
    return {
        block: dataclasses.replace(
            config,
            cascade_stage=number,
            epochs=epochs[block],
            workdir=str(Path(config.workdir, File.STAGES, f"{number:02d}")),
            overwrite=False,
            resume="auto",
            draw=False,
        )
        for number, block in enumerate(epochs, 1)
    }


def summary(blocks: Iterable[str], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a cascade, from those of the stages of these blocks.

    That of the last stage, with sums over all and a line for each.
    """
    sums = {
        name: sum(result[name] for result in results)
        for name in ("epochs", "steps", "skipped_steps", "train_seconds")
    }
    before = sums["epochs"] - results[-1]["epochs"]
    names = ("best_epoch", "epochs", "validation_loss", "test_loss", "test_accuracy")
    lines = [
        {"stage": number, "block": block}
        | {name: result[name] for name in (*names, "train_seconds")}
        for number, (block, result) in enumerate(zip(blocks, results, strict=True), 1)
    ]
    last = results[-1]
    return last | sums | {"best_epoch": before + last["best_epoch"], "stages": lines}
