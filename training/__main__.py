"""Uses what runs have trained.

python -m training evaluate runs/digits-resnet18-plp-0
python -m training predict runs/digits-resnet18-plp-0 image.png
python -m training compare runs/*
python -m training merge runs/digits-resnet18-plp-0 --over 0.1 0.2 0.5
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from training import data, merging
from training.errors import DataError, RunError, UserError
from training.run import workdir
from training.run.display import spread
from training.settings import config as config_lib
from training.trained import Trained, load

_Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Runs = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
_Images = Annotated[
    tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")
]
_TOP = 5


def evaluate(
    run: _Run,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
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
    found = data.load(
        dataset or trained.config.dataset,
        data_dir=data_dir,
        image_size=trained.config.image_size,
        split_seed=trained.config.split_seed,
    )
    if found.label_names != trained.label_names:
        raise DataError(
            f"{found.name} has other classes than the run ({len(found.label_names)}, "
            f"not {len(trained.label_names)}, or other names): choose another --dataset"
        )
    images, labels = found.test
    probabilities = _predict(trained, images)
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    rank = (probabilities > own).sum(axis=1)
    print(
        f"{len(labels):,} test images of {found.name}: "
        f"loss {-np.log(np.maximum(own, 1e-38)).mean():.4f}  "
        f"accuracy {(rank < 1).mean():.2%}  "
        f"top-5 error {(rank >= _TOP).mean():.2%}"
    )


def predict(
    run: _Run, images: _Images, *, average: bool = False, merged: bool = False
) -> None:
    """Prints the five most probable classes of each image.

    Args:
      run: The run's work directory.
      images: Image files. They are resized to the size of the training images.
      average: Take the average at the end of the run instead.
      merged: Take what `merge` has made instead.
    """
    trained = load(run, average=average, merged=merged)
    if not images:
        raise DataError("name at least one image file")
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
    table = Table("settings that are not the default", "seeds", "accuracy", "test loss")
    for settings, results in groups.items():
        table.add_row(
            settings,
            str(len(results)),
            f"{spread([100 * r['test_accuracy'] for r in results], '.2f')} %",
            spread([r["test_loss"] for r in results], ".4f"),
        )
    Console().print(table)


def merge(
    run: _Run,
    *,
    decay: Literal["linear", "1-sqrt", "cosine"] = "linear",
    over: tuple[float, ...] = (0.2,),
    to: int | None = None,
    data_dir: str | None = None,
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
    Console().print(table)
    print(
        f"{made.blocks} blocks until epoch {made.epoch}, batch statistics over "
        f"{made.statistics_batches} training batches\n"
        f"test loss {made.test.loss:.4f}  accuracy {made.test.accuracy:.2%}  "
        f"top-5 error {made.test.top5_error:.2%}\n"
        f"kept in {made.path}"
    )


def _predict(trained: Trained, images: np.ndarray) -> np.ndarray:
    try:
        return trained.predict(images)
    except ValueError as error:
        raise DataError(str(error)) from error


def _read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    height, width, channels = shape
    try:
        with Image.open(path) as image:
            converted = image.convert("L" if channels == 1 else "RGB")
    # Pillow raises all of these on damaged images.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not an image that Pillow reads"
        raise DataError(f"{path} cannot be read ({reason})") from error
    # As the data sets resize: the longer side is cropped, not compressed.
    resized = ImageOps.fit(converted, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized).reshape(shape)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "evaluate": evaluate,
        "predict": predict,
        "compare": compare,
        "merge": merge,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m training",
            description="Uses what runs have trained.",
            args=None if argv is None else list(argv),
        )
    except UserError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
