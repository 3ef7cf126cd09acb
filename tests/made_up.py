"""Runs and differences whose truth is known."""

import numpy as np

from experiments.records import Record
from experiments.statistics import compare


def run(arm, seed, *, curve=(0.5,), model="resnet18", **result):
    """A run that attains these validation accuracies, epoch by epoch."""
    history = [
        {"epoch": e, "validation_accuracy": a, "validation_loss": 1.0}
        for e, a in enumerate(curve, start=1)
    ]
    return Record(arm, model, seed, config={}, result=result, history=history)


def runs(arm, accuracies):
    return [
        run(arm, seed, test_accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]


def around(center, n, spread=0.3):
    """Differences with exactly this mean, and their own sign each."""
    offsets = np.random.default_rng(n).normal(size=n)
    offsets = (offsets - offsets.mean()) / offsets.std()
    return center + spread * offsets


def difference(center, n, *, spread=0.3, **kwargs):
    return compare(around(center, n, spread), np.zeros(n), **kwargs)
