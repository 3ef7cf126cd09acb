"""The start of a run: weights from a file, another run, or the stage before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util

from training import data
from training.engine import networks
from training.engine.state import Given, variable_shapes
from training.errors import ConfigError, RunError
from training.layout import File
from training.run.checkpoints import read_variables
from training.run.display import say
from training.settings.config import Config
from training.weights import files, fitting


def initial_variables(config: Config, dataset: data.Dataset) -> Given | None:
    """The variables that replace the ones drawn; None if all are drawn.

    Raises:
      ConfigError: If a file cannot be used, or is not of the network.
    """
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    if config.cascade_stage is not None:
        return _of_stage_before(config, module)
    if config.start_from:
        take, flag, start = _of_run, "--start-from", config.start_from
        origin = "of its config.json"
    elif config.initial_weights:
        take, flag, start = _of_file, "--initial-weights", config.initial_weights
        origin = "that it was saved from (torchvision's have --width 64)"
    else:
        return None
    shapes = variable_shapes(module, dataset.train.images.shape[1:])
    shapes = traverse_util.flatten_dict(shapes, sep="/")
    try:
        values, notes = take(config, shapes, dataset)
    except ValueError as error:
        raise ConfigError(
            f"{flag} {start} does not fit --model {config.model} --width "
            f"{config.width}: {error}; choose the network {origin}"
        ) from error
    say("; ".join((f"starting from {start}", *notes)))
    return values


def _of_stage_before(config: Config, module: Any) -> Given | None:
    """Those of the best epoch of the stage before, except its head.

    The stage that trains all blocks keeps the head. The first one starts at random.
    """
    assert config.workdir is not None
    assert config.cascade_stage is not None
    if config.cascade_stage == 1:
        return None
    before = Path(config.workdir).with_name(f"{config.cascade_stage - 1:02d}")
    flat, _ = read_variables(before / File.BEST)
    has_new_head = module.cut is not None
    return {
        path: x
        for path, x in flat.items()
        if not (has_new_head and path.split("/")[1] == "head")
    }


def _of_file(
    config: Config, shapes: Mapping[str, Any], dataset: data.Dataset
) -> fitting.Pretrained:
    """Those that ``--initial-weights`` names."""
    height, width, _ = dataset.train.images.shape[1:]
    if "params/stem/positions" in shapes and height != width:
        raise ValueError(f"its images are square, and these {height} x {width}")
    path, digest = str(config.initial_weights), str(config.initial_weights_sha256)
    return fitting.convert(files.read(path, digest), config.model, shapes)


def _of_run(
    config: Config, shapes: Mapping[str, Any], dataset: data.Dataset
) -> fitting.Pretrained:
    """Those that ``--start-from`` names."""
    start = str(config.start_from)
    if (found := files.start_digest(start)) != config.start_from_sha256:
        raise ConfigError(
            f"--start-from {start} has variables with the SHA-256 digest {found}, not "
            f"{config.start_from_sha256}: restore those that were meant"
        )
    try:
        variables, facts = read_variables(files.start_file(start))
    except RunError as error:
        raise ConfigError(f"--start-from {error}") from error
    values, notes = fitting.take_over(variables, shapes)
    changes = dataset.changes(facts.get("data", {}))
    if changes == ["split"]:
        notes += (
            "the split differs, so that it may have been trained on images of the "
            "validation part",
        )
    elif changes:
        notes += (f"it was trained on other {' and '.join(changes)}",)
    return fitting.Pretrained(values, notes)
