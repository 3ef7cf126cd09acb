"""One run read out at several lengths: what its differences are worth in steps.

Setups are called after a task and a length: ``characters, 400 steps``.
"""

import re
from typing import NamedTuple

import numpy as np
import polars as pl

from experiments import markdown
from experiments.table import Table

c = pl.col


class Saved(NamedTuple):
    """How much sooner an arm reaches a control's loss than the control.

    Attributes:
      model: The setup.
      control: The control.
      mean: In the unit of the length; below 0 if the arm is later.
      low: The lower end of the interval.
      high: The upper end.
    """

    model: str
    control: str
    mean: float
    low: float
    high: float


def saved(table: Table, found: pl.DataFrame, arm: str) -> list[Saved]:
    """Differences in loss as lengths, read off the curve of the arm's mean loss.

    The curve is piecewise linear in the logarithm of the length, and its outer pieces
    go on. It is taken as known, so that intervals are those of the difference.

    Args:
      table: Runs with ``loss``, in setups of several lengths.
      found: Comparisons in the loss.
      arm: The arm.

    Returns:
      An entry a comparison, for tasks on which the mean loss falls from each length to
      the next.
    """
    runs = table.runs.filter(c("arm") == arm)
    means = dict(runs.group_by("model").agg(c("loss").mean()).iter_rows())
    curves: dict[str, list[tuple[float, float]]] = {}
    for model in means:
        task, length, _ = _parts(model)
        curves.setdefault(task, []).append((length, means[model]))
    entries = []
    rows = found.filter(c("arm") == arm, c("low").is_not_null())
    for model, control, mean, low, high in rows.select(
        "model", "control", "mean", "low", "high"
    ).iter_rows():
        task, length, _ = _parts(model)
        lengths, losses = np.array(sorted(curves[task])).T
        if len(lengths) > 1 and np.all(np.diff(losses) < 0):
            reached = [
                _inverse(means[model] - difference, np.log2(lengths), losses)
                for difference in (mean, high, low)
            ]
            entries.append(Saved(model, control, *(length - 2**x for x in reached)))
    return entries


def _inverse(y: float, xs: np.ndarray, ys: np.ndarray) -> float:
    """Where a falling piecewise linear function, whose outer pieces go on, is y."""
    piece = min(max(int(np.sum(ys > y)), 1), len(ys) - 1)
    (x0, x1), (y0, y1) = xs[piece - 1 : piece + 1], ys[piece - 1 : piece + 1]
    return float(x0 + (y - y0) / (y1 - y0) * (x1 - x0))


def write(table: Table, entries: list[Saved]) -> list[str]:
    """The entries as a table; nothing if there are none."""
    if not entries:
        return []
    rows = []
    for model, control, *ends in entries:
        task, length, unit = _parts(model)
        mean, low, high = (f"{end:+z.{0 if length > 99 else 1}f}" for end in ends)
        part = f"{100 * ends[0] / length:+z.1f}"
        rows.append(
            (task, f"{length:.0f} {unit}", control, mean, f"[{low}, {high}]", part)
        )
    names = ["task", "length", "control", "saved", "95 % interval", "saved (%)"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        c("control").replace(table.labels)
    )
    title = f"How many {unit} the average of one run saves to reach the control's loss"
    note = (
        "Read off the mean loss of the average at all lengths, as a straight line in "
        "the logarithm of the length between two of them and beyond the outer two. "
        "Below 0: the control is ahead. In percent: of the length. Intervals are those "
        "of the difference in loss, with the curve taken as known."
    )
    return [markdown.write(title, frame, note=note, left=3)]


def _parts(model: str) -> tuple[str, float, str]:
    """Task, length and the unit of the length of a setup."""
    match = re.fullmatch(r"(.*), (\d+) (\w+)", model)
    assert match is not None
    return match[1], float(match[2]), match[3]
