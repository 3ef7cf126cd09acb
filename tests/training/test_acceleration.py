"""The study of acceleration techniques: what it measures and reports."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments import plan, report, studies
from experiments.reports import acceleration as own
from experiments.runs import Runs
from experiments.studies import acceleration
from tests.support.reports import PROVENANCE, make, run, tables_of
from training.engine.engine import Engine

SPEED = "Speed and memory"
MEMORY = {"held": 3_000_000, "temporary": 1_500_000}  # None is not recorded


def timed(arm, rates, accuracies, *, seconds, device="1 x gpu (H100)"):
    record = run(arm, 0, curve=accuracies, train_seconds=seconds, device=device)
    for metrics, rate in zip(record.history, rates, strict=True):
        metrics["images_per_second"] = rate
    return record


def read(name, record, controls=()):
    (metric,) = (m for m in own.METRICS if m.name == name)
    return metric.read(record, controls)


# -- Measures --------------------------------------------------------------------------


def test_seconds_of_epochs_and_to_a_target():
    # 1,200 images an epoch: 3, 1, 2 and 4 seconds.
    record = timed("all", [400, 1200, 600, 300], [0.1, 0.6, 0.8, 0.7], seconds=10)
    assert read("seconds_per_epoch", record) == pytest.approx(2.5)
    for best, until in ((0.6, 4), (0.8, 6), (1.0, 10 + 2.5)):
        control = timed("none", [1] * 4, [0.0, 0.0, 0.0, best], seconds=1)
        assert read("seconds_to_target", record, [control]) == pytest.approx(until)


def test_pinned_memory_has_no_times_on_a_cpu():
    rates, accuracies = [400.0, 400.0], [0.5, 0.6]
    for device, expected in (("1 x cpu (cpu)", None), ("1 x gpu (H100)", 1.0)):
        for arm in ("host-pinned", "host"):
            record = timed(arm, rates, accuracies, seconds=2, device=device)
            seconds = read("seconds_per_epoch", record)
            assert seconds == (expected if arm == "host-pinned" else 1.0)


@dataclasses.dataclass
class Compiled:
    train_call: object
    memory = Engine.memory


def test_memory_is_the_compilers_and_the_peak_only_if_it_rose(monkeypatch):
    peaks = iter([100, 100, 100, 250])
    monkeypatch.setattr(acceleration, "_peak", lambda: next(peaks))
    x = jnp.ones((256, 256))
    engine = Compiled(
        jax.jit(lambda a, b: (a + 1, (a @ b).sum()), donate_argnums=0)
        .lower(x, x)
        .compile()
    )
    for peak in (None, 250):
        memory = acceleration.Memory(engine).measures["memory"]
        assert memory["device_peak"] == peak
        # Two arguments, one of which is returned in its place, and a scalar.
        assert 2 * x.nbytes <= memory["held"] <= 2 * x.nbytes + 100
        assert memory["temporary"] >= x.nbytes


# -- The study and its report ----------------------------------------------------------


@pytest.mark.parametrize("scale", ["full", "small", "quick"])
def test_arms_have_their_techniques_alone_or_all(scale):
    study = studies.load("acceleration")
    techniques = ("precision", "batch_parts", "batches_per_step", "input", "clip_value")
    for model in study.scale(scale).models:
        configs = {}
        for arm in study.arms:
            fields = study.scale(scale).fields
            config = plan.configure(study, fields, model, arm)
            configs[arm.name] = {n: config[n] for n in techniques if n in config}
        assert configs["none"] == {}
        alone = ("bfloat16", "enlarged", "host-pinned", "clipped")
        together = {n: x for name in alone for n, x in configs[name].items()}
        assert all(len(configs[name]) == 1 for name in (*alone, "float16", "split"))
        for name in configs:
            if name.startswith("all"):
                assert configs[name] == together


def test_amplification_and_its_control_differ_in_the_factor_alone():
    study = studies.load("acceleration")
    for scale in study.scales:
        for model in scale.models:
            ours, control = (
                plan.configure(study, scale.fields, model, study.arm(name))
                for name in ("all-amplify", "all-noop")
            )
            assert control == {**ours, "amplify_factor": 1.0}


def written(records, study, header, tmp_path):
    text = report.write(study, header, records, tmp_path).read_text(encoding="utf-8")
    return {title.partition(",")[0]: rows for title, rows in tables_of(text).items()}


def test_the_report_says_what_pinned_memory_is_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_save", lambda figures, path: path.touch())
    study, header, records = make("acceleration", models=("resnet50",), seeds=2)
    assert "host-pinned" not in {r.arm for r in records}  # at this scale
    for record in records:
        record.measures["memory"] = MEMORY
        for metrics in record.history:
            metrics["images_per_second"] = 50.0
    cpu = [
        dataclasses.replace(r, result={**r.result, "device": "1 x cpu (cpu)"})
        for r in records
    ]
    rows = {row[1]: row[2:] for row in written(cpu, study, header, tmp_path)[SPEED]}
    assert rows["host input, pinned"] == ["means nothing on a CPU", "-", "-"]
    assert rows["none"] == ["50 ± 0", "3.00", "1.50"]
    assert PROVENANCE["device"].endswith("(cpu)")


@pytest.mark.parametrize(
    ("model", "fields", "answer"),
    [
        ("resnet50", {}, "yes"),
        ("resnet50", {"dataset": "cifar10"}, "yes"),
        ("resnet50", {"width": 8}, "no: a reduced form"),
        ("resnet50", {"dataset": "digits"}, "no: other images (digits)"),
        ("vit-tiny", {}, "no: the review starts from ImageNet weights"),
        ("tiny", {}, "no: not one of the review's networks"),
    ],
)
def test_what_can_be_compared_with_the_review(model, fields, answer):
    study = studies.load("acceleration")
    scale = dataclasses.replace(
        study.scale("full"), models=(model,), fields=fields, arms=("none",)
    )
    records = [
        dataclasses.replace(run(t.arm.name, t.seed, model=model), config=t.config)
        for t in plan.tasks(study, scale)
    ]
    runs = Runs(study, plan.header(study, scale), records)
    assert own._comparable(runs, model) == answer
