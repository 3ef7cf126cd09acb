"""Decay without decaying: averages of a constant-rate run next to decayed runs.

An arm is a learning rate and a momentum. Its run has every read-out at four horizons,
and every decay that starts from it, so that all differences are within a run. Settings
are chosen on the seeds ``CHOICE_SEEDS`` and one half of the held-out data, and reported
on the other seeds and the other half.
"""

import math
from typing import Any

from experiments import readouts
from experiments.study import Arm, Outcome, Scale, Study, Tick
from experiments.tuning import check_setup, rounded
from training.errors import DivergedError
from training.run.provenance import provenance

CHOICE_SEEDS = (0, 1, 2)
_SEEDS = 12
_DECAYS = {"shapes": list(readouts.SHAPES), "parts": list(readouts.PARTS)}
_USUAL = 0.9
# By momentum. AdamW does better with short momentum in the study small_batches.
_RATES = {_USUAL: (0.0018, 0.0032, 0.0056, 0.01), 0.5: (0.0032, 0.0056, 0.01, 0.018)}


def execute(config: dict[str, Any], tick: Tick) -> Outcome:
    """Trains with one arm.

    Args:
      config: ``rate``, ``steps``, ``shapes`` and ``parts`` of the decays, ``model``
        (the task) and ``seed``; ``momentum``, if given.
      tick: Called after each loss.

    Returns:
      ``result`` has the last ``loss`` at the constant rate, in nats, and ``steps``.
      ``history`` has the fields of :class:`experiments.readouts.Readout`.

    Raises:
      ConfigError: If there is no such task.
      DivergedError: If the loss at the constant rate is not finite.
    """
    check_setup(config["model"], readouts.SIZES)
    task = readouts.make_task(config["model"], config.get("momentum", _USUAL))
    rows: list[dict[str, Any]] = []
    count = len(readouts.HORIZONS) * (
        19 + 2 * len(config["shapes"]) * len(config["parts"])
    )
    chosen = {name: config[name] for name in ("rate", "seed", "steps", *_DECAYS)}
    for line in readouts.run(task, **chosen):
        losses = {"choice": rounded(line.choice, 6), "loss": rounded(line.loss, 6)}
        rows.append({**line._asdict(), **losses})
        tick(min(len(rows) / count, 1.0), f"{line.readout} {line.loss:.4f}")
    last = [row["loss"] for row in rows if row["readout"] == "last"][-1]
    if not math.isfinite(last):
        raise DivergedError(f"the loss is not finite with a rate of {config['rate']}")
    return Outcome({"loss": last, "steps": config["steps"], **provenance()}, rows, {})


def _arm(rate: float, momentum: float) -> Arm:
    if momentum == _USUAL:
        return Arm(f"adamw-{rate:g}", f"rate {rate:g}", {"rate": rate})
    return Arm(
        f"adamw-{rate:g}-{momentum:g}",
        f"rate {rate:g}, momentum {momentum:g}",
        {"rate": rate, "momentum": momentum},
    )


STUDY = Study(
    name="readouts",
    title="Decay without decaying",
    question="Does an average of a run at a constant learning rate reach the loss of a "
    "run whose rate decays, with shape, length and rate of the decay tuned for each "
    "horizon?",
    arms=tuple(_arm(rate, b1) for b1, rates in _RATES.items() for rate in rates),
    scales=(
        Scale("full", tuple(readouts.SIZES), _SEEDS, {"steps": 16_000, **_DECAYS}),
        Scale("quick", ("characters",), _SEEDS, {"steps": 1600, **_DECAYS}),
    ),
    execute=execute,
)
