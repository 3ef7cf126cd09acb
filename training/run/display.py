"""The terminal during a run: a progress bar, and one line an epoch."""

import contextlib
import math
import os
import shutil
import statistics
import sys
import textwrap
from collections import defaultdict
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
from rich.table import Table

from training.engine import parallel


def say(text: str) -> None:
    """Prints a line at once, in the process that speaks for all."""
    if parallel.is_coordinator():
        with surviving(1):
            if sys.stdout.isatty():
                text = _wrapped(text, shutil.get_terminal_size().columns)
            print(text, flush=True)


def _wrapped(text: str, columns: int) -> str:
    """Text broken between words; a word that is longer, such as a path, is kept."""
    return "\n".join(
        textwrap.fill(
            line,
            columns,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if len(line) > columns
        else line
        for line in text.splitlines()
    )


def warn(text: str) -> None:
    """Prints a warning to standard error at once."""
    with surviving(2):
        print(f"train.py: warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def surviving(number: int) -> Iterator[None]:
    """Within it standard output or standard error may go away, and nothing happens.

    The reader of a pipe may leave, a terminal be closed, the disk of a log be full.
    Later output is discarded.

    Args:
      number: The file's descriptor, 1 or 2.
    """
    try:
        yield
    except OSError:
        # The descriptor, even where sys.stdout is another file: what is still in a
        # buffer goes there when the program ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


class _SurvivingFile:
    """Standard output as a terminal's file; see :func:`surviving`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        with surviving(1):
            self._file.write(text)

    def flush(self) -> None:
        with surviving(1):
            self._file.flush()


class Terminal(Console):
    """A console that survives the end of standard output.

    Elsewhere than in a terminal it prints plain lines, in a notebook as well, where
    FORCE_COLOR asks for the colours and moving bars of a terminal.
    """

    def __init__(self, **options: Any) -> None:
        """Takes the options of a console."""
        is_terminal = (options.get("file") or sys.stdout).isatty()
        plain = {"force_jupyter": False, "force_terminal": is_terminal}
        super().__init__(**{**plain, **options})

    @property  # type: ignore[misc]
    def file(self) -> Any:
        """See :class:`rich.console.Console`."""
        return _SurvivingFile(super().file)


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
                f"loss {_number(metrics['loss'], '.3f')}  "
                f"accuracy {metrics['accuracy']:.1%}  "
                f"{shown}"
            )
        self._progress.update(
            self._task, advance=steps, description=f"epoch {epoch}", shown=shown
        )

    @property
    def columns(self) -> int:
        """How many columns a line may have."""
        return self._console.width if self._console.is_terminal else 80

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._console.is_terminal:
            text = _wrapped(text, self._console.width)
        self._console.print(text, markup=False, emoji=False)


# -- Lines -----------------------------------------------------------------------------


_WIDE, _NARROW = 72, 58  # columns of the epochs' lines, with and without a legend


def epoch_header(epochs: int, columns: int = 80, *, average: bool = False) -> str:
    """The header of the lines of the epochs: two rows, less than 80 columns wide.

    Args:
      epochs: Epochs in the run.
      columns: Columns of the terminal.
      average: Whether an average is evaluated next to the last parameters.
    """
    width = max(5, 2 * len(str(epochs)) + 1)
    groups = _groups(columns, average=average)
    rows = [" " * width, *(f"{_GROUPS[group]:^17}" for group in groups)]
    heads = [f"{'epoch':>{width}}", *(f"{'loss':>8} {'accuracy':>8}" for _ in groups)]
    if columns >= _NARROW:
        heads.append("images/s")
    if columns >= _WIDE:
        rows.append("*: best so far")
    return "  ".join(rows).rstrip() + "\n" + "  ".join(heads)


_GROUPS = {
    "train": "training",
    "validation": "validation",
    "average_validation": "average, valid.",
}


def _groups(columns: int, *, average: bool) -> list[str]:
    """The losses and accuracies that a line has space for."""
    return [name for name in _GROUPS if name != "average_validation"] + (
        ["average_validation"] if average and columns >= _WIDE else []
    )


def epoch_line(
    metrics: Mapping[str, Any], epochs: int, best: bool, columns: int = 80
) -> str:
    """One epoch in one line; ``*`` marks the best so far."""
    number = f"{metrics['epoch']:>{len(str(epochs))}}/{epochs}"
    cells = [f"{number:>5}"]
    for kind in _groups(columns, average="average_validation_loss" in metrics):
        cells.append(_loss_and_accuracy(metrics, kind))
    if columns >= _NARROW:
        cells.append(f"{metrics['images_per_second']:8,.0f}")
    marks = ["*"] if best else []
    if skipped := metrics.get("skipped_steps"):
        marks.append(f"{skipped} skipped")
    return " ".join(["  ".join(cells), *marks])


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
    skipped = ""
    if result.get("skipped_steps"):
        skipped = f"skipped {result['skipped_steps']:,} steps that were not finite\n"
    return (
        f"best epoch {result['best_epoch']} of {result['epochs']}{stopped} "
        f"(validation loss {_number(result['validation_loss'])})\n"
        f"{_test(result, 'test')}\n"
        f"{_average(result)}"
        f"{skipped}"
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
    loss = spread([result["test_loss"] for result in results], ".4f")
    average = ""
    if all("average_test_accuracy" in result for result in results):
        average = f"; average: {percentage(results, 'average_test_accuracy')}"
    return (
        f"{len(results)} seeds, mean ± standard deviation: test accuracy "
        f"{percentage(results)}, test loss {loss}{average}"
    )


def show_sweep(
    rates: Sequence[float | None], results: Sequence[Mapping[str, Any]]
) -> None:
    """Prints a table of results by learning rate, each of one or several seeds."""
    by_rate: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for rate, result in zip(rates, results, strict=True):
        by_rate[rate].append(result)
    losses: dict[Any, float] = {}
    for rate, found in by_rate.items():
        known: list[Any] = [result.get("validation_loss") for result in found]
        losses[rate] = math.inf if None in known else statistics.mean(known)
    lowest = min(losses.values())
    table = Table("learning rate", "seeds", "validation loss", "test accuracy", "")
    for rate, found in by_rate.items():
        cells = ["diverged"]
        if not any("diverged" in result for result in found):
            loss = spread([result["validation_loss"] for result in found], ".4f")
            mark = "lowest" if losses[rate] == lowest < math.inf else ""
            cells = [loss, percentage(found), mark]
        table.add_row(f"{rate:g}", str(len(found)), *cells)
    Terminal(quiet=not parallel.is_coordinator()).print(table)


def percentage(
    results: Sequence[Mapping[str, Any]], name: str = "test_accuracy"
) -> str:
    """Mean and standard deviation of an accuracy, in percent."""
    parts = [result[name] for result in results]
    return f"{spread([None if x is None else 100 * x for x in parts], '.2f')} %"


def spread(values: Sequence[float | None], digits: str) -> str:
    """Mean and standard deviation; nan if a value is None, which is JSON's nan."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "nan"
    mean = _number(statistics.mean(numbers), digits)
    if len(numbers) == 1:
        return mean
    return f"{mean} ± {_number(statistics.stdev(numbers), digits)}"


def _number(value: float | None, digits: str = ".4f") -> str:
    if value is None:
        return "-"
    return f"{value:{digits}}" if abs(value) < 1e5 else f"{value:.2e}"
