"""Small problems, and loops that run a transformation on them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import plp_optax

_rng = np.random.default_rng(7)
_matrix = _rng.normal(size=(5, 5))
HESSIAN = _matrix @ _matrix.T / 5 + np.eye(5)
NOISE = _rng.normal(size=(64, 5))
W0 = _rng.normal(size=5)
RATE = 0.07


def noisy_gradient(w, count):
    """A noisy gradient that is no linear function of w; NumPy or jax."""
    return HESSIAN @ w + w**3 / 10 + NOISE[count]


def descend(*links: optax.GradientTransformation) -> optax.GradientTransformation:
    """SGD at ``RATE``, and what follows it in the chain."""
    return optax.chain(optax.sgd(RATE), *links)


def run(tx: optax.GradientTransformation, steps: int, dtype=np.float64) -> np.ndarray:
    """Parameters after each step on the noisy problem, by default in float64."""
    with jax.enable_x64(dtype == np.float64):
        w = jnp.asarray(W0, dtype)
        state, history = tx.init(w), []
        update = jax.jit(tx.update)
        for count in range(steps):
            gradient = jnp.asarray(noisy_gradient(np.asarray(w), count), dtype)
            updates, state = update(gradient, state, w)
            w = optax.apply_updates(w, updates)
            history.append(np.asarray(w))
    return np.stack(history)


def read_out(
    tx: optax.GradientTransformation,
    steps: int,
    read: Any = plp_optax.evaluation_params,
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters, and what is read out of the state, after each step, in float64."""
    tx = jitted(tx)
    with jax.enable_x64(True):
        w = jnp.asarray(W0)
        state, params, averages = tx.init(w), [], []
        for count in range(steps):
            gradient = jnp.asarray(noisy_gradient(np.asarray(w), count))
            updates, state = tx.update(gradient, state, w)
            w = optax.apply_updates(w, updates)
            params.append(np.asarray(w))
            averages.append(np.asarray(read(state, w)))
    return np.stack(params), np.stack(averages)


def run_tree(
    tx: optax.GradientTransformation,
    params: optax.Params,
    gradients: Sequence[optax.Updates],
) -> tuple[list[optax.Params], optax.OptState]:
    """Parameters after each of the given gradients, and the last state."""
    state, history = tx.init(params), []
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def jitted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation with compiled functions."""
    tx = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(jax.jit(tx.init), jax.jit(tx.update))


def avals(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    return jax.tree.map(jax.typeof, tree)
