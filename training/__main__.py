"""Uses what runs have trained.

python -m training evaluate runs/digits-resnet18-plp-0
python -m training predict runs/digits-resnet18-plp-0 image.png
python -m training compare runs/*
python -m training merge runs/digits-resnet18-plp-0 --over 0.1 0.2 0.5
python -m training prepare cifar100 --data-dir sets
"""

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.table import Table
from rich.text import Text

from training import comparing, merging
from training.data.images import decode, opened, resize
from training.errors import DataError, UserError
from training.recipe import load_data
from training.run.display import Terminal, percentage, spread
from training.trained import load

_Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Images = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")
]
_Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
_TOP = 5


def evaluate(
    run: _Run,
    *,
    dataset: _Text = None,
    data_dir: _Text = None,
    average: bool = False,
    merged: bool = False,
) -> None:
    """Evaluates a run's best network on a test set.

    Args:
      run: The run's work directory.
      dataset: The data set, by default the run's.
      data_dir: Directory of prepared tensorflow-datasets sets.
      average: Take the average at the end of the run instead.
      merged: Take what `merge` has made instead.
    """
    trained = load(run, average=average, merged=merged)
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


def predict(
    run: _Run, images: _Images, *, average: bool = False, merged: bool = False
) -> None:
    """Prints the five most probable classes of each image.

    Args:
      run: The run's work directory.
      images: Image files. They are turned as EXIF says, shown on white where they are
        transparent, and resized to the size of the training images.
      average: Take the average at the end of the run instead.
      merged: Take what `merge` has made instead.
    """
    trained = load(run, average=average, merged=merged)
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

    Configurations that share seeds with the first one are compared with it, seed by
    seed: mean of the differences and 95 % interval (Student's t, not corrected for
    several comparisons).

    Args:
      runs: Work directories.
    """
    groups = comparing.group(runs)
    table = Table()
    table.add_column("", no_wrap=True)
    # Complete, in as many lines as it takes; the numbers in one.
    table.add_column("settings that are not the default", overflow="fold")
    for name in ("seeds", "accuracy", "test loss"):
        table.add_column(name, no_wrap=True)
    for number, group in enumerate(groups, 1):
        settings = " ".join(f"{name}={x}" for name, x in group.settings.items())
        results = list(group.results.values())
        table.add_row(
            str(number),
            Text(settings or "defaults"),  # no markup
            str(len(results)),
            percentage(results),
            spread([r["test_loss"] for r in results], ".4f"),
        )
    Terminal().print(table)
    differences = Table("", "pairs", "accuracy, points", "test loss")
    for number, group in enumerate(groups[1:], 2):
        accuracy, loss = (
            comparing.paired(group, groups[0], f"test_{name}")
            for name in ("accuracy", "loss")
        )
        if accuracy and loss:
            differences.add_row(
                f"{number} minus 1",
                str(loss.n),
                _difference(accuracy, ".2f", 100),
                _difference(loss, ".4f"),
            )
    if differences.row_count:
        Terminal().print(differences)


def _difference(paired: comparing.Paired, digits: str, unit: float = 1) -> str:
    mean, low, high = (f"{unit * x:+{digits}}" for x in paired[1:])
    return mean if paired.n == 1 else f"{mean} [{low}, {high}]"


def merge(
    run: _Run,
    *,
    decay: Literal["linear", "1-sqrt", "cosine"] = "linear",
    over: tuple[float, ...] = (0.2,),
    to: int | None = None,
    data_dir: _Text = None,
) -> None:
    """Checkpoint averaging: chooses a learning-rate decay after training.

    Merges the means that a run with --block-means has kept into what a decay would
    have given, computes batch statistics again, and evaluates on the validation set.
    The best is evaluated on the test set and kept in merged.msgpack.

    Args:
      run: The run's work directory.
      decay: The shape of the decay.
      over: Its lengths to compare, as parts of the run.
      to: The epoch at which it ends, by default the last one.
      data_dir: Directory of prepared tensorflow-datasets sets.
    """
    made = merging.merge(run, decay=decay, over=over, to=to, data_dir=data_dir)
    table = Table(f"{decay} decay over", "validation loss", "accuracy", "")
    for part, found in made.validation.items():
        mark = "chosen" if part == made.over else ""
        row = f"{found.loss:.4f}", f"{found.accuracy:.2%}"
        table.add_row(f"the last {part:.4g}", *row, mark)
    Terminal().print(table)
    print(
        f"{made.blocks} blocks until epoch {made.epoch}, batch statistics over "
        f"{made.statistics_batches} training batches\n"
        f"test loss {made.test.loss:.4f}  accuracy {made.test.accuracy:.2%}  "
        f"top-5 error {made.test.top5_error:.2%}\n"
        f"kept in {made.path}"
    )


def prepare(
    name: Annotated[Literal["cifar10", "cifar100"], tyro.conf.Positional],
    *,
    data_dir: _Text = None,
) -> None:
    """Prepares CIFAR for tensorflow-datasets, from the official archive.

    The set is written in the form array_record, without TensorFlow. The archive is
    downloaded to downloads/manual in the data directory, unless it is there.

    Args:
      name: The set.
      data_dir: Directory of prepared sets.
    """
    # Imported here, as tensorflow-datasets takes a second to import.
    from training.data.prepare import prepare

    print(f"prepared in {prepare(name, data_dir)}")


def _read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    height, width, channels = shape
    with opened(path) as image:
        return resize(decode(image, channels), (height, width))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    commands: list[Callable[..., Any]] = [evaluate, predict, compare, merge, prepare]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # for names that it cannot show
    try:
        tyro.extras.subcommand_cli_from_dict(
            {command.__name__: command for command in commands},
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
