"""Memory of a compiled optimizer step, and that the benchmark runs."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import step_overhead, tables

LAYERS = 5


@pytest.fixture(scope="module")
def params():
    """Layers large enough that a temporary of one would show."""
    layer = {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}
    return {f"layer{i}": jax.tree.map(jnp.copy, layer) for i in range(LAYERS)}


@pytest.fixture(scope="module")
def plain(params):
    return step_overhead.make_step(step_overhead.PEER, params, params)


@pytest.mark.parametrize(
    ("arm", "copies", "scalars", "temporary"),  # the last in layers
    [
        # Two counters, a flag of one byte, and c_0, ..., c_3.
        ("sgd + plp", 1, 4 * (2 + 4) + 1, 0),
        ("sgd + plp, snapshots", 4, 4 * (2 + 4) + 1, 1),
        ("sgd + ema_nesterov", 1, 4 * 2, 0),
        ("sgd + outer_nesterov", 2, 4, 0),
        # Follows what the parameters do, for which XLA keeps the old ones.
        ("sgd + tail_average", 1, 4, LAYERS),
        # A counter and a weight; the average, and the initial parameters.
        ("sgd + bema", 2, 4 * 2, LAYERS),
        # Both outputs read the old offset, which XLA keeps.
        ("sgd + gpa", 1, 4 * 2, LAYERS),
        # Adam's moments and the average, in place of SGD's momentum; two counters.
        ("pace", 2, 4 * 2, LAYERS),
        # Two counters; of each layer score, z-score, factor, a flag of one byte and two
        # counts, and the sums that are kept by layer.
        ("amplify g1, analysis + sgd", 0, 4 * 2 + LAYERS * (5 * 4 + 1 + 2 * 4), 0),
        (
            "amplify g1_per_weight, analysis + sgd",
            1,
            4 * 2 + LAYERS * (5 * 4 + 1 + 4),
            0,
        ),
        ("amplify g2, analysis + sgd", 2, 4 * 2 + LAYERS * (5 * 4 + 1), 1),
    ],
)
def test_memory_beyond_sgd(params, plain, arm, copies, scalars, temporary):
    size = sum(p.nbytes for p in jax.tree.leaves(params))
    step = step_overhead.make_step(arm, params, params)
    assert step.state_bytes - plain.state_bytes == copies * size + scalars
    assert step.temporary_bytes < (temporary + 0.25) * size / LAYERS


def test_step_overhead(monkeypatch):
    arms = step_overhead.make_arms()
    few = ("sgd", step_overhead.LOOKAHEAD)  # fewer to compile
    monkeypatch.setattr(step_overhead, "make_arms", lambda: {n: arms[n] for n in few})
    options = {"model": "tiny", "width": 2, "batch_size": 2, "rounds": 1}
    record = step_overhead.run(**options)
    assert tuple(record["arms"]) == few
    assert record["arms"]["sgd"]["time_ratio"]["median"] == 1
    assert all(name in tables.TABLES["step_overhead"](record) for name in few)
