"""Trees of layers, and amplification fed with gradients of them."""

import jax
import jax.numpy as jnp
import pytest

import plp_optax
from plp_optax import AmplificationWindow, by_score

MEASURES = ("g1", "g1_per_weight", "g2")
every_measure = pytest.mark.parametrize("measure", MEASURES)

PARTS = ["kernel", "bias"]

HALF = by_score(0.5)
EPOCH = 4
IDENTITY_WINDOWS = [AmplificationWindow(0, 5 * EPOCH, EPOCH, factor=3.0)]


def kernels(values):
    """A tree of one-kernel layers, named a, b, c and on."""
    names = "abcdefghijklmnopqrstuvwxyz"
    return {n: {"kernel": jnp.asarray(v)} for n, v in zip(names, values, strict=False)}


def analyze(gradients, *, select=HALF, **kwargs):
    """The state after one analysis epoch of these gradients, and the transformation."""
    n = len(gradients)
    windows = [AmplificationWindow(0, 2 * n, n, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, select=select, **kwargs)
    state, update = tx.init(gradients[0]), jax.jit(tx.update)
    for gradient in gradients:
        _, state = update(gradient, state)
    return state, tx


def feed(tx, gradients, params=None):
    """The updates that come out, and all states, the initial one included."""
    state, update = (
        tx.init(gradients[0] if params is None else params),
        jax.jit(tx.update),
    )
    outputs, states = [], [state]
    for gradient in gradients:
        updates, state = update(gradient, state)
        outputs.append(updates)
        states.append(state)
    return outputs, states
