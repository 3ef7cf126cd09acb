"""Predictors on full batches: gradients to a gap, at rates tuned with one budget.

The study does not use the training recipe: ``experiments.predictors`` has the problems
and the optimizers. In place of a network's name, its records have a problem's.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.predictors import descent
from experiments.predictors.descent import METHODS
from experiments.predictors.problems import PROBLEMS
from experiments.study import Comparison, Outcome, Scale, Study, Tick
from experiments.tuning import arms, rounded
from training.errors import DivergedError
from training.run.provenance import provenance

_POINTS = 40  # of a curve, in equal ratios


def execute(config: dict[str, Any], tick: Tick) -> Outcome:
    """Minimises a problem with one arm.

    Args:
      config: ``method``, ``matched`` (whether to run its base at its rate times its
        drift), ``steps``, ``model`` (a problem) and ``seed``.
      tick: Called before and after.

    Returns:
      ``result`` has the gradients to the coarse and the fine gap
      (``gradients_coarse``, ``gradients_fine``; absent if it never gets
      there), ``gap`` at the end, ``steps``, ``learning_rate``, ``momentum``, ``drift``,
      and ``curvature``, the largest one at the start of the tuning seed.
      ``history`` has ``gradients`` and the lowest ``gap`` so far.

    Raises:
      DivergedError: If a value is not finite.
    """
    model, seed, method = config["model"], config["seed"], config["method"]
    tick(0.0, "tuning and descending")
    tuned = descent.tune(model, method, config["steps"])
    drift = descent.drift_of(model, method, config["steps"])
    rate, name, momentum = tuned.value, method, tuned.run.momentum
    if config["matched"]:
        rate, name = rate * drift, METHODS[method].base
    (run,) = descent.descend(model, name, seed, [rate], [momentum], config["steps"])
    tick(1.0, f"gap {run.gap[-1]:.3g}")
    if not np.isfinite(run.gap).all():
        raise DivergedError(f"the loss is not finite with a rate of {rate:.3g}")
    result: dict[str, Any] = {
        "gap": rounded(run.gap[-1]),
        "steps": config["steps"],
        "learning_rate": rounded(rate),
        "curvature": rounded(descent.curvature(model)),
        "momentum": momentum,
        "drift": rounded(drift),
        **provenance(),
    }
    for name, gap in zip(("coarse", "fine"), PROBLEMS[model](0).gaps, strict=True):
        count = run.to(gap)
        if count is not None:
            result[f"gradients_{name}"] = count
    lowest = np.maximum(np.minimum.accumulate(run.gap), 1e-16)
    places = np.unique(np.geomspace(1, len(lowest), _POINTS).astype(int)) - 1
    history = [
        {"gradients": int(run.gradients[i]), "gap": rounded(lowest[i])} for i in places
    ]
    return Outcome(result, history, {})


_FULL = Scale("full", models=tuple(PROBLEMS), seeds=20, fields={"steps": 2000})

STUDY = Study(
    name="predictors",
    title="Predictors on full batches",
    question="Do coefficients that the updates set, or momentum over the slow "
    "trajectory, save gradients over a tuned base, over the base at the matched rate, "
    "and over L-BFGS?",
    arms=arms(METHODS),
    scales=(
        _FULL,
        dataclasses.replace(_FULL, name="small", seeds=10),
        dataclasses.replace(_FULL, name="quick", seeds=5, fields={"steps": 800}),
    ),
    extra_comparisons=tuple(
        Comparison(arm, control)
        for arm in ("ema", "outer", "sliding", "revert", "restarted")
        for control in ("nesterov", "lbfgs")
    ),
    execute=execute,
    setups=PROBLEMS,
)
