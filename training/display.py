"""What a run shows on the terminal: a progress bar, and one line an epoch."""

import math
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from training import parallel


def say(text: str) -> None:
    """Prints a line at once, in the process that speaks for all."""
    if parallel.is_coordinator():
        try:
            print(text, flush=True)
        except BrokenPipeError:
            _go_on_unread()


class Terminal(Console):
    """Where lines and bars go; it outlives the reader of a pipe, such as ``head``."""

    def on_broken_pipe(self) -> None:
        """See :class:`rich.console.Console`, which would end the program."""
        _go_on_unread()


def _go_on_unread() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # standard output's, also where sys.stdout is another file
    os.close(nowhere)


class Display:
    """A progress bar over all steps; without a terminal only the lines.

    Use as a context manager around training.

    Args:
      total_steps: Steps in the run.
      done: Steps that an earlier part of the run took.
      batch_size: Examples in a step.
    """

    def __init__(self, total_steps: int, done: int, batch_size: int) -> None:
        self._console = Terminal(
            highlight=False, soft_wrap=True, quiet=not parallel.is_coordinator()
        )
        self._batch_size = batch_size
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=total_steps, completed=done, metrics=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, epoch: int, metrics: Mapping[str, float], steps: int) -> None:
        """Moves the bar by so many steps."""
        rate = self._progress.tasks[0].speed
        speed = f"  {rate * self._batch_size:,.0f} images/s" if rate else ""
        self._progress.update(
            self._task,
            advance=steps,
            description=f"epoch {epoch}",
            metrics=f"loss {metrics['loss']:.3f}  "
            f"accuracy {metrics['accuracy']:.1%}{speed}",
        )

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False)


def epoch_line(metrics: Mapping[str, Any], epochs: int, best: bool) -> str:
    """One epoch in one line; ``*`` marks the best so far."""
    parts = [
        f"epoch {metrics['epoch']:>{len(str(epochs))}}/{epochs}",
        f"train loss {metrics['train_loss']:.4f} accuracy "
        f"{metrics['train_accuracy']:6.1%}",
    ]
    if not math.isnan(metrics["validation_loss"]):
        parts.append(
            f"validation loss {metrics['validation_loss']:.4f} accuracy "
            f"{metrics['validation_accuracy']:6.1%} {'*' if best else ' '}"
        )
    parts.append(f"{metrics['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def selection_line(analysis: Sequence[Mapping[str, Any]]) -> str:
    """Which layers an analysis has selected."""
    names = [row["layer"] for row in analysis if row["amplified"]]
    return (
        f"analysis: {len(names)} of {len(analysis)} layers stand out"
        f"{': ' if names else ''}{', '.join(names)}"
    )


def result_lines(result: Mapping[str, Any]) -> str:
    """A finished run in a few lines."""
    return (
        f"best epoch {result['best_epoch']} of {result['epochs']} "
        f"(validation loss {_number(result['validation_loss'])})\n"
        f"test loss {_number(result['test_loss'])}  "
        f"accuracy {result['test_accuracy']:.2%}  "
        f"top-1 error {result['test_top1_error']:.2%}  "
        f"top-5 error {result['test_top5_error']:.2%}\n"
        f"trained {result['train_seconds']:.1f} s on {result['device']}, without "
        f"compilation and evaluation"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
