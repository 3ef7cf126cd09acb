"""Predictors on small batches: the loss at the end, at rates tuned with one budget.

The study does not use the training recipe: ``experiments.predictors`` has what is
trained, and compiles it once for all rates and seeds.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from experiments.predictors import batches
from experiments.study import Arm, Comparison, Outcome, Scale, Study, Tick
from training.errors import ConfigError, DivergedError
from training.run.provenance import provenance

_LABELS = {
    "base": "base optimizer",
    "plp": "PLP",
    "ema": "EMA-Nesterov",
    "ema-published": "EMA-Nesterov, published schedule",
    "outer": "outer Nesterov",
    "lookahead": "Lookahead",
    "tail": "tail average",
    "gated": "adaptive window, noise gate",
    "to-zero": "base optimizer, rate to 0",
    "constant": "base optimizer, constant rate",
    "tail-constant": "tail average, constant rate",
}


def execute(config: dict[str, Any], tick: Tick) -> Outcome:
    """Trains with one arm.

    Args:
      config: ``method``, ``matched`` (whether to train with the base at this method's
        rate times its drift), ``steps``, ``model`` (what to train) and ``seed``.
      tick: Called before and after.

    Returns:
      ``result`` has the last ``loss`` on held-out data, ``learning_rate``, ``drift``
      and ``steps``. ``history`` has ``step`` and ``loss``. ``measures`` has the tuning:
      ``rates``, and ``losses`` by rate and tuning seed, -1 where one diverged.

    Raises:
      ConfigError: If there is no such setup.
      DivergedError: If the loss is not finite.
    """
    model, method, steps = config["model"], config["method"], config["steps"]
    if model not in batches.SETUPS:
        raise ConfigError(f"--models {model}: choose from {', '.join(batches.SETUPS)}")
    tick(0.0, "tuning and training")
    tuned = batches.tune(model, method, steps)
    course = batches.train(model, method, config["matched"], config["seed"], steps)
    loss = float(course.losses[-1])
    tick(1.0, f"loss {loss:.4f}")
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is not finite with a rate of {tuned.rate:.3g}")
    drift = batches.drift_of(model, method, steps)
    if callable(drift):
        drift = float(np.mean(drift(np.arange(steps) / steps)))
    result = {
        "loss": loss,
        "learning_rate": _short(tuned.rate),
        "drift": _short(drift),
        "steps": steps,
        **provenance(),
    }
    ends = np.linspace(0, steps, len(course.losses) + 1)[1:]
    history = [
        {"step": round(end), "loss": _short(value)}
        for end, value in zip(ends, course.losses, strict=True)
    ]
    measures = {}
    if not config["matched"]:
        measures = {
            "rates": list(map(_short, tuned.rates)),
            "losses": [
                [_short(x) if math.isfinite(x) else -1 for x in row]
                for row in tuned.losses
            ],
        }
    return Outcome(result, history, measures)


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _arms() -> tuple[Arm, ...]:
    arms = []
    for name, label in _LABELS.items():
        base = batches.METHODS[name].base
        matched = None if name == base else f"{name}-matched"
        baseline = None if name == base else base
        fields = {"method": name, "matched": False}
        arms.append(Arm(name, label, fields, baseline=baseline, matched=matched))
        if matched:
            label = f"{_LABELS[base]} at the rate of: {label}"
            arms.append(Arm(matched, label, {**fields, "matched": True}))
    return tuple(arms)


_FULL = Scale("full", models=tuple(batches.SETUPS), seeds=18, fields={"steps": 4000})

STUDY = Study(
    name="small_batches",
    title="Predictors on small batches",
    question="Does momentum over the slow trajectory, a window or an average lower the "
    "loss at the end of training on small batches, compared with the tuned base, and "
    "with the base at the matched rate?",
    arms=_arms(),
    scales=(
        _FULL,
        dataclasses.replace(_FULL, name="small", fields={"steps": 1000}),
        dataclasses.replace(
            _FULL, name="quick", models=("characters",), seeds=9, fields={"steps": 400}
        ),
    ),
    # Whether the base's schedule explains a gain, and whether an average makes up for a
    # rate that does not fall.
    extra_comparisons=(
        Comparison("to-zero", "base"),
        Comparison("lookahead", "to-zero"),
        Comparison("constant", "base"),
        Comparison("tail-constant", "base"),
        Comparison("tail-constant", "to-zero"),
    ),
    execute=execute,
)
