"""The tables that reports share, as Markdown, and how numbers are written."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plan
from experiments.comparisons import Compared, Metric
from experiments.runs import Runs
from experiments.statistics import BETTER, RULE, WORSE
from experiments.study import Arm

NONE = "-"
_MOST = 8  # values that are listed
# Fields of a configuration that a report names, and what it calls them.
_FIELDS = {
    "dataset": "data set",
    "validation_fraction": "fraction held out for validation",
    "train_fraction": "fraction of the training images used",
    "width": "width of the first stage",
    "epochs": "epochs",
    "max_steps": "limit on steps",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "max_learning_rate": "peak learning rate",
    "schedule": "schedule",
    "strategy": "strategy",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "augment": "augmentation",
    "precision": "precision",
}
# Those that make a study small.
_SIZES = ("dataset", "train_fraction", "width", "epochs", "batch_size", "max_steps")
_PROVENANCE = ("device", "python", "jax", "flax", "optax", "plp_optax", "commit")

# -- Numbers and Markdown --------------------------------------------------------------


def number(value: float | None, digits: int = 4) -> str:
    """``0.5553``, or a dash for None and NaN."""
    return NONE if value is None or np.isnan(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """``+0.0120``, or a dash for None and NaN."""
    return NONE if value is None or np.isnan(value) else f"{value:+z.{digits}f}"


def spread(values: np.ndarray, digits: int = 4) -> str:
    """``mean ± standard deviation`` (of the sample); of one value the value alone."""
    if not values.size:
        return NONE
    mean = number(float(values.mean()), digits)
    if values.size == 1:
        return mean
    return f"{mean} ± {number(float(values.std(ddof=1)), digits)}"


def interval(ends: tuple[float, float] | None, digits: int = 4) -> str:
    """``[-0.0100, +0.0200]``, or a dash for None."""
    return NONE if ends is None else f"[{', '.join(signed(e, digits) for e in ends)}]"


def join(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def markdown(
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    note: str = "",
    left: int = 1,
) -> str:
    """A table with its title above and its note below.

    Columns that are empty in all rows are left out.

    Args:
      title: What the table shows.
      header: Names of the columns.
      rows: Cells.
      note: What a reader must know to read it.
      left: How many columns are text; the rest are numbers, and aligned to the right.
    """
    body = [list(row) for row in rows]
    kept = [
        i for i in range(len(header)) if not all(row[i] in ("", NONE) for row in body)
    ]
    marks = [":--" if i < left else "--:" for i in kept]
    lines = [[header[i] for i in kept], marks, *([r[i] for i in kept] for r in body)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{title}**\n\n{text}" + (f"\n\n*{note}*" if note else "")


# -- Comparisons -----------------------------------------------------------------------


def comparisons(runs: Runs, found: Sequence[Compared]) -> list[str]:
    """A table for each metric, with a verdict for each comparison."""
    by_metric: dict[Metric, list[Compared]] = {}
    for c in found:
        by_metric.setdefault(c.metric, []).append(c)
    tables = [_compared(runs, metric, cs) for metric, cs in by_metric.items()]
    return [*tables, RULE] if tables else []


def _compared(runs: Runs, metric: Metric, found: Sequence[Compared]) -> str:
    rows = []
    for c in found:
        d = c.difference
        verdict = f"**{d.verdict}**" if d.verdict in (BETTER, WORSE) else d.verdict
        diverged = f"; diverged: {c.diverged[0]} / {c.diverged[1]}"
        rows.append(
            [
                *(c.model, runs.label(c.arm), runs.label(c.control), verdict),
                f"{d.n}{diverged if any(c.diverged) else ''}",
                signed(d.mean, metric.digits),
                interval(d.interval, metric.digits),
                f"{d.wins} / {d.ties} / {d.losses}",
                _p(d.corrected_p),
            ]
        )
    better = "higher" if metric.higher_is_better else "lower"
    return markdown(
        f"{metric.title}: arm minus control ({metric.unit}; {better} is better)",
        [
            *(runs.kind, "arm", "control", "verdict", "pairs", "difference"),
            *("95 % interval", "better / tied / worse", "corrected p"),
        ],
        rows,
        note=metric.note,
        left=4,
    )


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else number(value, 3)


# -- Results ---------------------------------------------------------------------------


def results(runs: Runs, metrics: Sequence[Metric]) -> list[str]:
    """Every arm's results: a table for each part of the study.

    Arms that were not run are named below the table.
    """
    groups: dict[str, list[Arm]] = {}
    for arm in runs.study.arms:
        if any(runs.of(model, arm.name) for model in runs.models):
            groups.setdefault(arm.group, []).append(arm)
    return [_results(runs, metrics, group, arms) for group, arms in groups.items()]


def _results(
    runs: Runs, metrics: Sequence[Metric], group: str, arms: Sequence[Arm]
) -> str:
    rows, notes = [], []
    for model in runs.models:
        for arm in arms:
            if runs.of(model, arm.name):
                finished = runs.finished(model, arm.name)
                values = [[m.read(r, ()) for r in finished] for m in metrics]
                cells = [
                    spread(np.array([v for v in of_metric if v is not None]), m.digits)
                    for m, of_metric in zip(metrics, values, strict=True)
                ]
                rows.append([model, arm.label, runs.count(model, arm.name), *cells])
        every = [a for a in runs.study.arms if a.group == group and a.trains(model)]
        missing = [arm.label for arm in every if not runs.of(model, arm.name)]
        if missing:
            more = f"; and {len(missing) - _MOST} more"
            notes.append(
                f" Not run on {model}: {'; '.join(missing[:_MOST])}"
                f"{more if len(missing) > _MOST else ''}."
            )
    return markdown(
        f"Results, {group}" if group else "Results",
        (runs.kind, "arm", "runs", *map(_column, metrics)),
        rows,
        note=f"Mean ± standard deviation over the finished runs.{''.join(notes)}",
        left=2,
    )


def _column(metric: Metric) -> str:
    if metric.unit in ("epochs", metric.label):
        return metric.label
    return f"{metric.label} ({metric.unit.replace('points', '%')})"


# -- What was run ----------------------------------------------------------------------


def settings(runs: Runs) -> str:
    """The configurations; fields that differ between arms list all their values."""
    configs = [runs.config(record) for record in runs.records]
    seeds = sorted({record.seed for record in runs.records})
    diverged = sum(record.diverged for record in runs.records)
    rows = [
        (f"{runs.kind}s", ", ".join(runs.models)),
        *(
            (label, _distinct(config.get(name) for config in configs))
            for name, label in _FIELDS.items()
        ),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
        ("runs", f"{len(configs) - diverged} finished, {diverged} diverged"),
    ]
    return markdown(
        "Settings", ("setting", "value"), [r for r in rows if r[1] != NONE], left=2
    )


def versions(runs: Runs) -> str:
    """Where the finished runs were made, and with what."""
    results = [record.result for record in runs.records if not record.diverged]
    rows = [
        (name.replace("_", "\\_"), _distinct(result.get(name) for result in results))
        for name in _PROVENANCE
    ]
    return markdown(
        "Versions", ("what", "version"), [r for r in rows if r[1] != NONE], left=2
    )


def _distinct(values: Iterable[Any]) -> str:
    found = {value for value in values if value is not None}
    kept = sorted(found, key=lambda v: (isinstance(v, str), v))
    more = f" and {len(kept) - _MOST} more" if len(kept) > _MOST else ""
    return ", ".join(map(_written, kept[:_MOST])) + more or NONE


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shortfalls(runs: Runs) -> list[str]:
    """How the runs fall short of the study at full scale: ``width 4 instead of 64``."""
    study, full = runs.study, runs.study.scale("full")
    found: dict[str, None] = {}
    if study.execute is None:
        for model in runs.models:
            for arm in study.arms:
                for record in runs.of(model, arm.name)[:1]:
                    ours = runs.config(record)
                    wanted = runs.complete(
                        plan.configure(study, full.fields, model, arm)
                    )
                    for name in _SIZES:
                        if ours[name] != wanted[name]:
                            limit = wanted[name] or "no limit"
                            text = f"{_FIELDS[name]} {ours[name]} instead of {limit}"
                            found[text] = None
    short = list(found)
    seeds = len({record.seed for record in runs.records})
    if seeds < full.seeds:
        short.append(f"{seeds} seed{'s'[: seeds > 1]} instead of {full.seeds}")
    if missing := [model for model in full.models if model not in runs.models]:
        short.append(f"{join(missing)} not run")
    return short


def published(name: str) -> dict[str, Any]:
    """A paper's numbers, from ``experiments/published``."""
    path = Path(__file__).parent / "published" / f"{name}.json"
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
