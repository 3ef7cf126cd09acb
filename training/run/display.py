"""The terminal during a run: a progress bar, and one line an epoch."""

import contextlib
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from training.engine import parallel


def say(text: str) -> None:
    """Prints a line at once, in the process that speaks for all."""
    if parallel.is_coordinator():
        try:
            print(text, flush=True)
        except BrokenPipeError:
            _discard_output()


class Terminal(Console):
    """A console that survives the reader of a pipe, such as ``head``."""

    def on_broken_pipe(self) -> None:
        """See :class:`rich.console.Console`, which would end the program."""
        _discard_output()


def _discard_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # standard output, even where sys.stdout is another file
    os.close(nowhere)


def _console() -> Terminal:
    return Terminal(
        highlight=False, soft_wrap=True, quiet=not parallel.is_coordinator()
    )


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows a spinner with the time elapsed; without a terminal only the text."""
    console = _console()
    if not console.is_terminal:
        say(text)
        yield
        return
    columns = (SpinnerColumn(), TextColumn(text, markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task("")
        yield


class ProgressBar:
    """A progress bar over all steps; without a terminal only lines.

    Use as a context manager around training.

    Args:
      total_steps: Steps in the run.
      done: Steps taken before the run was resumed.
    """

    def __init__(self, total_steps: int, done: int) -> None:
        self._console = _console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=total_steps, completed=done, shown=""
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def advance(
        self,
        epoch: int,
        steps: int,
        metrics: Mapping[str, float] | None,
        steps_per_second: float,
    ) -> None:
        """Moves the bar by this many steps.

        Args:
          epoch: The epoch, from 1.
          steps: How many steps were taken.
          metrics: Means over the epoch so far, if there are any yet.
          steps_per_second: The pace of training, without evaluation and saving.
        """
        task = self._progress.tasks[0]
        left = ((task.total or 0) - task.completed - steps) / steps_per_second
        shown = f"{timedelta(seconds=round(left))} left"
        if metrics is not None:
            shown = (
                f"loss {metrics['loss']:.3f}  accuracy {metrics['accuracy']:.1%}  "
                f"{shown}"
            )
        self._progress.update(
            self._task, advance=steps, description=f"epoch {epoch}", shown=shown
        )

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False)


# -- Lines -----------------------------------------------------------------------------


def epoch_header(epochs: int, *, average: bool = False) -> str:
    """The header of the lines of the epochs: two rows, less than 80 columns wide.

    Args:
      epochs: Epochs in the run.
      average: Whether an average is evaluated next to the last parameters.
    """
    width = max(5, 2 * len(str(epochs)) + 1)
    groups = ["training", "validation", *(["average, valid."] if average else [])]
    rows = [" " * width, *(f"{group:^17}" for group in groups), "*: best so far"]
    heads = [f"{'epoch':>{width}}", *(f"{'loss':>8} {'accuracy':>8}" for _ in groups)]
    return "  ".join(rows) + "\n" + "  ".join([*heads, "images/s"])


def epoch_line(metrics: Mapping[str, Any], epochs: int, best: bool) -> str:
    """One epoch in one line; ``*`` marks the best so far."""
    number = f"{metrics['epoch']:>{len(str(epochs))}}/{epochs}"
    columns = [f"{number:>5}"]
    for kind in ("train", "validation", "average_validation"):
        if f"{kind}_loss" in metrics:
            columns.append(_loss_and_accuracy(metrics, kind))
    columns.append(f"{metrics['images_per_second']:8,.0f} {'*' if best else ''}")
    return "  ".join(columns).rstrip()


def _loss_and_accuracy(metrics: Mapping[str, Any], kind: str) -> str:
    loss = metrics[f"{kind}_loss"]
    if math.isnan(loss) and kind != "train":  # not evaluated
        return f"{'-':>8} {'-':>8}"
    return f"{_loss(loss)} {metrics[f'{kind}_accuracy']:8.1%}"


def _loss(value: float) -> str:
    return f"{value:8.4f}" if value < 999 else f"{value:8.2e}"


LAG_LINE = (
    "(validation is worse than training in the first epochs: batch normalisation "
    "evaluates with running statistics, which follow the weights slowly)"
)


def selection_line(analysis: Sequence[Mapping[str, Any]]) -> str:
    """Which layers an analysis has selected."""
    names = [row["layer"] for row in analysis if row["amplified"]]
    return (
        f"analysis: {len(names)} of {len(analysis)} layers selected"
        f"{': ' if names else ''}{', '.join(names)}"
    )


def result_lines(result: Mapping[str, Any]) -> str:
    """A finished run in a few lines."""
    stopped = ", stopped early" if result.get("stopped_early") else ""
    return (
        f"best epoch {result['best_epoch']} of {result['epochs']}{stopped} "
        f"(validation loss {_number(result['validation_loss'])})\n"
        f"{_test(result, 'test')}\n"
        f"{_average(result)}"
        f"trained for {result['train_seconds']:.1f} s on {result['device']}, not "
        f"counting compilation and evaluation"
    )


def _average(result: Mapping[str, Any]) -> str:
    steps = result.get("average_steps")
    if steps is None:
        return ""
    if not steps:
        return "the average did not begin: the run ended before --average-start\n"
    return (
        f"average over {steps:,} steps "
        f"(validation loss {_number(result['average_validation_loss'])})\n"
        f"{_test(result, 'average_test')}\n"
    )


def _test(result: Mapping[str, Any], prefix: str) -> str:
    return (
        f"test loss {_number(result[f'{prefix}_loss'])}  "
        f"accuracy {result[f'{prefix}_accuracy']:.2%}  "
        f"macro-F1 {_number(result.get(f'{prefix}_macro_f1'))}\n"
        f"top-1 error {result[f'{prefix}_top1_error']:.2%}  "
        f"top-5 error {result[f'{prefix}_top5_error']:.2%}"
    )


def summary_line(results: Sequence[Mapping[str, Any]]) -> str:
    """The results of several seeds in one line."""
    accuracy = spread([100 * result["test_accuracy"] for result in results], ".2f")
    loss = spread([result["test_loss"] for result in results], ".4f")
    averages: list[Any] = [result.get("average_test_accuracy") for result in results]
    average = ""
    if None not in averages:
        average = f"; average: {spread([100 * x for x in averages], '.2f')} %"
    return (
        f"{len(results)} seeds, mean ± standard deviation: test accuracy {accuracy} %, "
        f"test loss {loss}{average}"
    )


def spread(values: Sequence[float | None], digits: str) -> str:
    """Mean and standard deviation; nan if a value is None, which is JSON's nan."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "nan"
    mean = f"{statistics.mean(numbers):{digits}}"
    if len(numbers) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(numbers):{digits}}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
