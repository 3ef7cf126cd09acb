"""Made-up records whose truth is known, and readers of reports."""

import dataclasses
import html.parser
import re
import zlib

import numpy as np

from experiments import paths, plan, studies
from experiments.records import Record
from experiments.reports import curvature
from experiments.studies import mechanism
from experiments.study import Scale
from training.config import experiment

LAYERS = ["stem/conv", "stage1/block0/conv1", "stage10/conv", "stage2/conv", "head"]
REGIMES = {regime.name: regime for regime in mechanism.REGIMES}
PROVENANCE = {
    **{"device": "1 x test device (cpu)", "python": "3.11", "jax": "0.10.2"},
    **{"flax": "0.12.8", "optax": "0.2.8", "plp_optax": "0.1.0", "commit": "c0ffee"},
}


def make(study, *, seeds=3, models=("tiny",), gains=None, arms=None, full=False):
    """Records of a study's arms, with ``gains`` in accuracy by arm, or random ones."""
    scale = study.full if full else study.quick
    scale = Scale(models, seeds, scale.fields, arms or scale.arms)
    return [
        made_up(task, None if gains is None else gains.get(task.arm.name, 0.0))
        for task in plan.tasks(study, scale)
    ]


def made_up(task, gain):
    rng = np.random.default_rng(zlib.crc32(f"{task.config.seed}".encode()))
    own = np.random.default_rng(zlib.crc32(task.name.encode()))
    if gain is None:
        gain = 0.01 * own.normal()
    epochs = task.config.epochs
    time = np.arange(1, epochs + 1) / epochs
    accuracy = 0.4 + 0.2 * time + 0.01 * rng.normal() + gain
    loss = 2 - time - gain + 0.01 * rng.normal()
    if epochs > 3:
        loss[-2] -= 0.5  # the best epoch
    rate = 0.05 * (9 / 8 if "matched" in task.arm.name else 1)
    history = [
        {
            **{"epoch": e + 1, "step": 9 * (e + 1), "learning_rate": rate},
            **{"train_loss": loss[e], "train_accuracy": accuracy[e]},
            **{"validation_loss": loss[e], "validation_accuracy": accuracy[e]},
        }
        for e in range(epochs)
    ]
    if "amplify" in task.config.method:
        for e, metrics in enumerate(history):
            metrics["amplified"] = LAYERS[:1] if e % 2 else []
            scores = own.normal(size=len(LAYERS))
            metrics["analysis"] = e == 1 and [
                {
                    **{"layer": name, "score": 0.5, "noise_floor": 0.1},
                    **{"z_score": z, "amplified": z > 1},
                }
                for name, z in zip(LAYERS, scores, strict=True)
            ]
            metrics["analysis"] = metrics["analysis"] or None
    best = int(np.argmin(loss))
    result = {
        **{"best_epoch": best + 1, "validation_loss": loss[best]},
        **{"test_accuracy": accuracy[best], "test_top1_error": 1 - accuracy[best]},
        **{"test_top5_error": 0.1, "test_loss": 1.0, "train_seconds": 90.0},
        **{"epochs": epochs, "steps": 9 * epochs, **PROVENANCE},
    }
    measures = {}
    if task.config.seed == 0 and task.arm.name in ("sgd", "plp-4"):
        path = {"step": [1, 2, 3, 4], "weight": [0.0, 1, 2, 3], "bias": [1.0, 1, 1, 1]}
        which = {"weight": "conv/kernel[1]", "bias": "head/bias[0]"}
        measures = {"path": {**path, "which": which}}
    if task.arm.name.partition("-")[2] in REGIMES:
        measures = observed(task)
    return Record(
        **{"arm": task.arm.name, "model": task.config.model, "seed": task.config.seed},
        **{"config": experiment(task.config), "result": result, "history": history},
        measures=measures,
    )


def observed(task):
    """As theory predicts: curvature rises to the limit of its regime at high rates.

    PLP and its matched rate take the same path up to a random 1 %.
    """
    method, _, name = task.arm.name.partition("-")
    regime = REGIMES[name]
    end = curvature.limit(method, regime) if "high" in name else 0.1
    time = np.linspace(0.1, 1, 9)
    products = end * np.minimum(1, 2 * time)
    rng = np.random.default_rng(task.config.seed)
    own = np.random.default_rng(zlib.crc32(task.name.encode()))
    path = time[:, None] * rng.normal(size=64) * (1 if method == "sgd" else 9 / 8)
    path += 0.01 * own.normal(size=path.shape)
    return {
        "step": list(range(0, 72, 8)),
        "top_eigenvalue": (products / task.config.learning_rate).tolist(),
        "path": paths.pack(list(path)),
    }


def diverge(record, epochs=2):
    return dataclasses.replace(
        record,
        result={"diverged": "the loss is no longer finite"},
        history=record.history[:epochs],
    )


def diverge_at(record, times):
    """A run of the mechanism that was looked at so often before it diverged."""
    measures = record.measures
    path = paths.unpack(measures["path"], len(measures["step"]))[:times]
    cut = {name: measures[name][:times] for name in ("step", "top_eigenvalue")}
    return dataclasses.replace(
        diverge(record), measures={**cut, "path": paths.pack(list(path))}
    )


def study_of(name):
    return studies.module(name).STUDY


def markdown_tables(text):
    """Tables by the bold line above them: a list of rows of cells, header first."""
    found = {}
    for block in re.finditer(r"\*\*(.+?)\*\*\n\n((?:\|.*\n?)+)", text):
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block[2].strip().split("\n")
        ]
        found[block[1]] = [rows[0], *rows[2:]]
    return found


class Parser(html.parser.HTMLParser):
    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text, self.rows = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def parse(path):
    parser = Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser
