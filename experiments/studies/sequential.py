"""Sequential learning: the extended Kalman filter and LMS in a network that grows.

Each sample of a stream is seen once, in order. The study does not use the training
recipe: ``experiments.sequential`` has the networks, their rules and the streams. In
place of a network's name, its records have the name of a setup: a stream, and the
thresholds of growth.
"""

import dataclasses
import math
from typing import Any

from experiments.sequential import arms
from experiments.study import Arm, Comparison, Outcome, Scale, Study, Tick
from experiments.tuning import rounded
from training.errors import DivergedError
from training.run.provenance import provenance


def execute(config: dict[str, Any], tick: Tick) -> Outcome:
    """Learns a stream with one arm.

    Args:
      config: ``algorithm``, ``model`` (a setup) and ``seed``.
      tick: Called before and after.

    Returns:
      ``result`` has the final ``test_error``, its mean along the stream
      (``mean_error``), ``units``, ``refused`` and ``chosen``, the tuned
      number. ``history`` has ``samples``, ``test_error`` and, of a network that grows,
      ``units``. ``measures`` has the tuning: ``candidates`` and their ``errors``, -1
      where it diverged.

    Raises:
      DivergedError: If the final error is not finite.
    """
    name, setup, seed = config["algorithm"], config["model"], config["seed"]
    tick(0.0, "tuning and learning")
    curve, tuned = arms.learn(name, setup, seed)
    tick(1.0, f"error {curve.final_error:.3g}")
    if math.isinf(curve.final_error):
        raise DivergedError(f"the test error is not finite with {tuned.value:g}")
    history = [
        {"samples": int(n), "test_error": rounded(error)}
        for n, error in zip(curve.samples, curve.error, strict=True)
    ]
    if name in ("ran-lms", "ran-ekf"):
        for point, units in zip(history, curve.units, strict=True):
            point["units"] = int(units)
    measures: dict[str, Any] = {
        "candidates": tuned.tried,
        "errors": [rounded(e) if math.isfinite(e) else -1 for e in tuned.runs],
    }
    result = {
        "test_error": curve.final_error,
        "mean_error": float(curve.error.mean()),
        "units": int(curve.units[-1]),
        "refused": curve.refused,
        "chosen": tuned.value,
        **provenance(),
    }
    return Outcome(result, history, measures)


_FULL = Scale("full", models=tuple(arms.SETUPS), seeds=20, fields={})

STUDY = Study(
    name="sequential",
    title="Sequential learning: a growing network with the extended Kalman filter",
    question="Does the resource-allocating network need fewer units and fewer samples "
    "with the extended Kalman filter than with LMS? And does growth gain anything over "
    "a fixed network of the same size?",
    arms=tuple(
        Arm(name, one.label, {"algorithm": name}, baseline=one.base)
        for name, one in arms.ALGORITHMS.items()
    ),
    scales=(
        _FULL,
        dataclasses.replace(_FULL, name="small", seeds=10),
        dataclasses.replace(_FULL, name="quick", seeds=10),
    ),
    extra_comparisons=(
        Comparison("fixed-ekf", "fixed-adam"),
        Comparison("ran-ekf", "fixed-ekf"),
        Comparison("ran-ekf", "kernel-ridge"),
    ),
    execute=execute,
    setups=arms.SETUPS,
)
