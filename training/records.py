"""The work directory: what a run leaves behind, and what may already be there."""

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import filelock
import jax

from training import config as config_lib
from training import data, parallel, profiling
from training.config import Config
from training.errors import RunError
from training.progress import Progress

CONFIG, DATASET, RESULT = "config.json", "dataset.json", "result.json"
METRICS, CURVES = "metrics.jsonl", "curves.png"
BEST, CHECKPOINTS, TENSORBOARD = "best", "checkpoints", "tensorboard"
# Of runs with amplification: which layers when, and a table for each analysis.
AMPLIFICATION, LAYERS = "amplification.png", "layers.txt"
_LOCK = ".lock"
_OURS = (
    *(CONFIG, DATASET, RESULT, METRICS, CURVES, BEST, CHECKPOINTS, TENSORBOARD),
    *(AMPLIFICATION, LAYERS, profiling.DIRECTORY),
)
_ANEW = "--overwrite starts the run anew"


class Run:
    """One run's work directory, held against other runs until it is closed.

    Of several processes the coordinator alone touches it.

    Attributes:
      path: The directory.
      result: The result of a run that has already finished here, or None.
      is_unfinished: Whether a run with this configuration has begun here and waits to
        go on.
    """

    def __init__(self, config: Config) -> None:
        """Looks at the work directory, and refuses one that cannot be used.

        Nothing is removed or written yet but the empty directory and its lock.

        Raises:
          RunError: If the directory holds a run with another configuration, or files
            of somebody else's, is in use, or cannot be written.
        """
        assert config.workdir is not None
        self.path = Path(config.workdir)
        self._config = config
        self._writer: Any = None
        self._lock = filelock.FileLock(self.path / _LOCK, timeout=0)
        self.result: dict[str, Any] | None = None
        self.is_unfinished = False
        with explained(self.path):
            found = parallel.from_coordinator(self._look)
        self.result = found["result"]
        self.is_unfinished = found["is_unfinished"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the directory to others."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lock.release()

    def _look(self) -> dict[str, Any]:
        """Claims the directory; what it holds."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"{self.path} is a file, not a directory: choose another --workdir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._check_strangers()
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"{self.path} is in use by another run: wait for it, or choose another "
                f"--workdir"
            ) from error
        try:
            return self._find()
        except BaseException:
            self._lock.release()
            raise

    def _find(self) -> dict[str, Any]:
        there = not self._config.overwrite and (self.path / CONFIG).exists()
        result = None
        if there:
            self._check_same()
            if (self.path / RESULT).exists():
                needs = ("test_accuracy", "train_seconds")
                result = read_json(self.path / RESULT, needs=needs)
            elif self._config.resume == "never":
                raise RunError(
                    f"{self.path} holds a run that did not finish: leave --resume out "
                    f"to go on with it, or {_ANEW}"
                )
            elif (self.path / BEST).exists() and not _holds(self.path / CHECKPOINTS):
                raise RunError(
                    f"{self.path} holds a run whose checkpoints were removed: put them "
                    f"back, or {_ANEW}"
                )
        elif self._config.resume == "required":
            raise RunError(
                f"{self.path} holds no run to go on with: leave --resume out to begin "
                f"one"
            )
        return {"result": result, "is_unfinished": there and result is None}

    def _check_strangers(self) -> None:
        names = sorted(path.name for path in self.path.iterdir())
        # Without a configuration even a file with a name of ours is somebody else's.
        is_run = CONFIG in names
        strangers = [
            name for name in names if name != _LOCK and not (is_run and _is_ours(name))
        ]
        if strangers:
            raise RunError(
                f"{self.path} holds files that are not a run's "
                f"({', '.join(strangers[:3])}): choose another --workdir"
            )

    def _check_same(self) -> None:
        there = read_json(self.path / CONFIG)
        if differences := config_lib.differences(self._config, there):
            raise RunError(
                f"{self.path} holds a run with another configuration "
                f"({'; '.join(differences)}): choose another --workdir, or --overwrite "
                f"it"
            )

    def begin(self, dataset: data.Dataset) -> None:
        """Removes an earlier run, and writes ``config.json`` and ``dataset.json``."""
        if not parallel.is_coordinator():
            return
        with explained(self.path):
            # The configuration last: without it what is left would be a stranger's.
            ours = [path for path in self.path.iterdir() if _is_ours(path.name)]
            for path in sorted(ours, key=lambda path: path.name == CONFIG):
                _remove(path)
            self._describe(dataset)

    def _describe(self, dataset: data.Dataset) -> None:
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

    def go_on(self, progress: Progress, dataset: data.Dataset) -> None:
        """Brings the records back to where a run goes on from."""
        if not parallel.is_coordinator():
            return
        with explained(self.path):
            self._describe(dataset)
            lines = "".join(_line(metrics) for metrics in progress.history)
            _write_whole(self.path / METRICS, lines)
            tables = "".join(_table(*table) for table in progress.tables)
            if tables:
                _write_whole(self.path / LAYERS, tables)
            else:
                (self.path / LAYERS).unlink(missing_ok=True)
            _remove(self.path / TENSORBOARD)
            for metrics in progress.history:
                self._add_events(metrics)

    def add_table(self, title: str, table: str) -> None:
        """Appends a table of layers to ``layers.txt``."""
        if parallel.is_coordinator():
            with explained(self.path):
                _append(self.path / LAYERS, _table(title, table))

    def add(self, metrics: dict[str, Any]) -> None:
        """Appends an epoch's metrics to ``metrics.jsonl`` and to TensorBoard's events.

        ``metrics`` has an entry ``epoch``; NaN becomes null.
        """
        if parallel.is_coordinator():
            with explained(self.path):
                _append(self.path / METRICS, _line(metrics))
                self._add_events(metrics)

    def _add_events(self, metrics: dict[str, Any]) -> None:
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
        result = _without_nan(result)
        if parallel.is_coordinator():
            with explained(self.path):
                _write_json(self.path / RESULT, result)
        return result


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns errors of the file system into sentences."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(
                f"{path} could not be written ({reason}): what is recorded stays; make "
                f"room, and give the same command to go on"
            ) from error
        raise RunError(
            f"the work directory {path} cannot be used ({reason}): choose another "
            f"--workdir"
        ) from error


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
    # Garbage that is nested too deeply exhausts the parser.
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): {_ANEW}") from error
    if not isinstance(fields, dict) or not set(needs) <= set(fields):
        raise RunError(f"{path} is damaged (not a run's record): {_ANEW}")
    return fields


def _holds(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _is_ours(name: str) -> bool:
    # best.partial and best.old are a save's, *.tmp those of a file half-way.
    return name in _OURS or name.startswith(f"{BEST}.") or name.endswith(".tmp")


def provenance() -> dict[str, Any]:
    """Versions, device and commit, for a result."""
    devices = jax.devices()
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
    _write_whole(path, json.dumps(fields, indent=2) + "\n")


def _write_whole(path: Path, text: str) -> None:
    # Whole or not at all: a reader never sees half a file.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _line(metrics: dict[str, Any]) -> str:
    return json.dumps(_without_nan(metrics)) + "\n"


def _table(title: str, table: str) -> str:
    return f"{title}\n{table}\n\n"


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
