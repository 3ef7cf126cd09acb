"""Averages of the trajectory: twins, what is read out, arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from tests.support.problems import W0, jitted, noisy_gradient, run

RATE = 0.07


@pytest.mark.parametrize(("decay", "start"), [(None, 0), (None, 4), (0.8, 0), (0.8, 4)])
def test_tail_average_is_the_average_of_the_trajectory(decay, start):
    tx = jitted(
        optax.chain(optax.sgd(RATE), plp_optax.tail_average(decay, start=start))
    )
    plain = run(optax.sgd(RATE), 12)
    with jax.enable_x64(True):
        w = jnp.asarray(W0)
        state, average = tx.init(w), W0
        for t in range(12):
            gradient = jnp.asarray(noisy_gradient(np.asarray(w), t))
            updates, state = tx.update(gradient, state, w)
            w = optax.apply_updates(w, updates)
            np.testing.assert_allclose(w, plain[t], rtol=1e-12)
            if t < start:
                average = plain[t]
            elif decay is None:
                average = plain[start : t + 1].mean(axis=0)
            else:
                average = decay * average + (1 - decay) * plain[t]
            actual = plp_optax.averaged_params(state, w)
            np.testing.assert_allclose(actual, average, rtol=1e-10)


def test_averaged_params_keeps_dtypes_and_asks_for_one_state():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.zeros(())}
    tx = plp_optax.tail_average(accumulator_dtype=jnp.float32)
    state = tx.init(params)
    averaged = plp_optax.averaged_params((state, optax.EmptyState()), params)
    assert jax.tree.map(jnp.result_type, averaged) == jax.tree.map(
        jnp.result_type, params
    )
    for wrong, number in (((), 0), ((state, state), 2)):
        with pytest.raises(ValueError, match=f"contains {number}"):
            plp_optax.averaged_params(wrong, params)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ({"start": -1}, "start must be an int of at least 0"),
    ],
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        plp_optax.tail_average(**kwargs)
