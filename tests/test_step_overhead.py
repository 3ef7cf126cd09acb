"""Memory of a compiled optimizer step, and that the benchmark runs."""

import jax
import jax.numpy as jnp
import pytest

import models
from benchmarks import measure, step_overhead


@pytest.fixture(scope="module")
def params():
    network = models.create("resnet18", width=16)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.ones((1, 32, 32, 3)), train=False)
    )
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes["params"])


@pytest.mark.parametrize(
    ("arm", "copies", "scalars"),
    [
        # Two counters, a flag of one byte, and c_0, ..., c_3.
        ("sgd + plp", 1, 4 * (2 + 4) + 1),
        ("sgd + window average", 1, 4 * (2 + 4) + 1),
        ("sgd + lookahead window", 1, 4 * (2 + 6) + 1),
        ("sgd + plp, snapshots", 4, 4 * (2 + 4) + 1),
        # Three counters; of 21 layers score, z-score, factor and a flag of one byte,
        # and the sums that are kept by layer.
        ("amplify g1, analysis + sgd", 0, 4 * 3 + 21 * (3 * 4 + 1 + 2 * 4)),
        ("amplify g1_per_weight, analysis + sgd", 1, 4 * 3 + 21 * (3 * 4 + 1 + 4)),
        ("amplify g2, analysis + sgd", 2, 4 * 3 + 21 * (3 * 4 + 1)),
    ],
)
def test_memory_beyond_sgd(params, arm, copies, scalars):
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    plain = step_overhead.make_step(step_overhead.PEER, params, params)
    step = step_overhead.make_step(arm, params, params)
    assert step.state_bytes - plain.state_bytes == copies * size + scalars
    # The CPU compiler makes the ratios of "g2" one layer at a time.
    largest = max(p.nbytes for p in jax.tree.leaves(params))
    assert step.temporary_bytes < (1.5 * largest if "g2" in arm else size / 20)


def test_benchmark_writes_a_record_of_ratios(tmp_path, monkeypatch):
    arms = step_overhead.make_arms()
    few = ("sgd", "sgd + plp", step_overhead.LOOKAHEAD)  # fewer to compile
    monkeypatch.setattr(step_overhead, "make_arms", lambda: {n: arms[n] for n in few})
    record = step_overhead.run(width=2, batch_size=2, rounds=2, model="tiny")
    assert set(record["arms"]) == set(step_overhead.make_arms())
    assert record["arms"]["sgd"]["time_ratio"]["median"] == 1
    assert step_overhead.table(record).row_count == len(record["arms"])
    path = measure.write_record("step_overhead", record, tmp_path / "record.json")
    assert '"jax"' in path.read_text()


def test_arms_alternate_and_the_first_round_is_not_timed():
    calls = []
    arms = {name: (lambda name=name: calls.append(name) or name) for name in "ab"}
    seconds = measure.alternate(arms, rounds=2, repeats={"a": 1, "b": 2})
    assert "".join(calls) == "abb" * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
