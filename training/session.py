"""A run that can be left at any moment and taken up again."""

import contextlib
import dataclasses
import math
from types import TracebackType
from typing import Any, Self

from training import amplification, data, records
from training.checkpoints import Checkpoint, Checkpoints, copy_to_host
from training.config import Config
from training.display import say
from training.errors import RunError
from training.loop import Loop
from training.pauses import Pauses, Stopped
from training.progress import Progress


class Session:
    """The state of a run, in memory and on disk. Use as a context manager.

    It begins the run, or goes on where it was left. At the end, or asked to stop, it
    saves.

    Attributes:
      progress: The position in the run.
      best: The variables of the best epoch so far, as NumPy arrays.
      pauses: When to save or stop.
    """

    def __init__(
        self, config: Config, directory: records.Run, loop: Loop, dataset: data.Dataset
    ) -> None:
        """Takes a work directory and a compiled loop.

        Raises:
          RunError: If there is no undamaged checkpoint to go on from.
        """
        self._directory = directory
        self._loop = loop
        self._best_is_new = False
        self._epochs_between = config.checkpoint_epochs
        self._signals = contextlib.ExitStack()
        self._checkpoints = Checkpoints(
            directory.path / records.CHECKPOINTS, config.keep_checkpoints
        )
        self.pauses = Pauses(config.checkpoint_minutes)
        self.progress = Progress()
        assert isinstance(config.seed, int)  # parse makes one configuration a seed
        loop.start(config.seed)
        self.best = copy_to_host(loop.state.variables)

        found = None
        if directory.is_unfinished:
            like = {"state": loop.state, "best": self.best}
            found = self._checkpoints.newest(like)
        if found is not None:
            name, (tree, notes) = found
            self.progress, self.best = Progress(**notes), tree["best"]
            self._best_is_new = bool(self.progress.best)
            loop.start(config.seed, tree["state"])
            directory.go_on(self.progress, dataset)
            say(f"going on from {directory.path / records.CHECKPOINTS / name}")
        elif config.resume == "required":
            raise RunError(
                f"{directory.path} holds no checkpoint to go on from: leave --resume "
                f"out to begin the run anew"
            )
        else:
            directory.begin(dataset)
            self._note_amplification()

    def __enter__(self) -> Self:
        self._signals.enter_context(self.pauses.listening())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._signals:
            if value is None or isinstance(value, Stopped):
                self.save()
            self._checkpoints.close()
        if value is None:
            self.pauses.end()

    def save(self) -> None:
        """Saves the run while it goes on.

        Raises:
          RunError: If the save before it did not succeed.
        """
        others = {}
        if self._best_is_new:
            best = self._directory.path / records.BEST
            others[best] = Checkpoint(self.best, self.progress.best)
            self._best_is_new = False
        self._checkpoints.save(
            self.progress.name,
            Checkpoint(
                {"state": self._loop.state, "best": self.best},
                dataclasses.asdict(self.progress),
            ),
            others,
        )
        self.pauses.saved()

    def end_epoch(self, metrics: dict[str, Any]) -> tuple[bool, Any]:
        """Records an epoch, and saves if it is time.

        Args:
          metrics: Its line of ``metrics.jsonl``; amplification joins it.

        Returns:
          Whether it is the best so far, and its analysis of layers, if it ended in one.
        """
        amplified = self.progress.amplified
        account = self._note_amplification()
        if account is not None:
            metrics |= {"amplified": amplified, "analysis": account.analysis}
        self._directory.add(metrics)
        if account is not None and account.table is not None:
            table = [f"after epoch {metrics['epoch']}", account.table]
            self._directory.add_table(*table)
            self.progress.tables.append(table)
        # NaN without a validation part: then the last epoch counts as the best.
        loss, best = metrics["validation_loss"], self.progress.best
        is_best = not best or math.isnan(best["loss"]) or loss < best["loss"]
        if is_best:
            self.progress.best = {"epoch": metrics["epoch"], "loss": loss}
            self.best = copy_to_host(self._loop.state.variables)
            self._best_is_new = True
        self.progress.end_epoch(metrics)
        every = self._epochs_between
        if every and self.progress.epoch % every == 0:
            self.save()
        return is_best, account and account.analysis

    def _note_amplification(self) -> amplification.Account | None:
        state = self._loop.state
        account = amplification.observe(
            state.opt_state, state.params, self.progress.selections
        )
        if account is not None:
            self.progress.amplified = account.amplified
            self.progress.selections = account.selections
        return account
