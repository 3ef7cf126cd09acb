"""Numbers that say how well a network does."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np


class Evaluation(NamedTuple):
    """How well a network does; the numbers are NaN if there are no examples."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float  # part of the examples that are classified correctly
    top1_error: float  # the other part
    top5_error: float  # part whose label is not among the five likeliest classes
    macro_f1: float  # see :func:`macro_f1`
    confusion: np.ndarray  # examples by label and prediction; [classes, classes + 1]

    @classmethod
    def of(cls, sums: Mapping[str, Any]) -> Self:
        """From the sums of an evaluation step over all batches."""
        count = float(sums["count"]) or math.nan
        return cls(
            loss=float(sums["loss"] / count),
            accuracy=float(sums["top1"] / count),
            top1_error=float(1 - sums["top1"] / count),
            top5_error=float(1 - sums["top5"] / count),
            macro_f1=macro_f1(sums["confusion"]),
            confusion=sums["confusion"],
        )

    def metrics(self, prefix: str, *names: str) -> dict[str, float]:
        """The numbers, or some of them, under names with a prefix."""
        numbers = self._asdict()
        del numbers["confusion"]
        return {f"{prefix}_{name}": numbers[name] for name in names or numbers}


def macro_f1(confusion: np.ndarray) -> float:
    """Mean over the classes of F1 = 2 TP / (2 TP + FP + FN).

    Classes that are neither among the labels nor among the predictions do not count, as
    in scikit-learn's ``f1_score(..., average="macro")``. NaN without examples. Columns
    beyond the classes are for examples without a prediction.
    """
    hits = np.diagonal(confusion)
    predicted = confusion[:, : len(confusion)].sum(0)
    total = predicted + confusion.sum(1)  # 2 TP + FP + FN
    occurs = total > 0
    return (
        float(np.mean(2 * hits[occurs] / total[occurs])) if occurs.any() else math.nan
    )
