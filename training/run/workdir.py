"""The work directory: the files of a run, and what may already be there."""

import contextlib
import errno
import functools
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import filelock
import numpy as np

from training import data
from training.engine import parallel
from training.errors import DamagedError, RunError
from training.layout import File
from training.run.checkpoints import is_checkpoint, read
from training.run.display import say, warn
from training.run.layer_analysis import layers_text
from training.run.records import RESULT_FIELDS, read_json, read_metrics, without_nan
from training.settings import config as config_lib
from training.settings.config import Config

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_OURS = frozenset(File)
_START_AGAIN = "--overwrite starts the run again"


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns errors of the file system into sentences."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(
                f"{path} could not be written ({reason}): what is recorded remains; "
                f"make room, and give the same command to resume"
            ) from error
        raise RunError(
            f"the work directory {path} cannot be used ({reason}): choose another "
            f"--workdir"
        ) from error


def _by_coordinator(write: Callable[..., None]) -> Callable[..., None]:
    """Makes a method of :class:`WorkDirectory` one that only the coordinator runs."""

    @functools.wraps(write)
    def by_coordinator(self: "WorkDirectory", *arguments: Any) -> None:
        if parallel.is_coordinator():
            with _explained(self.path):
                write(self, *arguments)

    return by_coordinator


