"""Predictors on small batches: the loss at the end, at rates tuned with one budget.

The study does not use the training recipe: ``experiments.predictors`` has what is
trained, and compiles it once for all rates and seeds.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from experiments.predictors import batches
from experiments.study import Comparison, Outcome, Scale, Study, Tick
from experiments.tuning import arms, rounded
from training.errors import DivergedError
from training.run.provenance import provenance

_rounded = functools.partial(rounded, digits=5)


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
      DivergedError: If the loss is not finite.
    """
    model, method, steps = config["model"], config["method"], config["steps"]
    tick(0.0, "tuning and training")
    tuned = batches.tune(model, method, steps)
    course = batches.train(model, method, config["matched"], config["seed"], steps)
    loss = float(course.losses[-1])
    tick(1.0, f"loss {loss:.4f}")
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is not finite with a rate of {tuned.value:.3g}")
    drift = batches.drift_of(model, method, steps)
    if callable(drift):
        drift = float(np.mean(drift(np.arange(steps) / steps)))
    result = {
        "loss": loss,
        "learning_rate": _rounded(tuned.value),
        "drift": _rounded(drift),
        "steps": steps,
        **provenance(),
    }
    ends = np.linspace(0, steps, len(course.losses) + 1)[1:]
    history = [
        {"step": round(end), "loss": _rounded(value)}
        for end, value in zip(ends, course.losses, strict=True)
    ]
    measures = {}
    if not config["matched"]:
        measures = {
            "rates": list(map(_rounded, tuned.tried)),
            "losses": [
                [_rounded(c.last) if math.isfinite(c.last) else -1 for c in of_rate]
                for of_rate in tuned.runs
            ],
        }
    return Outcome(result, history, measures)


_FULL = Scale("full", models=tuple(batches.SETUPS), seeds=18, fields={"steps": 4000})

STUDY = Study(
    name="small_batches",
    title="Predictors on small batches",
    question="Does momentum over the slow trajectory, a window or an average lower the "
    "loss at the end of training on small batches, compared with the tuned base, and "
    "with the base at the matched rate?",
    arms=arms(batches.METHODS),
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
        # Whether an average that training follows is better than one that it ignores.
        Comparison("bema", "ema-of-bema"),
        Comparison("bema-tail", "ema-of-bema"),
        Comparison("pace", "ema-of-bema"),
        Comparison("pace", "base"),
        Comparison("plain", "base"),
        Comparison("plain-tail", "base"),
        Comparison("plain-gpa", "base"),
        Comparison("plain-gpa", "plain-tail"),
        Comparison("plain-gpa", "schedule-free"),
        Comparison("schedule-free", "base"),
        Comparison("schedule-free", "plain-tail"),
        Comparison("b1-0.5-tail", "b1-0.5"),
        Comparison("muon", "b1-0.5"),
        *(
            Comparison(arm, control)
            for control in ("muon-0.9", "muon-0.98")
            for arm, control in ((control, "muon"), ("muon-ema", control))
        ),
        Comparison("muon-tail", "muon"),
        # Whether the length of momentum explains what followed averages gain.
        *(
            Comparison(arm, control)
            for momentum in ("b1-0.5", "b1-0.7", "b1-0.95", "b1-0.975", "nesterov")
            for arm, control in ((momentum, "base"), ("plain-gpa", momentum))
        ),
    ),
    execute=execute,
    setups=batches.SETUPS,
)
