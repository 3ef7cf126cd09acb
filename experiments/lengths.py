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
    """Differences in loss as lengths, by the slope of the arm's mean loss.

    An arm whose loss falls by b when its length is doubled reaches a loss that is d
    above its own at ``2 ** (-d / b)`` of the length. b is taken from the length before
    to this one, and for the shortest from it to the next; it is taken as known, so that
    intervals are those of d.

    Args:
      table: Runs with ``loss``, in setups of several lengths.
      found: Comparisons in the loss.
      arm: The arm.

    Returns:
      An entry a comparison. Where the loss does not fall there is none.
    """
    runs = table.runs.filter(c("arm") == arm)
    means = dict(runs.group_by("model").agg(c("loss").mean()).iter_rows())
    curves: dict[str, list[tuple[float, float]]] = {}
    for model in means:
        task, length, _ = _parts(model)
        curves.setdefault(task, []).append((length, means[model]))
    entries = []
    rows = found.filter(c("arm") == arm, c("low").is_not_null())
    for row in rows.iter_rows(named=True):
        task, length, _ = _parts(row["model"])
        lengths, losses = zip(*sorted(curves[task]), strict=True)
        if len(lengths) > 1:
            place = max(lengths.index(length), 1)
            fall = -np.diff(losses)[place - 1] / np.diff(np.log2(lengths))[place - 1]
            if fall > 0:
                above = -np.array([row["mean"], row["high"], row["low"]])
                ends = length * (1 - 2 ** (-above / fall))
                entries.append(Saved(row["model"], row["control"], *map(float, ends)))
    return entries


def write(table: Table, entries: list[Saved]) -> list[str]:
    """The entries as a table; nothing if there are none."""
    if not entries:
        return []
    rows = []
    for model, control, *ends in entries:
        task, length, unit = _parts(model)
        mean, low, high = (f"{end:+z.{0 if length > 99 else 1}f}" for end in ends)
        part = f"{100 * ends[0] / length:+z.0f}"
        rows.append(
            (task, f"{length:.0f} {unit}", control, mean, f"[{low}, {high}]", part)
        )
    names = ["task", "length", "control", "sooner", "95 % interval", "sooner (%)"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        c("control").replace(table.labels)
    )
    title = f"How many {unit} sooner the average of one run has the control's loss"
    note = (
        "The difference in loss over the slope of the average's own mean loss between "
        "two lengths. Below 0: the control is ahead. Intervals are those of the "
        "difference, with the slope taken as known."
    )
    return [markdown.write(title, frame, note=note, left=3)]


def _parts(model: str) -> tuple[str, float, str]:
    """Task, length and the unit of the length of a setup."""
    match = re.fullmatch(r"(.*), (\d+) (\w+)", model)
    assert match is not None
    return match[1], float(match[2]), match[3]
