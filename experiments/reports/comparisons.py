"""Every comparison that a study declares, computed and corrected."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.pairing import (
    TEST_ACCURACY,
    VALIDATION_LOSS,
    Metric,
    difference,
    target_accuracy,
    time_to_target,
)
from experiments.reports.runs import Runs
from experiments.statistics import PairedDifference, TimeToTarget, corrected
from experiments.study import Comparison

METRICS = (TEST_ACCURACY, VALIDATION_LOSS)


class Compared(NamedTuple):
    """One comparison on one network.

    Attributes:
      model: The network.
      comparison: The arm and its control.
      differences: By metric.
      time: Epochs to a target accuracy; None where the control sets no target.
    """

    model: str
    comparison: Comparison
    differences: dict[Metric, PairedDifference]
    time: TimeToTarget | None


def compare(runs: Runs) -> list[Compared]:
    """Computes all comparisons of a study on all networks that have runs.

    P-values are corrected over all of them together, whatever the metric.
    """
    finished = [record for record in runs.records if not record.diverged]
    metrics = [
        metric
        for metric in METRICS
        if all(record.result.get(metric.field) is not None for record in finished)
    ]
    found = [
        _compare(runs, model, comparison, metrics)
        for model in runs.models
        for comparison in runs.study.comparisons
    ]
    differences = iter(corrected([d for c in found for d in c.differences.values()]))
    times = iter(corrected([c.time for c in found if c.time is not None]))
    return [
        c._replace(
            differences={metric: next(differences) for metric in c.differences},
            time=None if c.time is None else next(times),
        )
        for c in found
    ]


def _compare(
    runs: Runs, model: str, comparison: Comparison, metrics: Sequence[Metric]
) -> Compared:
    records, pair = runs.records, (comparison.arm, comparison.control, model)
    target = target_accuracy(records, comparison.control, model)
    return Compared(
        model,
        comparison,
        {metric: difference(records, metric, *pair) for metric in metrics},
        None if target is None else time_to_target(records, *pair, target),
    )


def metrics(found: Sequence[Compared]) -> tuple[Metric, ...]:
    """The metrics that comparisons were made in."""
    return tuple(found[0].differences) if found else ()
