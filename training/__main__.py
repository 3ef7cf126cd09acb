"""Uses what runs have trained.

python -m training evaluate runs/digits-resnet18-plp-0
python -m training predict runs/digits-resnet18-plp-0 image.png
python -m training compare runs/*
"""

import dataclasses
import io
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from training.data.images import decode, opened, resize
from training.errors import DataError, RunError, UserError
from training.recipe import load_data
from training.run import workdir
from training.run.display import Terminal, spread
from training.settings import config as config_lib
from training.trained import load

_Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Images = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")
]
_Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
_TOP = 5


def evaluate(run: _Run, *, dataset: _Text = None, data_dir: _Text = None) -> None:
    """Evaluates a run's best network on a test set.

    Args:
      run: The run's work directory.
      dataset: The data set, by default the run's.
      data_dir: Directory of prepared tensorflow-datasets sets.
    """
    trained = load(run)
    config = dataclasses.replace(trained.config, data_dir=data_dir)
    if dataset is not None:
        config = dataclasses.replace(config, dataset=dataset)
    found = load_data(config)
    if dataset is None and (changes := found.changes(trained.facts)):
        raise DataError(
            f"the {' and the '.join(changes)} of {found.name} changed since {run} was "
            f"trained: restore them, or name what to evaluate on by --dataset"
        )
    if found.label_names != trained.label_names:
        raise DataError(
            f"{found.name} has other classes than the run ({len(found.label_names)}, "
            f"not {len(trained.label_names)}, or other names): choose another --dataset"
        )
    try:
        evaluation = trained.evaluate(found.test)
    except ValueError as error:
        raise DataError(str(error)) from error
    print(
        f"{len(found.test.labels):,} test images of {found.name}: "
        f"loss {evaluation.loss:.4f}  accuracy {evaluation.accuracy:.2%}  "
        f"top-5 error {evaluation.top5_error:.2%}"
    )


def predict(run: _Run, images: _Images) -> None:
    """Prints the five most probable classes of each image.

    Args:
      run: The run's work directory.
      images: Image files. They are turned as EXIF says, shown on white where they are
        transparent, and resized to the size of the training images.
    """
    trained = load(run)
    if not images:
        raise DataError("name at least one image file")
    channels = trained.image_shape[-1]
    if channels not in (1, 3):
        raise DataError(
            f"{run} was trained on arrays of {channels} channels, which image files do "
            f"not have: use training.load({str(run)!r}).predict(array)"
        )
    pixels = np.stack([_read_image(path, trained.image_shape) for path in images])
    for path, probabilities in zip(images, trained.predict(pixels), strict=True):
        print(path)
        for label in np.argsort(-probabilities)[:_TOP]:
            print(f"  {probabilities[label]:7.2%}  {trained.label_names[label]}")


def compare(runs: _Runs) -> None:
    """Prints a table of finished runs: mean and standard deviation over the seeds.

    Args:
      runs: Work directories.
    """
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in runs:
        if not (path / workdir.RESULT).exists():
            print(f"{path} holds no finished run: left out", file=sys.stderr)
            continue
        fields = config_lib.chosen(
            config_lib.resolve({}, config_lib.read(path / workdir.CONFIG))
        )
        fields.pop("seed", None)
        settings = " ".join(f"{name}={value}" for name, value in fields.items())
        groups[settings or "defaults"].append(
            workdir.read_json(
                path / workdir.RESULT, needs=["test_accuracy", "test_loss"]
            )
        )
    if not groups:
        raise RunError("none of these holds a finished run")
    table = Table()
    # Complete, in as many lines as it takes; the numbers in one.
    table.add_column("settings that are not the default", overflow="fold")
    for name in ("seeds", "accuracy", "test loss"):
        table.add_column(name, no_wrap=True)
    for settings, results in groups.items():
        table.add_row(
            Text(settings),  # no markup
            str(len(results)),
            f"{spread([100 * r['test_accuracy'] for r in results], '.2f')} %",
            spread([r["test_loss"] for r in results], ".4f"),
        )
    Terminal().print(table)


def _read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    height, width, channels = shape
    with opened(path) as image:
        return resize(decode(image, channels), (height, width))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "evaluate": evaluate,
        "predict": predict,
        "compare": compare,
    }
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for names that it cannot show
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m training",
            description="Uses what runs have trained.",
            args=None if argv is None else list(argv),
        )
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
