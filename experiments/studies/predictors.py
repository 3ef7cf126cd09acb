"""Predictors on full batches: gradients to a gap, at rates tuned with one budget.

The study does not use the training recipe: ``experiments.predictors`` has the problems
and the optimizers. In place of a network's name, its records have a problem's.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.predictors import descent
from experiments.predictors.methods import METHODS
from experiments.predictors.problems import PROBLEMS
from experiments.study import Arm, Comparison, Outcome, Scale, Study, Tick
from training.errors import ConfigError, DivergedError
from training.run.provenance import provenance

_LABELS = {
    "gd": "gradient descent",
    "nesterov": "Nesterov",
    "adam": "Adam",
    "lbfgs": "L-BFGS",
    "plp": "PLP",
    "ema": "EMA-Nesterov",
    "outer": "outer Nesterov",
    "sliding": "sliding window",
    "revert": "sliding window, revert",
    "restarted": "restarted window",
    "restarted-nesterov": "restarted window on Nesterov",
}
_POINTS = 40  # of a curve, in equal ratios


def execute(config: dict[str, Any], tick: Tick) -> Outcome:
    """Minimises a problem with one arm.

    Args:
      config: ``method``, ``matched`` (whether to run its base at its rate times its
        drift), ``steps``, ``model`` (a problem) and ``seed``.
      tick: Called before and after.

    Returns:
      ``result`` has the gradients and seconds to the coarse and the fine gap
      (``gradients_coarse``, ``seconds_coarse`` and so on; absent if it never gets
      there), ``gap`` at the end, ``steps``, ``learning_rate``, ``momentum``, ``drift``.
      ``history`` has ``gradients`` and the lowest ``gap`` so far. ``measures`` has the
      last gaps of the tuning seed by rate: ``rates`` and ``gaps``, -1 if it diverged.

    Raises:
      ConfigError: If there is no such problem.
      DivergedError: If a value is not finite.
    """
    model, seed, method = config["model"], config["seed"], config["method"]
    if model not in PROBLEMS:
        raise ConfigError(f"--models {model}: choose from {', '.join(PROBLEMS)}")
    tick(0.0, "tuning and descending")
    tuned = descent.tune(model, method, config["steps"])
    rate, name = tuned.rate, method
    if config["matched"]:
        rate, name = rate * _drift(method, tuned), METHODS[method].base
    (run,) = descent.descend(
        model, name, seed, [rate], [tuned.momentum], config["steps"]
    )
    tick(1.0, f"gap {run.gap[-1]:.3g}")
    if not np.isfinite(run.gap).all():
        raise DivergedError(f"the loss is not finite with a rate of {rate:.3g}")
    result: dict[str, Any] = {
        "gap": _short(run.gap[-1]),
        "steps": config["steps"],
        "learning_rate": _short(rate),
        "momentum": tuned.momentum,
        "drift": _short(_drift(method, tuned)),
        **provenance(),
    }
    for name, gap in zip(("coarse", "fine"), PROBLEMS[model](0).gaps, strict=True):
        count = run.to(gap)
        if count is not None:
            result[f"gradients_{name}"] = count
            result[f"seconds_{name}"] = _short(
                run.seconds * count / max(run.gradients[-1], 1)
            )
    lowest = np.maximum(np.minimum.accumulate(run.gap), 1e-16)
    places = np.unique(np.geomspace(1, len(lowest), _POINTS).astype(int)) - 1
    history = [
        {"gradients": int(run.gradients[i]), "gap": _short(lowest[i])} for i in places
    ]
    measures = {}
    if not config["matched"]:
        measures = {
            "rates": list(map(_short, tuned.rates)),
            "gaps": [_short(gap) if np.isfinite(gap) else -1 for gap in tuned.gaps],
        }
    return Outcome(result, history, measures)


def _drift(method: str, tuned: descent.Tuned) -> float:
    drift = METHODS[method].drift
    return tuned.drift if drift is None else drift


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _arms() -> tuple[Arm, ...]:
    arms = []
    for name, method in METHODS.items():
        is_plain = method.base == name
        matched = None if is_plain else f"{name}-matched"
        arms.append(
            Arm(
                name,
                _LABELS[name],
                {"method": name, "matched": False},
                baseline=None if is_plain else method.base,
                matched=matched,
            )
        )
        if matched:
            label = f"{_LABELS[method.base]} at the rate of: {_LABELS[name]}"
            arms.append(Arm(matched, label, {"method": name, "matched": True}))
    return tuple(arms)


_FULL = Scale("full", models=tuple(PROBLEMS), seeds=20, fields={"steps": 2000})

STUDY = Study(
    name="predictors",
    title="Predictors on full batches",
    question="Do coefficients that the updates set, or momentum over the slow "
    "trajectory, save gradients over a tuned base, over the base at the matched rate, "
    "and over L-BFGS?",
    arms=_arms(),
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
)
