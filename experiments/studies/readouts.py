"""Decay without decaying: averages of a constant-rate run next to decayed runs.

An arm is a learning rate and a momentum. Its run has every read-out at four horizons,
and every decay that starts from it, so that all differences are within a run. Settings
are chosen on the seeds ``CHOICE_SEEDS`` and one half of the held-out data, and reported
on the other seeds and the other half.
"""

import math
from typing import Any

from experiments.readouts import courses, tasks
from experiments.study import Arm, Outcome, Scale, Study, Tick
from experiments.tuning import rounded
from training.errors import DivergedError
from training.run.provenance import provenance

CHOICE_SEEDS = (0, 1, 2)
FALLING = "falling"  # in the names of arms
_SEEDS = 12
_USUAL = 0.9
# By optimizer and momentum. AdamW does better with short momentum in the study
# small_batches.
_RATES = {
    ("adamw", _USUAL): (0.0018, 0.0032, 0.0056, 0.01),
    ("adamw", 0.5): (0.001, 0.0018, 0.0032, 0.0056, 0.01, 0.018),
    ("nesterov", _USUAL): (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8),
    ("nesterov", 0.5): (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4),
    ("nesterov", 0.95): (0.05, 0.1, 0.2, 0.4),
}
# Peaks of rates that fall as one over the square root of the step, at every horizon.
_FALLING = {
    ("adamw", 0.5): (0.0056, 0.01, 0.018, 0.032),
    ("nesterov", _USUAL): (0.1, 0.2, 0.4, 0.8, 1.6),
}


def execute(config: dict[str, Any], tick: Tick) -> Outcome:
    """Trains with one arm.

    Args:
      config: ``rate``, ``steps``, ``shapes`` and ``parts`` of the decays, ``model``
        (the task) and ``seed``; ``momentum``, ``exponent`` and ``data_dir``, if given.
      tick: Called after each loss.

    Returns:
      ``result`` has the last ``loss`` at the constant rate, in nats, and ``steps``.
      ``history`` has the fields of :class:`experiments.readouts.courses.Readout`.

    Raises:
      DivergedError: If the loss at the constant rate is not finite.
    """
    task = tasks.make(
        config["model"], config.get("data_dir"), config.get("momentum", _USUAL)
    )
    rows: list[dict[str, Any]] = []
    count = len(courses.HORIZONS) * (
        courses.CONSTANT + 2 * len(config["shapes"]) * len(config["parts"])
    )
    names = ("rate", "seed", "steps", "shapes", "parts", "exponent")
    given = {name: config[name] for name in names if name in config}
    for line in courses.run(task, **given):
        choice, loss = rounded(line.choice, 6), rounded(line.loss, 6)
        rows.append({**line._asdict(), "choice": choice, "loss": loss})
        tick(min(len(rows) / count, 1.0), f"{line.readout} {line.loss:.4f}")
    last = [row["loss"] for row in rows if row["readout"] == "last"][-1]
    if not math.isfinite(last):
        raise DivergedError(f"the loss is not finite with a rate of {config['rate']}")
    return Outcome({"loss": last, "steps": config["steps"], **provenance()}, rows, {})


def _arm(optimizer: str, rate: float, momentum: float, *, falls: bool = False) -> Arm:
    name, label = f"{optimizer}-{rate:g}", f"rate {rate:g}"
    fields: dict[str, Any] = {"rate": rate}
    if momentum != _USUAL:
        name, label = f"{name}-{momentum:g}", f"{label}, momentum {momentum:g}"
        fields["momentum"] = momentum
    if falls:
        name, label = f"{name}-{FALLING}", f"{label}, falling"
        fields |= {"exponent": 0.5, "shapes": [], "parts": []}
    models = tuple(m for m, (o, _) in tasks.TASKS.items() if o == optimizer)
    return Arm(name, label, fields, models=models)


_ARMS = tuple(
    _arm(optimizer, rate, momentum, falls=falls)
    for falls, tried in ((False, _RATES), (True, _FALLING))
    for (optimizer, momentum), rates in tried.items()
    for rate in rates
)
_DECAYS = {"shapes": list(courses.SHAPES), "parts": list(courses.PARTS)}

STUDY = Study(
    name="readouts",
    title="Decay without decaying",
    question="Does an average of a run at a constant learning rate reach the loss of a "
    "run whose rate decays, with shape, length and rate of the decay tuned for each "
    "horizon?",
    arms=_ARMS,
    scales=(
        Scale(
            "full",
            models=("characters-large", "cifar100-patches", "cifar100-resnet18"),
            seeds=_SEEDS,
            fields={"steps": 16_000, **_DECAYS},
        ),
        Scale(
            "quick",
            models=("characters",),
            seeds=_SEEDS,
            fields={"steps": 1600, **_DECAYS},
        ),
        Scale(
            "small",
            models=("characters-large", "cifar100-patches", "cifar100-resnet18"),
            seeds=_SEEDS,
            fields={"steps": 1600, **_DECAYS},
        ),
    ),
    execute=execute,
    setups=tasks.TASKS,
)
