"""Every public factory on several devices: replicas, shards, splits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.plp_optax.test_contract import (
    GRADIENTS,
    PARAMS,
    assert_close,
    core_cases,
    expected,
    made,
)
from tests.support.factories import CASES


def mean_steps(tx, params, gradients, wrap):
    """Steps with the mean of per-device gradients; ``wrap`` maps a step."""
    devices = jax.device_count()

    def step(params, state, shard):
        gradient = jax.tree.map(lambda g: jax.lax.pmean(g[0], "batch"), shard)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = wrap(step)
    state = tx.init(params)
    weights = jnp.arange(devices, dtype=jnp.float32) * 2 / (devices - 1)  # mean 1
    for gradient in gradients:
        shards = jax.tree.map(
            lambda g: jnp.multiply(
                weights.reshape(-1, *([1] * (g.ndim + 1))), g[None, None]
            ),
            gradient,
        )
        params, state = step(params, state, shards)
    return params, state


def assert_as_on_one_device(name, params, state):
    history, _ = expected(name)
    assert_close(params, history[5])
    for leaf in jax.tree.leaves((params, state)):  # replicas, every one of them
        shards = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


@core_cases
def test_pmap(name):
    assert jax.device_count() == 4

    def wrap(step):
        return jax.pmap(step, axis_name="batch", in_axes=(None, None, 0), out_axes=None)

    result = mean_steps(CASES[name].make(), PARAMS, GRADIENTS[:6], wrap)
    assert_as_on_one_device(name, *result)


@core_cases
def test_shard_map(name):
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

    def wrap(step):
        def body(params, state, shard):
            return step(params, state, jax.tree.map(lambda g: g[0], shard))

        specs = {"in_specs": (P(), P(), P("batch")), "out_specs": (P(), P())}
        return jax.jit(jax.shard_map(body, mesh=mesh, **specs))

    result = mean_steps(CASES[name].make(), PARAMS, GRADIENTS[:6], wrap)
    assert_as_on_one_device(name, *result)


@core_cases
def test_state_keeps_the_shardings_of_the_parameters(name):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    sharded = NamedSharding(mesh, P("x"))
    params = {"w": jax.device_put(jnp.arange(8.0).reshape(8, 1), sharded)}
    tx = made(name)
    state = CASES[name].make().init(params)

    def shardings(state):
        return [
            x.sharding.is_equivalent_to(sharded, x.ndim)
            for x in jax.tree.leaves(state)
            if x.shape == (8, 1)
        ]

    assert bool(shardings(state)) == CASES[name].buffers
    assert all(shardings(state))
    for _ in range(3):
        _, state = tx.update(params, state, params)
        assert all(shardings(state))
