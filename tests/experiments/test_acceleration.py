"""The study of acceleration techniques: its arms, and what it measures."""

import dataclasses

import jax
import jax.numpy as jnp

from experiments import studies
from experiments.studies import acceleration
from training.engine.engine import Engine


@dataclasses.dataclass
class Compiled:
    train_call: object
    memory = Engine.memory


def test_memory_is_the_compilers_and_the_peak_only_if_it_rose(monkeypatch):
    peaks = iter([100, 100, 100, 250])
    monkeypatch.setattr(acceleration, "_peak", lambda: next(peaks))
    x = jnp.ones((256, 256))
    program = Compiled(
        jax.jit(lambda a, b: (a + 1, (a @ b).sum()), donate_argnums=0)
        .lower(x, x)
        .compile()
    )
    for peak in (None, 250):
        memory = acceleration.Memory(program).measures["memory"]
        assert memory["device_peak"] == peak
        # Two arguments, one of which is returned in its place, and a scalar.
        assert 2 * x.nbytes <= memory["held"] <= 2 * x.nbytes + 100
        assert memory["temporary"] >= x.nbytes


# -- The study -------------------------------------------------------------------------


def test_amplification_and_its_control_differ_in_the_factor_alone():
    study = studies.load("acceleration")
    for scale in study.scales:
        for model in scale.models:
            ours, control = (
                study.configure(scale.fields, model, study.arm(name))
                for name in ("all-amplify", "all-noop")
            )
            assert control == {**ours, "amplify_factor": 1.0}
