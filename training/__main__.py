"""Uses what runs have trained.

python -m training evaluate runs/digits-resnet18-plp-0
python -m training predict runs/digits-resnet18-plp-0 image.png
python -m training compare runs/*
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from training import data
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
    run: _Run, *, dataset: str | None = None, data_dir: str | None = None
) -> None:
    """Evaluates a run's best network on a test set.

    Args:
      run: The run's work directory.
      dataset: The data set, by default the run's.
      data_dir: Directory of prepared tensorflow-datasets sets.
    """
    trained = load(run)
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


def predict(run: _Run, images: _Images) -> None:
    """Prints the five most probable classes of each image.

    Args:
      run: The run's work directory.
      images: Image files. They are resized to the size of the training images.
    """
    trained = load(run)
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
