"""Tables of a study as Markdown: comparisons, results, numbers as text."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from experiments.statistics import BETTER, RULE, WORSE
from experiments.table import ARM, METRICS, Metric, Table

NONE = "-"
_MOST = 8  # names that are listed

c = pl.col


def number(value: float | None, digits: int = 4) -> str:
    """``0.5553``, or a dash for None and NaN."""
    return NONE if value is None or np.isnan(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """``+0.0120``, or a dash for None and NaN."""
    return NONE if value is None or np.isnan(value) else f"{value:+z.{digits}f}"


def difference(metric: Metric, value: float | None, most: int = 9) -> str:
    """A metric's difference, to so many digits at most; as a ratio if it is one."""
    if metric.is_ratio and value is not None:
        return f"{np.exp(value):.3g}"
    return signed(value, min(metric.digits, most))


def spread(
    values: Iterable[float | None], mean: str = ".4f", deviation: str | None = None
) -> str:
    """``mean ± standard deviation`` (of the sample); of one value the value alone.

    ``mean`` and ``deviation`` are formats; a deviation without one has the mean's.
    """
    found = np.array([value for value in values if value is not None], float)
    if not found.size or np.isnan(found).any():
        return NONE
    text = f"{found.mean():{mean}}"
    if found.size == 1:
        return text
    return f"{text} ± {found.std(ddof=1):{deviation or mean}}"


def join(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def texts(column: str, write: Callable[[Any], str]) -> pl.Expr:
    """A column as text."""
    return c(column).map_elements(write, return_dtype=pl.String, skip_nulls=False)


def spreads(
    frame: pl.DataFrame, by: Sequence[str], digits: Mapping[str, int]
) -> pl.DataFrame:
    """``mean ± standard deviation`` of columns, a row a group, in the frame's order."""
    grouped = frame.group_by(by, maintain_order=True).agg(*digits)
    return grouped.with_columns(
        pl.Series(
            name,
            [spread(values, f".{count}f") for values in grouped[name]],
            dtype=pl.String,
        )
        for name, count in digits.items()
    )


# A heading, or a heading and how to write the cells: decimals, or a function.
Column = str | tuple[str, int | Callable[[Any], str]]


def write(
    title: str,
    frame: pl.DataFrame,
    columns: Mapping[str, Column] | None = None,
    *,
    note: str = "",
    left: int = 1,
) -> str:
    """A table with its title above and its note below.

    Columns that are empty in all rows are left out.

    Args:
      title: The table's title.
      frame: Its cells.
      columns: The columns to show; None for all, under their names.
      note: The note below it.
      left: How many columns are text; the rest are numbers, and aligned to the right.
    """
    shown = columns or {name: name for name in frame.columns}
    cells = []
    for name, column in shown.items():
        heading, write = column if isinstance(column, tuple) else (column, None)
        if isinstance(write, int):
            write = functools.partial(number, digits=write)
        values = map(write, frame[name]) if write else frame[name].cast(pl.String)
        cells.append([heading, *(NONE if x is None else x for x in values)])
    marks = [":--" if i < left else "--:" for i in range(len(cells))]
    kept = [
        (heading, mark, *column)
        for (heading, *column), mark in zip(cells, marks, strict=True)
        if not set(column) <= {"", NONE}
    ]
    rows = "\n".join(f"| {' | '.join(row)} |" for row in zip(*kept, strict=True))
    return f"**{title}**\n\n{rows}" + (f"\n\n*{note}*" if note else "")


def comparisons(
    table: Table, found: pl.DataFrame, metrics: Sequence[Metric] = METRICS
) -> list[str]:
    """A table for each metric, with a verdict for each comparison."""
    tables = [
        _compared(table, metric, of_metric)
        for metric in metrics
        if len(of_metric := found.filter(c("metric") == metric.name))
    ]
    return [*tables, RULE] if tables else []


def _compared(table: Table, metric: Metric, found: pl.DataFrame) -> str:
    order = "higher" if metric.higher_is_better else "lower"
    is_tied = (found["up"] + found["down"] == 0) & (found["n"] > 0)
    if is_tied.all():
        where = f"all {len(found)} comparisons" if len(found) > 1 else "one comparison"
        return f"**{metric.title}**: all differences are 0, in {where}."

    written = functools.partial(difference, metric)
    wins, losses = ("up", "down") if metric.higher_is_better else ("down", "up")
    diverged = pl.format("; diverged: {} / {}", "diverged", "control_diverged")
    any_diverged = c("diverged") + c("control_diverged") > 0
    decided = c("verdict").is_in([BETTER, WORSE])
    rows = table.named(found).with_columns(
        verdict=pl.when(decided)
        .then(pl.format("**{}**", "verdict"))
        .otherwise("verdict"),
        pairs=pl.format(
            "{}{}", "n", pl.when(any_diverged).then(diverged).otherwise(pl.lit(""))
        ),
        interval=pl.format("[{}, {}]", texts("low", written), texts("high", written)),
        has_interval=c("low").is_not_null(),
        counts=pl.format("{} / {} / {}", wins, "tied", losses),
    )
    sign, unit = ("/", "") if metric.is_ratio else ("minus", f"{metric.unit}; ")
    return write(
        f"{metric.title}: arm {sign} control ({unit}{order} is better)",
        rows.with_columns(pl.when("has_interval").then("interval")),
        {
            **{"model": table.kind, "arm": "arm", "control": "control"},
            **{"verdict": "verdict", "pairs": "pairs"},
            "mean": ("ratio" if metric.is_ratio else "difference", written),
            "interval": "95 % interval",
            "counts": "better / tied / worse",
            "corrected": ("corrected p", _p),
        },
        note=metric.note,
        left=4,
    )


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else number(value, 3)


def counts(table: Table) -> pl.DataFrame:
    """How many runs finished and how many diverged: ``2, 1 diverged``."""
    finished, diverged = (~c("diverged")).sum(), c("diverged").sum()
    return table.runs.group_by(ARM, maintain_order=True).agg(
        runs=pl.when(diverged > 0)
        .then(pl.format("{}, {} diverged", finished, diverged))
        .otherwise(pl.format("{}", finished))
    )


def results(table: Table, metrics: Sequence[Metric] = METRICS) -> list[str]:
    """Every arm's results: a table for each part of the study.

    Arms that were not run are named below the table.
    """
    rows = counts(table)
    for metric in metrics:
        values = metric.values(table)
        if "control" not in values.columns:
            cells = spreads(values, ARM, {"value": metric.digits})
            cells = cells.rename({"value": metric.column})
            rows = rows.join(cells, on=ARM, how="left", maintain_order="left")
    found = []
    for group in dict.fromkeys(arm.group for arm in table.study.arms):
        arms = [arm for arm in table.study.arms if arm.group == group]
        of_group = rows.filter(c("arm").is_in([arm.name for arm in arms]))
        if not len(of_group):
            continue
        note = "Mean ± standard deviation over the finished runs."
        for model in table.models:
            ran = set(of_group.filter(c("model") == model)["arm"])
            missing = [
                arm.label for arm in arms if arm.name not in ran and arm.trains(model)
            ]
            if missing:
                more = f"; and {len(missing) - _MOST} more" * (len(missing) > _MOST)
                listed = "; ".join(missing[:_MOST])
                note += f" Not run on {model}: {listed}{more}."
        found.append(
            write(
                f"Results, {group}" if group else "Results",
                table.named(of_group).rename({"model": table.kind}),
                note=note,
                left=2,
            )
        )
    return found
