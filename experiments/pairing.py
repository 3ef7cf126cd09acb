"""From records to paired values: what two arms attained on the seeds of both."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.records import Record
from experiments.statistics import PairedDifference, TimeToTarget, compare
from training.errors import RunError


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is compared: an entry of a run's result.

    Attributes:
      field: Its name there.
      label: As sentences call it.
      unit: Of its differences.
      higher_is_better: Whether a higher value is the better one.
      scale: What the entry is multiplied by to have that unit.
    """

    field: str
    label: str
    unit: str
    higher_is_better: bool = False
    scale: float = 1.0


TEST_ACCURACY = Metric("test_accuracy", "test accuracy", "points", True, 100.0)
VALIDATION_LOSS = Metric("validation_loss", "validation loss", "nats")


class Pairs(NamedTuple):
    """A metric's values of two arms, on the seeds that both ran and finished.

    Attributes:
      arm: Of the arm, in the metric's unit, by seed.
      control: Of the control, likewise.
      seeds: The seeds.
      diverged: How many runs of the arm and of the control diverged, of the seeds
        that both ran.
    """

    arm: tuple[float, ...]
    control: tuple[float, ...]
    seeds: tuple[int, ...]
    diverged: tuple[int, int]


def paired(
    records: Sequence[Record], metric: Metric, arm: str, control: str, model: str
) -> Pairs:
    """Values of two arms on the seeds that both ran, without runs that diverged.

    Args:
      records: Of one study at one scale.
      metric: What to take.
      arm: Name of an arm.
      control: Name of the arm that it is compared with.
      model: The network.

    Raises:
      RunError: If an arm ran a seed more than once, or a run lacks the metric.
    """
    runs = _shared(records, arm, control, model)
    finished = {s: r for s, r in runs.items() if not (r[0].diverged or r[1].diverged)}
    return Pairs(
        arm=tuple(_value(run, metric) for run, _ in finished.values()),
        control=tuple(_value(run, metric) for _, run in finished.values()),
        seeds=tuple(finished),
        diverged=(
            sum(run.diverged for run, _ in runs.values()),
            sum(run.diverged for _, run in runs.values()),
        ),
    )


def difference(
    records: Sequence[Record], metric: Metric, arm: str, control: str, model: str
) -> PairedDifference:
    """:func:`compare` of what :func:`paired`, with the same arguments, gives."""
    pairs = paired(records, metric, arm, control, model)
    found = compare(pairs.arm, pairs.control, higher_is_better=metric.higher_is_better)
    return dataclasses.replace(found, diverged=pairs.diverged)


def target_accuracy(
    records: Sequence[Record], control: str, model: str, fraction: float = 0.95
) -> float | None:
    """Validation accuracy to reach: a fraction of the control's mean best one.

    It is set by the control alone, so that no arm can be flattered by its choice, and
    below the control's best, so that nearly all runs of a working control reach it.

    Args:
      records: Of one study at one scale.
      control: Name of the arm that sets the target.
      model: The network.
      fraction: Of the mean over seeds of the best validation accuracy.

    Returns:
      The target, a fraction; None if the control has no run with such an accuracy.
    """
    best = []
    for run in _by_seed(records, control, model).values():
        accuracies = _accuracies(run.history)
        if accuracies and not run.diverged:
            best.append(max(accuracies.values()))
    return fraction * float(np.mean(best)) if best else None


def epochs_to_target(history: Sequence[Mapping[str, Any]], target: float) -> int | None:
    """The first epoch whose validation accuracy reaches a target; None if none does."""
    reached = (e for e, value in _accuracies(history).items() if value >= target)
    return next(reached, None)


def time_to_target(
    records: Sequence[Record], arm: str, control: str, model: str, target: float
) -> TimeToTarget:
    """Compares how soon two arms reach a target (:func:`target_accuracy`).

    Args:
      records: Of one study at one scale.
      arm: Name of an arm.
      control: Name of the arm that it is compared with.
      model: The network.
      target: Validation accuracy, a fraction.

    Raises:
      RunError: If an arm ran a seed more than once.
    """
    runs = _shared(records, arm, control, model).values()
    epochs = np.array(
        [
            [epochs_to_target(r.history, target) or math.inf for r in pair]
            for pair in runs
        ]
    ).reshape(-1, 2)
    wins = int((epochs[:, 0] < epochs[:, 1]).sum())
    losses = int((epochs[:, 0] > epochs[:, 1]).sum())
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    n = len(epochs)
    medians = np.median(epochs, axis=0) if n else (math.nan, math.nan)
    reached = np.isfinite(epochs).sum(axis=0)
    return TimeToTarget(
        target=target,
        n=n,
        median=(float(medians[0]), float(medians[1])),
        reached=(int(reached[0]), int(reached[1])),
        wins=wins,
        ties=n - wins - losses,
        losses=losses,
        p=float(p) if n else None,
    )


def _value(run: Record, metric: Metric) -> float:
    value = run.result.get(metric.field)
    if value is None:
        raise RunError(
            f"the {run.model} run of {run.arm} with seed {run.seed} has no "
            f"{metric.field}: run it anew with a validation and a test part"
        )
    return metric.scale * value


def _accuracies(history: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Validation accuracies by epoch, without those that are not finite."""
    found = {e["epoch"]: e.get("validation_accuracy") for e in history}
    return {epoch: value for epoch, value in found.items() if value is not None}


def _by_seed(records: Sequence[Record], arm: str, model: str) -> dict[int, Record]:
    runs: dict[int, Record] = {}
    for record in records:
        if (record.arm, record.model) == (arm, model):
            if record.seed in runs:
                raise RunError(
                    f"there are two {model} runs of {arm} with seed {record.seed}: "
                    f"report on one scale at a time"
                )
            runs[record.seed] = record
    return runs


def _shared(
    records: Sequence[Record], arm: str, control: str, model: str
) -> dict[int, tuple[Record, Record]]:
    arms = _by_seed(records, arm, model)
    controls = _by_seed(records, control, model)
    return {s: (arms[s], controls[s]) for s in sorted(arms.keys() & controls.keys())}
