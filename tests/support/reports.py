"""Made-up records whose truth is known, and a reader of reports."""

import dataclasses
import re
import zlib

import numpy as np

from experiments import studies, table
from experiments.records import Header, Record
from experiments.reports import mechanism as mechanism_report
from experiments.studies import mechanism
from experiments.study import Arm, Scale, Study

LAYERS = ["stem/conv", "stage1/block0/conv1", "stage10/conv", "stage2/conv", "head"]
REGIMES = {regime.name: regime for regime in mechanism.REGIMES}
PROVENANCE = {
    **{"device": "1 x test device (cpu)", "python": "3.11", "jax": "0.10.2"},
    **{"flax": "0.12.8", "optax": "0.2.8", "plp_optax": "0.1.0", "commit": "c0ffee"},
}

# -- Two arms --------------------------------------------------------------------------

PAIR = Study(
    "pair",
    "Two arms",
    "Is new better than old?",
    (
        Arm("old", "old way", {"method": "sgd"}),
        Arm("new", "new way", {"method": "plp"}, baseline="old"),
    ),
    (Scale("full", ("tiny",), 5, {"dataset": "digits"}),),
)


def run(arm, seed, *, curve=(0.5,), model="tiny", **result):
    """A run with these validation accuracies, epoch by epoch."""
    history = [
        {"epoch": e, "validation_accuracy": a, "train_loss": 1.0, "train_accuracy": a}
        for e, a in enumerate(curve, start=1)
    ]
    return Record(arm, model, seed, config={}, result=result, history=history)


def table_of(records, study=PAIR, models=("tiny", "vgg16")):
    return table.make(study, Header(study.name, "full", list(models), {}), records)


# -- The project's studies -------------------------------------------------------------


def make(name, *, seeds=3, models=("tiny",), gains=None, arms=None, scale="quick"):
    """A study, a header, and records of its arms.

    Test accuracy has the ``gains`` by arm, or random ones, over a value of each seed.
    """
    study = studies.load(name)
    scale = study.scale(scale)
    scale = dataclasses.replace(
        scale, models=models, seeds=seeds, arms=arms or scale.arms
    )
    records = [
        made_up(task, None if gains is None else gains.get(task.arm.name, 0.0))
        for task in study.tasks(scale)
    ]
    return study, study.header(scale), records


def made_up(task, gain, epochs=6):
    rng = np.random.default_rng(task.seed)
    own = np.random.default_rng(zlib.crc32(str(task).encode()))
    if gain is None:
        gain = 0.01 * own.normal()
    time = np.arange(1, epochs + 1) / epochs
    accuracy = 0.4 + 0.2 * time + 0.01 * rng.normal() + gain
    loss = 2 - time - gain + 0.01 * rng.normal()
    loss[-2] -= 0.5  # the best epoch
    history = [
        {
            **{"epoch": e + 1, "step": 9 * (e + 1), "learning_rate": 0.1},
            **{"train_loss": loss[e] / 2, "train_accuracy": accuracy[e] + 0.1},
            **{"validation_loss": loss[e], "validation_accuracy": accuracy[e]},
        }
        for e in range(epochs)
    ]
    if "amplify" in task.config.get("method", ""):
        for e, metrics in enumerate(history):
            metrics["amplified"] = LAYERS[:1] if e % 2 else []
        history[1]["analysis"] = [
            {
                **{"layer": name, "score": 0.5, "noise_floor": 0.1},
                **{"z_score": z, "amplified": bool(z > 1)},
            }
            for name, z in zip(LAYERS, own.normal(size=len(LAYERS)), strict=True)
        ]
    best = int(np.argmin(loss))
    result = {
        **{"best_epoch": best + 1, "validation_loss": loss[best]},
        **{"test_accuracy": accuracy[best], "test_top1_error": 1 - accuracy[best]},
        **{"test_top5_error": 0.1, "test_loss": 1.0, "train_seconds": 90.0},
        **{"epochs": epochs, "steps": 9 * epochs, **PROVENANCE},
    }
    measures = {}
    if task.arm.group in REGIMES:
        measures = measured(task)
    return Record(
        *(task.arm.name, task.model, task.seed, task.config, result, history, measures)
    )


def measured(task):
    """As theory predicts: curvature rises to the limit of its regime at high rates.

    PLP is 1 % away from its matched rate, and 12.5 % from SGD.
    """
    method = task.arm.name.partition("-")[0]
    regime = REGIMES[task.arm.group]
    end = mechanism_report.limit(method, regime) if "high" in regime.name else 0.1
    time = np.linspace(0.1, 1, 9)
    products = end * np.minimum(1, 2 * time)
    distance = {"plp": {"sgd": 8 * [0.125]}, "matched": {"matched": 8 * [0.01]}}
    return {
        "step": list(range(0, 72, 8)),
        "top_eigenvalue": (products / task.config["learning_rate"]).tolist(),
        "distance": distance.get(method, {}),
    }


def diverge(record, epochs=2):
    return dataclasses.replace(
        record,
        result={"diverged": "the loss is no longer finite"},
        history=record.history[:epochs],
    )


def without_validation(record):
    """A run that held nothing out: its last epoch counts."""
    result = {n: v for n, v in record.result.items() if "validation" not in n}
    history = [
        {n: v for n, v in metrics.items() if "validation" not in n}
        for metrics in record.history
    ]
    result["best_epoch"] = len(history)
    return dataclasses.replace(record, result=result, history=history)


def tables_of(text):
    """Tables by the bold line above them: a list of rows of cells, header first."""
    found = {}
    for block in re.finditer(r"\*\*(.+?)\*\*\n\n((?:\|.*\n?)+)", text):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in block[2].strip().split("\n")
        ]
        found[block[1]] = [rows[0], *rows[2:]]
    return found
