"""A decay of the learning rate that is chosen after training.

A run with ``--block-means`` keeps the mean parameters of each block of epochs. An
average of them stands for a decay over the last part of the run
(:func:`plp_optax.merge`); which part is chosen by the validation loss.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import plp_optax
from training import recipe
from training.engine import networks
from training.engine.evaluation import Evaluation
from training.errors import ConfigError, RunError
from training.layout import File, mean_path
from training.run.checkpoints import Checkpoint, read, write
from training.run.records import without_nan
from training.trained import find_run

# For a run that evaluates with the running statistics of training.
_PRECISE_BN = 16


class Merged(NamedTuple):
    """The result of :func:`merge`."""

    epoch: int  # the last one that is merged
    blocks: int  # until then
    statistics_batches: int  # training batches of the batch statistics
    validation: dict[float, Evaluation]  # by the length of the decay
    over: float  # the length with the lowest validation loss
    test: Evaluation  # with that length
    path: Path  # of its variables


def merge(
    run: str | Path,
    *,
    decay: str = "linear",
    over: Sequence[float] = (0.2,),
    to: int | None = None,
    data_dir: str | None = None,
) -> Merged:
    """Merges the block means of a run, and evaluates what comes out.

    The test set is read once, for the length with the lowest validation loss.

    Args:
      run: The run's work directory; the run need not have finished. A cascade stands
        for its last stage.
      decay: See :func:`plp_optax.merge`.
      over: Lengths of the decay, as parts of the run until then.
      to: The epoch at which the decay ends, which must end a block; by default the
        last one.
      data_dir: Directory of prepared tensorflow-datasets sets.

    Raises:
      UserError: If the run has no such means, or its data are not found.
    """
    path, config = find_run(run)
    if not over:
        raise ConfigError("--over needs at least one number, such as 0.2")
    if config.validation_fraction == 0 and len(over) > 1:
        raise ConfigError(
            f"{path} has no validation data to choose --over by: give one number"
        )
    files, counts = _find_blocks(path, to)
    weights = {}
    for part in over:
        try:
            weights[part] = plp_optax.merge_weights(
                len(files), counts, decay=decay, over=part
            )
        except ValueError as error:
            raise ConfigError(f"--{error}") from error
    best = read(path / File.BEST).tree
    precise_bn = config.precise_bn or _PRECISE_BN
    config = dataclasses.replace(config, data_dir=data_dir, precise_bn=precise_bn)
    with networks.precision(config):
        dataset = recipe.load_data(config)
        engine = recipe.assemble(config, dataset)
        engine.compile_evaluation(best)
        variables, found = {}, {}
        for part, own in weights.items():
            params = _average(files, own)
            variables[part] = engine.with_statistics({**best, "params": params})
            found[part] = engine.evaluate(variables[part], dataset.validation)
        chosen = min(over, key=lambda part: found[part].loss)
        test = engine.evaluate(variables[chosen], dataset.test)
    epoch = read(files[-1]).notes["epoch"]
    numbers = found[chosen].metrics("validation", "loss", "accuracy")
    numbers |= test.metrics("test", "loss", "accuracy")
    notes = without_nan({"decay": decay, "over": chosen, "epoch": epoch, **numbers})
    file = path / File.MERGED
    write(file, Checkpoint(variables[chosen], notes))
    return Merged(
        epoch, len(files), engine.statistics_batches, found, chosen, test, file
    )


def _find_blocks(path: Path, to: int | None) -> tuple[list[Path], list[int]]:
    """The files of a run's means until an epoch, oldest first; the blocks' steps."""
    files = sorted((path / File.MEANS).glob("epoch-*.msgpack"))
    if not files:
        raise RunError(f"{path} holds no means: only a run with --block-means has them")
    last = files[-1] if to is None else mean_path(path, to)
    if last not in files:
        ends = ", ".join(str(int(file.stem.removeprefix("epoch-"))) for file in files)
        raise ConfigError(f"--to {to} is not the end of a block: choose one of {ends}")
    files = [file for file in files if file <= last]
    counts: list[int] = []
    for file in files:
        notes = read(file).notes
        if not {"epoch", "step", "steps"} <= set(notes):
            raise RunError(f"{file} is not a mean that a run has kept: remove it")
        counts.append(notes["steps"])
        if notes["step"] != sum(counts):
            raise RunError(f"means before {file} are missing: restore them")
    return files, counts


def _average(files: Sequence[Path], weights: np.ndarray) -> Any:
    """As :func:`plp_optax.merge`, with one block in memory at a time."""
    total: Any = None
    for file, weight in zip(files, weights, strict=True):
        if weight:
            mean = read(file).tree["params"]
            own = jax.tree.map(lambda x, w=weight: w * x.astype(np.float64), mean)
            total = own if total is None else jax.tree.map(np.add, total, own)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), total, mean)
