"""The work directory: what a run leaves behind, and what may already be there."""

import errno
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from training import config as config_lib
from training import data, profiling
from training.config import Config
from training.errors import RunError

CONFIG, DATASET, RESULT = "config.json", "dataset.json", "result.json"
METRICS, CURVES = "metrics.jsonl", "curves.png"
BEST, TENSORBOARD = "best", "tensorboard"
# Of runs with amplification: which layers when, and a table for each analysis.
AMPLIFICATION, LAYERS = "amplification.png", "layers.txt"
_OURS = (
    *(CONFIG, DATASET, RESULT, METRICS, CURVES, BEST, TENSORBOARD),
    *(AMPLIFICATION, LAYERS, profiling.DIRECTORY),
)
_ANEW = "--overwrite starts the run anew"


class Run:
    """One run's work directory.

    Attributes:
      path: The directory.
      result: The result of a run that has already finished here, or None.
    """

    def __init__(self, config: Config) -> None:
        """Looks at the work directory, and refuses one that cannot be used.

        Nothing is removed or written yet but the empty directory.

        Raises:
          RunError: If the directory holds an unfinished run, a run with another
            configuration, or files of somebody else's, or cannot be written.
        """
        assert config.workdir is not None
        self.path = Path(config.workdir)
        self.result: dict[str, Any] | None = None
        self._config = config
        self._writer: Any = None
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RunError(
                    f"{self.path} is a file, not a directory: choose another --workdir"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._check_strangers()
            if not config.overwrite and (self.path / CONFIG).exists():
                self.result = self._finished()
        except OSError as error:
            raise RunError(
                f"the work directory {self.path} cannot be used ({error.strerror}): "
                f"choose another --workdir"
            ) from error

    def _check_strangers(self) -> None:
        names = sorted(path.name for path in self.path.iterdir())
        # Without a configuration even a file with a name of ours is somebody else's.
        is_run = CONFIG in names
        strangers = [name for name in names if not (is_run and _is_ours(name))]
        if strangers:
            raise RunError(
                f"{self.path} holds files that are not a run's "
                f"({', '.join(strangers[:3])}): choose another --workdir"
            )

    def _finished(self) -> dict[str, Any]:
        there = read_json(self.path / CONFIG)
        if differences := config_lib.differences(self._config, there):
            raise RunError(
                f"{self.path} holds a run with another configuration "
                f"({'; '.join(differences)}): choose another --workdir, or --overwrite "
                f"it"
            )
        if not (self.path / RESULT).exists():
            raise RunError(
                f"{self.path} holds a run that did not finish: --overwrite starts it "
                f"anew"
            )
        return read_json(self.path / RESULT, needs=("test_accuracy", "train_seconds"))

    def begin(self, dataset: data.Dataset) -> None:
        """Removes an earlier run, and writes ``config.json`` and ``dataset.json``."""
        for path in list(self.path.iterdir()):
            if _is_ours(path.name):
                _remove(path)
        _write_json(self.path / CONFIG, config_lib.experiment(self._config))
        parts = ("train", "validation", "test")
        fields = {
            "name": dataset.name,
            "num_classes": dataset.num_classes,
            "image_shape": list(dataset.train.images.shape[1:]),
            **{part: len(getattr(dataset, part).labels) for part in parts},
            "mean": dataset.mean.tolist(),
            "std": dataset.std.tolist(),
            "label_names": list(dataset.label_names),
        }
        _write_json(self.path / DATASET, fields)

    def add_table(self, title: str, table: str) -> None:
        """Appends a table of layers to ``layers.txt``."""
        with (self.path / LAYERS).open("a", encoding="utf-8") as file:
            file.write(f"{title}\n{table}\n\n")

    def add(self, metrics: dict[str, Any]) -> None:
        """Appends an epoch's metrics to ``metrics.jsonl`` and to TensorBoard's events.

        ``metrics`` has an entry ``epoch``; NaN becomes null.
        """
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(metrics)) + "\n")
        if self._writer is None:
            # Imported late, as it takes a while.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.path / TENSORBOARD))
        for name, value in metrics.items():
            is_number = isinstance(value, int | float) and not math.isnan(value)
            if name != "epoch" and is_number:
                self._writer.add_scalar(name, value, int(metrics["epoch"]))
        self._writer.flush()

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Writes ``result.json``, which marks the run as finished, last of all.

        Returns:
          What it holds: the result, with None for NaN.
        """
        if self._writer is not None:
            self._writer.close()
        result = _without_nan(result)
        _write_json(self.path / RESULT, result)
        return result

    def history(self) -> list[dict[str, Any]]:
        """The metrics of all epochs so far."""
        return read_metrics(self.path)


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The lines of a work directory's ``metrics.jsonl``, one dict an epoch."""
    lines = (Path(workdir) / METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_json(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a JSON object of a work directory.

    Raises:
      RunError: If the file is absent or damaged, or a field that it needs is missing.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): {_ANEW}") from error
    if not isinstance(fields, dict) or not set(needs) <= set(fields):
        raise RunError(f"{path} is damaged (not a run's record): {_ANEW}")
    return fields


def _is_ours(name: str) -> bool:
    # best.new and best.old are a save's, *.tmp those of a JSON file half-way.
    return name in _OURS or name.startswith(f"{BEST}.") or name.endswith(".tmp")


def provenance() -> dict[str, Any]:
    """Versions, device and commit, for a result."""
    devices = jax.local_devices()
    packages = ("plp-optax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in packages},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, ``+`` if it was changed."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            check=True,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    # Whole or not at all: a reader never sees half a file.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _without_nan(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