class WorkDirectory:
    """One run's work directory, locked until it is closed.

    With several processes the coordinator alone reads and writes it.

    Attributes:
      path: The directory.
      result: The result of a run that has already finished here, or None.
      is_unfinished: Whether a run with this configuration has started here and has not
        finished.
      earlier_epochs: The ``--epochs`` of a run here that goes on to more of them, and
        counts as unfinished; None if there is none.
    """

    def __init__(self, config: Config) -> None:
        """Locks the work directory, or refuses one that cannot be used.

        Nothing is removed or written yet except the empty directory and its lock.

        Raises:
          RunError: If the directory holds a run with another configuration or files
            that are not a run's, is in use, or cannot be written.
        """
        assert config.workdir is not None  # a configuration is complete
        self.path = Path(config.workdir)
        self._config = config
        self._events: SummaryWriter | None = None
        self._is_started = False
        self._new: list[Path] = []
        self._lock = filelock.FileLock(self.path / _LOCK, timeout=0)
        with _explained(self.path):
            found = parallel.from_coordinator(self._open)
        self.result: dict[str, Any] | None = found["result"]
        self.is_unfinished: bool = found["is_unfinished"]
        self.earlier_epochs: int | None = found["earlier_epochs"]
        self._facts: dict[str, Any] = found["facts"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            # On a full disk closing fails as well. Nothing is lost: the events of
            # each epoch have been flushed.
            with contextlib.suppress(OSError):
                if self._events is not None:
                    self._events.close()
            self._events = None
        finally:
            self._leave()

    def _leave(self) -> None:
        """Unlocks the directory; removes one that is new if no run has started."""
        if self._new and not self._is_started and parallel.is_coordinator():
            with contextlib.suppress(OSError):
                (self.path / _LOCK).unlink(missing_ok=True)  # --no-lock has none
                for path in self._new:
                    path.rmdir()
        self._lock.release()

    # -- What is there -----------------------------------------------------------------

    def _open(self) -> dict[str, Any]:
        """Locks the directory; returns what it holds."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"{self.path} is a file, not a directory: choose another --workdir"
            )
        parents = (self.path, *self.path.parents)
        self._new = [path for path in parents if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._refuse_other_files()
        try:
            self._acquire()
            return self._find_run()
        except BaseException:
            self._leave()
            raise

    def _acquire(self) -> None:
        if not self._config.lock:
            if self._config.cascade_stage is None:
                warn(f"{self.path} is not locked: start no other run there")
            return
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"{self.path} is in use by another run: wait for it, or choose another "
                f"--workdir"
            ) from error
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            raise RunError(
                f"{self.path} cannot be locked ({error}): choose a --workdir on "
                f"another file system, or give --no-lock"
            ) from error

    def _refuse_other_files(self) -> None:
        names = {path.name for path in self.path.iterdir()} - {_LOCK}
        # Without a configuration even a file with one of our names is not a run's;
        # except a temporary one, which a killed run may leave.
        is_expected = _is_ours if File.CONFIG in names else _is_tmp
        others = sorted(name for name in names if not is_expected(name))
        if others:
            remedy = "choose another --workdir"
            if self._config.cascade_stage is not None:
                again = "remove it to train this stage again"
                remedy = f"restore its {File.CONFIG}, or {again}"
            raise RunError(
                f"{self.path} holds files that are not a run's "
                f"({', '.join(others[:3])}): {remedy}"
            )

    def _find_run(self) -> dict[str, Any]:
        result, facts, earlier = None, dict[str, Any](), None
        found = not self._config.overwrite and (self.path / File.CONFIG).exists()
        if found:
            try:
                earlier = self._refuse_other_config()
                if earlier is None and (self.path / File.RESULT).exists():
                    result, facts = self._read_finished()
            except DamagedError as error:
                is_stage = self._config.cascade_stage is not None
                again = f"remove {self.path} to train this stage again"
                raise RunError(
                    f"{error}; {again if is_stage else _START_AGAIN}"
                ) from error
            if result is None:
                self._refuse_to_resume()
        elif self._config.resume == "required":
            raise RunError(
                f"{self.path} holds no run to resume: leave --resume out to start one"
            )
        return {
            "result": result,
            "is_unfinished": found and result is None,
            "earlier_epochs": earlier,
            "facts": facts,
        }

    def _refuse_to_resume(self) -> None:
        if self._config.resume == "never":
            raise RunError(
                f"{self.path} holds a run that did not finish: leave --resume out to "
                f"resume it; {_START_AGAIN}"
            )
        checkpoints = self.path / File.CHECKPOINTS
        if (self.path / File.BEST).exists() and not has_files(checkpoints):
            raise RunError(
                f"{self.path} holds a run whose checkpoints were removed: restore "
                f"them; {_START_AGAIN}"
            )

    def _read_finished(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The result of a run, and the facts about its data."""
        result = read_json(self.path / File.RESULT, needs=RESULT_FIELDS)
        if (count := len(read_metrics(self.path))) != result["epochs"]:
            raise DamagedError(
                f"{self.path / File.METRICS} is damaged (it has {count} epochs, and "
                f"{File.RESULT} {result['epochs']})"
            )
        stages = sorted((self.path / File.STAGES).glob("*"))
        # Of a cascade the last stage has the network.
        best = (stages[-1] if stages else self.path) / File.BEST
        notes = read(best).notes
        if not stages:
            refuse_other_run(best, notes, config_lib.signature(self._config))
        if not stages and notes["epoch"] != result["best_epoch"]:
            raise DamagedError(
                f"{best} is damaged (it is of epoch {notes['epoch']}, and the best "
                f"epoch of {File.RESULT} is {result['best_epoch']})"
            )
        return result, notes.get("data", {})

    def refuse_other_data(
        self, dataset: data.Dataset, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Raises RunError if data are not as they were when the run here was started.

        Args:
          dataset: The data.
          facts: The facts that an unfinished run recorded of them.
        """
        if changes := dataset.changes(self._facts if facts is None else facts):
            raise RunError(
                f"{self.path} holds a run on other data: the "
                f"{' and the '.join(changes)} of {dataset.name} changed since it "
                f"started; restore them, choose another --workdir, or --overwrite it"
            )

    def _refuse_other_config(self) -> int | None:
        """Returns the epochs of a run that differs only in having fewer of them."""
        there = config_lib.read_object(self.path / File.CONFIG, kind=DamagedError)
        epochs, goal = there.get("epochs"), self._config.epochs
        if isinstance(epochs, int) and 0 < epochs < goal:
            longer = there | {"epochs": goal}
            if not config_lib.differences(self._config, longer):
                return epochs
        if differences := config_lib.differences(self._config, there):
            raise RunError(
                f"{self.path} holds a run with another configuration "
                f"({'; '.join(differences)}): choose another --workdir, or --overwrite "
                f"it"
            )
        return None

    # -- What is written ---------------------------------------------------------------

    @_by_coordinator
    def start(self, dataset: data.Dataset) -> None:
        """Removes an earlier run, and describes this one."""
        if self.is_unfinished and (self.path / File.METRICS).exists():
            say(
                f"{self.path} has no checkpoint to resume from: starting again, "
                "with new metrics"
            )
        # The configuration last: without it the rest would not be a run's.
        ours = [path for path in self.path.iterdir() if _is_ours(path.name)]
        for path in sorted(ours, key=lambda path: path.name == File.CONFIG):
            _remove(path)
        self._is_started = True
        self._describe(dataset)

    @_by_coordinator
    def rewrite(self, dataset: data.Dataset, history: Sequence[dict[str, Any]]) -> None:
        """Describes the run, and makes its records those of these epochs."""
        if self.earlier_epochs is not None:
            # Before the configuration changes: they are of fewer epochs.
            _remove(self.path / File.RESULT)
            _remove(self.path / File.AVERAGE)
        self._describe(dataset)
        _write_text(self.path / File.METRICS, "".join(map(_line, history)))
        _remove(self.path / File.TENSORBOARD)
        for metrics in history:
            self._add_events(metrics)

    @_by_coordinator
    def add(self, metrics: dict[str, Any]) -> None:
        """Appends an epoch to ``metrics.jsonl`` and to TensorBoard's events."""
        with (self.path / File.METRICS).open("a", encoding="utf-8") as file:
            file.write(_line(metrics))
        self._add_events(metrics)

    @_by_coordinator
    def write_layers(self, history: Sequence[dict[str, Any]]) -> None:
        """Writes ``layers.txt``, if layers have been analysed."""
        if text := layers_text(history):
            _write_text(self.path / File.LAYERS, text)

    @_by_coordinator
    def draw(
        self,
        dataset: data.Dataset,
        history: Sequence[dict[str, Any]],
        confusion: np.ndarray | None = None,
    ) -> None:
        """Draws the pictures of a run; of a cascade there is no confusion."""
        config, names = self._config, dataset.label_names
        title = f"{config.model} on {dataset.name}, {config.optimization}"
        title += f", seed {config.seed}"
        if confusion is not None:
            self._draw("draw_confusion", File.CONFUSION, confusion, names, title)
            self._draw("draw_amplification", File.AMPLIFICATION, history, title)
            self._draw("draw_layers", File.MONITOR, history, title)
        self._draw("draw_curves", File.CURVES, history, title)

    def _draw(self, function: str, name: str, *arguments: Any) -> None:
        """A picture is not worth a run: one that fails is a warning."""
        try:
            from training.run import plots  # not before the first step: it takes long

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(plots, function)(self.path / name, *arguments)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warn(f"{self.path / name} could not be drawn ({reason})")

    @_by_coordinator
    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes ``result.json``, which marks the run as finished."""
        _write_json(self.path / File.RESULT, result)

    def _describe(self, dataset: data.Dataset) -> None:
        """Writes ``config.json`` and ``dataset.json``."""
        _write_json(self.path / File.CONFIG, config_lib.identity(self._config))
        _write_json(self.path / File.DATASET, dataset.facts)

    def _add_events(self, metrics: Mapping[str, Any]) -> None:
        if self._events is None:
            # Not before the first step: it imports PyTorch where that is installed.
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.path / File.TENSORBOARD))
        for name, value in metrics.items():
            is_number = isinstance(value, int | float) and not math.isnan(value)
            if name != "epoch" and is_number:
                self._events.add_scalar(name, value, int(metrics["epoch"]))
        for row in metrics.get("layers", ()):
            for name, value in row.items():
                if name != "layer" and value is not None:
                    tag = f"layers/{name}/{row['layer']}"
                    self._events.add_scalar(tag, value, int(metrics["epoch"]))
        self._events.flush()


def refuse_other_run(file: Path, notes: Mapping[str, Any], run: str) -> None:
    """Raises DamagedError if a file of variables is of another run.

    Args:
      file: The file.
      notes: Its notes.
      run: The run; see :func:`training.settings.config.signature`.
    """
    if notes.get("run", run) != run:
        raise DamagedError(
            f"{file} is of another run than {File.CONFIG}: restore what was there"
        )


def has_files(path: Path) -> bool:
    """Whether a directory exists and is not empty."""
    return path.is_dir() and any(path.iterdir())


def _is_tmp(name: str) -> bool:
    return name.endswith(".tmp") and name.removesuffix(".tmp") in _OURS


def _is_ours(name: str) -> bool:
    return name in _OURS or _is_tmp(name)


# -- Writing ---------------------------------------------------------------------------


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(fields, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    # Complete or not at all: a reader never sees half a file.
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _line(metrics: Mapping[str, Any]) -> str:
    return json.dumps(without_nan(metrics)) + "\n"


def _remove(path: Path) -> None:
    if path.name == File.CHECKPOINTS and path.is_dir():
        for checkpoint in filter(is_checkpoint, list(path.iterdir())):
            _remove(checkpoint)
        with contextlib.suppress(OSError):  # it holds files of others
            path.rmdir()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
