"""The comparisons that a study declares: what is compared, and how it came out."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.records import Record
from experiments.runs import Runs, history
from experiments.statistics import PairedDifference, compare, corrected

# The target of METRICS' last entry, as a part of the control's mean best accuracy. The
# control alone sets it, so that no arm can be favoured by its choice.
TARGET = 0.95


class Metric(NamedTuple):
    """What is compared.

    Attributes:
      name: Short, for names of files.
      label: As reports call it.
      unit: Of its differences.
      higher_is_better: Whether a higher value is the better one.
      digits: Decimals to print.
      read: Maps a run, and the finished runs of its control on the same network, to
        its value; to None where the run has none.
      note: What a reader must know of it.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool
    digits: int
    read: Callable[[Record, Sequence[Record]], float | None]
    note: str = ""

    @property
    def title(self) -> str:
        """The label with a capital at its beginning."""
        return self.label[:1].upper() + self.label[1:]


# A run that averages parameters is judged by the average at its end.
def _test_accuracy(record: Record, controls: Sequence[Record]) -> float | None:
    result = record.result
    accuracy: float | None = result.get(
        "average_test_accuracy", result.get("test_accuracy")
    )
    return None if accuracy is None else 100 * accuracy


def _validation_loss(record: Record, controls: Sequence[Record]) -> float | None:
    last = record.history[-1] if record.history else {}
    return last.get("average_validation_loss", record.result.get("validation_loss"))


def _best_epoch(record: Record, controls: Sequence[Record]) -> float | None:
    # Without a validation part the last epoch counts, which compares nothing.
    has_choice = record.result.get("validation_loss") is not None
    return record.result["best_epoch"] if has_choice else None


def _epochs_to_target(record: Record, controls: Sequence[Record]) -> float | None:
    target = target_accuracy(controls)
    return None if target is None else epochs_to(record, target)


# What is compared in runs of the training recipe. The first one is charted first.
METRICS = (
    Metric("test_accuracy", "test accuracy", "points", True, 2, _test_accuracy),
    Metric("validation_loss", "validation loss", "nats", False, 4, _validation_loss),
    Metric(
        "best_epoch",
        "best epoch",
        "epochs",
        False,
        1,
        _best_epoch,
        "The epoch with the lowest validation loss. Earlier is counted as better, as "
        "in the PLP paper; it can also mean that an arm overfits sooner.",
    ),
    Metric(
        "epochs_to_target",
        "epochs to target",
        "epochs",
        False,
        1,
        _epochs_to_target,
        f"Epochs until the validation accuracy first reaches {100 * TARGET:.0f} % of "
        f"the mean best one of the control's runs. A run that never does counts as if "
        f"it did in the epoch after its last.",
    ),
)


def _seconds_to_target(record: Record, controls: Sequence[Record]) -> float | None:
    seconds, target = seconds_by_epoch(record), target_accuracy(controls)
    if seconds is None or target is None:
        return None
    until = epochs_to(record, target)
    return float(np.append(seconds, np.mean(seconds))[:until].sum())


# For studies that compare times.
SECONDS_TO_TARGET = Metric(
    "seconds_to_target",
    "seconds to target",
    "s",
    False,
    2,
    _seconds_to_target,
    f"Training time until the validation accuracy first reaches "
    f"{100 * TARGET:.0f} % of the mean best one of the control's runs. "
    f"A run that never does counts as if it did after one more epoch.",
)


class Compared(NamedTuple):
    """A comparison on a network in a metric.

    Attributes:
      model: The network.
      arm: The name of an arm.
      control: The name of the arm that it is compared with.
      metric: What was compared.
      difference: Arm minus control, on the seeds on which both finished.
      diverged: Runs of the arm and of the control that diverged, on the seeds that
        both ran. They are left out of the difference.
    """

    model: str
    arm: str
    control: str
    metric: Metric
    difference: PairedDifference
    diverged: tuple[int, int]


def compare_all(runs: Runs, metrics: Sequence[Metric] = METRICS) -> list[Compared]:
    """All comparisons of a study in all metrics, on all networks that have runs.

    Comparisons without a pair are left out: arms that were not run, networks without a
    validation part. One whose runs all diverged appears once, in the first metric.
    P-values are corrected over the comparisons in the same metric.
    """
    found = []
    for metric in metrics:
        of_metric = [
            _compare(runs, model, arm, control, metric)
            for model in runs.models
            for arm, control in runs.study.comparisons
        ]
        kept = [
            c
            for c in of_metric
            if c.difference.n or (metric is metrics[0] and any(c.diverged))
        ]
        differences = corrected([c.difference for c in kept])
        found += [
            c._replace(difference=d) for c, d in zip(kept, differences, strict=True)
        ]
    return found


def _compare(
    runs: Runs, model: str, arm: str, control: str, metric: Metric
) -> Compared:
    pairs = runs.pairs(model, arm, control)
    controls = runs.finished(model, control)
    values = [
        [metric.read(record, controls) for record in pair]
        for pair in pairs
        if not any(record.diverged for record in pair)
    ]
    ours, theirs = (
        np.array([pair for pair in values if None not in pair], np.float64)
        .reshape(-1, 2)
        .T
    )
    diverged = (sum(a.diverged for a, _ in pairs), sum(b.diverged for _, b in pairs))
    difference = compare(ours, theirs, higher_is_better=metric.higher_is_better)
    return Compared(model, arm, control, metric, difference, diverged)


def target_accuracy(controls: Sequence[Record]) -> float | None:
    """``TARGET`` of the mean best validation accuracy of runs; None if none has one."""
    best = [
        np.nanmax(accuracy)
        for record in controls
        if np.isfinite(accuracy := history(record, "validation_accuracy")).any()
    ]
    return TARGET * float(np.mean(best)) if best else None


def epochs_to(record: Record, target: float) -> int:
    """The first epoch whose validation accuracy is at least ``target``.

    A run that never gets there counts as if it did in the epoch after its last.
    """
    reached = history(record, "validation_accuracy") >= target
    return int(reached.argmax()) + 1 if reached.any() else len(reached) + 1


def seconds_by_epoch(record: Record) -> np.ndarray | None:
    """The training time of each epoch in seconds: ``[epochs]``; None if not known."""
    rates = history(record, "images_per_second")
    if not np.isfinite(rates).all():
        return None
    # All epochs have the same number of images.
    return record.result["train_seconds"] * (1 / rates) / (1 / rates).sum()
