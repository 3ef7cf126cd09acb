"""Noise-adaptive rates: a literal twin, and layers whose noise is unknown."""

import jax
import numpy as np
import optax

import plp_optax
from tests.support import reference
from tests.support.amplification import kernels

DECAY = 0.8
NOISES = {"a": 0.1, "b": 1.0, "c": 3.0}


def noisy(layers, count):
    """Gradients of a quadratic, with noise that differs between the layers."""
    rng = np.random.default_rng(count)
    return [
        w + scale * rng.normal(size=np.shape(w))
        for w, scale in zip(layers, NOISES.values(), strict=True)
    ]


def test_noise_adaptive_rates_follow_their_twin():
    """With momentum and decay, whose updates are scaled as a whole."""
    alpha = 0.2
    start = [np.ones(4), np.full(3, 2.0), np.linspace(-1, 1, 6)]
    twins = [reference.MomentumSGD(0.05, 0.9, weight_decay=0.01) for _ in start]
    history, rates = reference.train_noise_adaptive(
        start, noisy, twins, 12, alpha=alpha, decay=DECAY
    )
    with jax.enable_x64(True):
        base = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.05, 0.9))
        tx = plp_optax.noise_adaptive_rates(base, alpha=alpha, decay=DECAY)
        params = kernels(start)
        state, update = tx.init(params), jax.jit(tx.update)
        for count, (expected, expected_rates) in enumerate(
            zip(history, rates, strict=True)
        ):
            now = [np.asarray(params[n]["kernel"]) for n in NOISES]
            updates, state = update(kernels(noisy(now, count)), state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(state.layer_rates, expected_rates, rtol=1e-10)
            for name, w in zip(NOISES, expected, strict=True):
                np.testing.assert_allclose(params[name]["kernel"], w, rtol=1e-10)
    assert rates[-1][0] > 1.1 > 0.9 > rates[-1][2]


def test_rates_have_the_mean_1_and_do_not_depend_on_the_scale():
    params = kernels(np.ones((3, 4)))
    params |= {"norm": {"scale": np.ones(4)}}
    found = []
    for scale in (1.0, 2.0**20):
        tx = plp_optax.noise_adaptive_rates()
        state = tx.init(params)
        for count in range(5):
            gradients = kernels([scale * g for g in noisy([np.ones(4)] * 3, count)])
            gradients["norm"] = {"scale": scale * np.ones(4)}
            updates, state = jax.jit(tx.update)(gradients, state, params)
            np.testing.assert_allclose(state.layer_rates.mean(), 1, rtol=1e-6)
        # Parameters outside of layers keep their rate.
        np.testing.assert_array_equal(updates["norm"]["scale"], scale)
        found.append(np.asarray(state.layer_rates))
    np.testing.assert_allclose(*found, rtol=1e-6)
    assert found[0].std() > 0.1


def test_layers_of_unknown_noise_keep_their_rate():
    params = kernels(np.ones((3, 4), np.float32))
    tx = plp_optax.noise_adaptive_rates(alpha=0.1)
    gradients = []
    for count in range(4):
        rows = noisy([np.ones(4)] * 3, count)
        rows[1][2] = np.nan
        gradients.append(kernels(rows))
    state = tx.init(params)
    for gradient in gradients:
        _, state = jax.jit(tx.update)(gradient, state, params)
    rates = np.asarray(state.layer_rates)
    assert rates[1] == 1
    np.testing.assert_allclose(rates[[0, 2]].mean(), 1, rtol=1e-6)
    assert rates[0] > 1.3
    # Without noise, at the first step, all rates are 1.
    _, first = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_array_equal(first.layer_rates, 1)
