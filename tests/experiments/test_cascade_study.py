"""What the study of cascades measures, and its report."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import report
from experiments.reports import cascade as cascade_report
from experiments.studies import cascade
from tests.support import programs, reports


class Softmax(nn.Module):
    """Multinomial logistic regression."""

    @nn.compact
    def __call__(self, images, *, train):
        flat = images.reshape(len(images), -1)
        return nn.Dense(10, name="head", param_dtype=images.dtype)(flat)


def test_norms_are_those_of_the_gradient():
    """Of softmax regression, whose gradient is x^T (p - y) / n."""
    images, labels = programs.DATASET.train
    kernel = np.random.default_rng(0).normal(size=(images[0].size, 10))
    with jax.enable_x64(True):
        norms = cascade.make_norms(Softmax(), programs.DATASET, jnp.float64)
        params = {"head": {"kernel": jnp.array(kernel), "bias": jnp.zeros(10)}}
        found = jax.device_get(norms(params, {}))
    dataset = programs.DATASET
    pixels = (images / 255 - np.asarray(dataset.mean, float)) / dataset.std
    flat = pixels.reshape(len(images), -1)
    logits = flat @ kernel
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = flat.T @ (p - np.eye(10)[labels]) / len(labels)
    assert found.keys() == {"head"}
    np.testing.assert_allclose(found["head"], np.linalg.norm(gradient), rtol=1e-6)


def record(arm, costs, stages, accuracies):
    """A run of four steps an epoch."""
    made = reports.run(arm, 0, curve=accuracies, parameters=9, train_seconds=1.0)
    for metrics, stage in zip(made.history, stages, strict=True):
        metrics |= {"step": 4 * metrics["epoch"], "stage": stage}
    made.result["stages"] = [
        {"block": f"block{stage}", "test_accuracy": 0.5} for stage in set(stages)
    ]
    measured = [
        {"operations": c, "held": 1e6, "temporary": 1e4 * (c or 0)} for c in costs
    ]
    norms = [{"stage": 1, "step": i, "norms": {"stem": 1.0, "head": 2}} for i in (1, 4)]
    return dataclasses.replace(made, measures={"stages": measured, "gradients": norms})


WHOLE = record("end-to-end", [100], [1, 1], [0.5, 1.0])
PARTS = record("dense", [10, 30], [1, 2, 2], [0.5, 0.96, 0.9])


def metric(name):
    return next(m for m in cascade_report.METRICS if m.name == name)


def test_operations_are_counted_by_stage():
    assert list(cascade_report.operations(WHOLE)) == [400, 800]
    assert list(cascade_report.operations(PARTS)) == [40, 160, 280]
    to_target = metric("operations_to_target").read
    assert to_target(PARTS, [WHOLE]) == 160e-9  # 0.95 is reached in the second epoch
    assert to_target(WHOLE, [WHOLE]) == 800e-9
    never = record("conv", [10], [1, 1], [0.1, 0.2])
    assert to_target(never, [WHOLE]) == 80e-9
    unknown = record("conv", [None], [1], [0.1])
    assert cascade_report.operations(unknown) is None


def test_report(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "_save", lambda figures, path: drawn.append(path.name))
    study = cascade.STUDY
    header = SimpleNamespace(models=["tiny"], fields={}, study=study.name, scale="full")
    text = report.write(study, header, [WHOLE, PARTS], tmp_path).read_text()
    tables = reports.tables_of(text)
    (costs,) = [rows for title, rows in tables.items() if title.startswith("Costs")]
    # Memory is that of the stage that needs most, operations are those of all.
    assert costs[2][:3] == ["tiny", "cascade, dense head", "2"]
    assert costs[2][5:7] == ["0.30", "0.0"]
    assert {"operations-tiny.png", "gradients-tiny.png"} <= set(drawn)


def test_gradients_are_measured_in_the_first_seed_only():
    configs = [SimpleNamespace(seed=seed) for seed in (0, 1)]
    assert [cascade.observe(None, c)._has_gradients for c in configs] == [True, False]
