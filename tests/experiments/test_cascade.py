"""The measurements of the study of cascades, and its report."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    """For softmax regression, whose gradient is x^T (p - y) / n."""
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


def test_operations_are_counted_by_stage():
    never = record("conv", [10], [1, 1], [0.1, 0.2])
    unknown = record("plp", [None], [1], [0.1])
    runs = [WHOLE, PARTS, never, unknown]
    made = reports.table_of(runs, cascade.STUDY)
    spent = cascade_report.operations(made).group_by("arm").agg("spent")
    assert {arm: list(values) for arm, values in spent.iter_rows()} == {
        "end-to-end": [400, 800],
        "dense": [40, 160, 280],
        "conv": [40, 80],
    }
    (metric,) = (m for m in cascade_report.METRICS if m.unit == "GFLOP")
    values = metric.values(made).filter(control="end-to-end")
    assert dict(values.select("arm", "value").iter_rows()) == pytest.approx(
        # 0.95 is reached in the second epoch of both; conv never gets there.
        {"end-to-end": 800e-9, "dense": 160e-9, "conv": 80e-9}
    )


def test_costs_are_those_of_the_stage_that_needs_most():
    made = reports.table_of([WHOLE, PARTS], cascade.STUDY)
    text = cascade_report._costs(made)
    *_, (_, arm, stages, _, held, temporary, operations, _) = reports.tables_of(text)[
        "Costs, digits"
    ]
    assert (arm, stages, held) == ("cascade, dense head", "2", "1.00")
    assert (temporary, operations) == ("0.30", "0.0")


def test_gradients_are_measured_in_the_first_seed_only():
    configs = [SimpleNamespace(seed=seed) for seed in (0, 1)]
    assert [cascade.observe(None, c)._has_gradients for c in configs] == [True, False]
