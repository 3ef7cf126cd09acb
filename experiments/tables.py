"""The tables that several reports share, and how numbers are written."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plan
from experiments.page import Table
from experiments.records import Record
from experiments.reports.runs import NOT_RUN, Runs
from experiments.study import Arm
from training.config import Config

NONE = "-"
_READ = (
    "Mean ± standard deviation over the finished runs. The best epoch is the one with "
    "the lowest validation loss; the test set was read once, with its parameters."
)
_NAMED = 8  # so many values, and arms that were not run, are named
_UNSET = "unset"
# Fields of a configuration that a report names, and what it calls them.
_FIELDS = {
    "dataset": "data set",
    "validation_fraction": "share held out for validation",
    "train_fraction": "share of the training images",
    "width": "width of the first stage",
    "epochs": "epochs",
    "max_steps": "steps at most",
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

# -- Numbers -----------------------------------------------------------------------


def number(value: float | None, digits: int = 4) -> str:
    """``0.5553``, or a dash for None and NaN."""
    return NONE if value is None or np.isnan(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """``+0.0120``, or a dash for None and NaN."""
    return NONE if value is None or np.isnan(value) else f"{value:+.{digits}f}"


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


# -- What was run ------------------------------------------------------------------


def setting(runs: Runs) -> Table:
    """What was run on what, from the records' configurations and results."""
    records = runs.records
    finished = [record for record in records if not record.diverged]
    seeds = sorted({record.seed for record in records})
    fields = [
        (label, _distinct(_field(record, name) for record in records))
        for name, label in _FIELDS.items()
    ]
    provenance = [
        (name, _distinct(record.result.get(name) or "unknown" for record in finished))
        for name in _PROVENANCE
    ]
    rows = [
        ("networks", ", ".join(runs.models)),
        *((label, value) for label, value in fields if value != _UNSET),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
        ("runs", f"{len(finished)} finished, {len(records) - len(finished)} diverged"),
        *provenance,
    ]
    return Table("What was run", ("", ""), rows, left=2)


def _field(record: Record, name: str) -> Any:
    """A field of a run's configuration; records may be older than the field."""
    return record.config.get(name, getattr(Config, name))


def _distinct(values: Iterable[Any]) -> str:
    kept = list(dict.fromkeys(map(_told, values)))
    more = f", and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
    return ", ".join(kept[:_NAMED]) + more or NONE


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return _UNSET if value is None else str(value)


def shortfalls(runs: Runs) -> list[str]:
    """How the runs fall short of the study at full scale: ``width 4 instead of 64``."""
    study = runs.study
    found: dict[str, set[str]] = {}
    for (model, arm), records in runs.by_arm().items():
        full = plan.configure(study, study.full, model, study.arm(arm))
        for name in _SIZES:
            ours, wanted = _field(records[0], name), getattr(full, name)
            if ours != wanted:
                told = f"{_FIELDS[name]} {ours} instead of {wanted or 'no limit'}"
                found.setdefault(name, set()).add(told)
    short = [told for name in found for told in sorted(found[name])]
    seeds = len({record.seed for record in runs.records})
    if seeds < study.full.seeds:
        plural = "" if seeds == 1 else "s"
        short.append(f"{seeds} seed{plural} instead of {study.full.seeds}")
    if missing := [model for model in study.full.models if model not in runs.models]:
        short.append(f"{join(missing)} {NOT_RUN}")
    return short


# -- Results -----------------------------------------------------------------------


def results(runs: Runs) -> list[Table]:
    """Every arm's best epoch, loss and accuracies, a table for each part of the study.

    Arms that were not run are named below the table.
    """
    arms = runs.study.arms
    return [
        _results(runs, group, [arm for arm in arms if arm.group == group])
        for group in dict.fromkeys(arm.group for arm in arms)
    ]


def _results(runs: Runs, group: str, arms: Sequence[Arm]) -> Table:
    rows, notes = [], []
    for model in runs.models:
        missing = [arm.label for arm in arms if not runs.of(model, arm.name)]
        for arm in arms:
            if not runs.of(model, arm.name):
                continue
            cells = [
                spread(runs.values(model, arm.name, name), digits)
                for name, digits in (
                    *(("best_epoch", 1), ("validation_loss", 4)),
                    *(("test_accuracy", 4), ("test_top5_error", 4)),
                )
            ]
            rows.append([model, arm.label, runs.count(model, arm.name), *cells])
        if missing:
            named = "; ".join(missing[:_NAMED])
            more = f"; and {len(missing) - _NAMED} more"
            notes.append(
                f"{NOT_RUN.capitalize()} on {model}: {named}"
                f"{more if len(missing) > _NAMED else ''}."
            )
    return Table(
        f"Results: {group}" if group else "Results",
        (
            *("network", "arm", "runs", "best epoch", "validation loss (nats)"),
            *("test accuracy", "top-5 error"),
        ),
        rows,
        note=" ".join([_READ, *notes]),
        left=2,
    )


def published(name: str) -> dict[str, Any]:
    """A paper's numbers, from ``experiments/published``."""
    path = Path(__file__).parent / "published" / f"{name}.json"
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
