"""Losses of a full batch, in float64: three convex ones, a network, and a PINN."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

SAMPLES = 600  # drawn by the seed, or all that there are, less a fifth
HIDDEN = 32
DECAY = 1e-4  # a half of it times the squared norm of the parameters is added


class Problem(NamedTuple):
    """A loss to minimise.

    Attributes:
      loss: Maps parameters and data to a scalar.
      start: The parameters to start from.
      data: Arrays; their shapes do not depend on the seed.
      gaps: How far above the minimum counts as there: coarse and fine.
      minimum: The minimum, or None if it has to be found.
    """

    loss: Callable[[Any, Any], jax.Array]
    start: Any
    data: Any
    gaps: tuple[float, float] = (1e-3, 1e-6)
    minimum: float | None = None


def _classes(read: Callable[..., Any], seed: int) -> tuple[jax.Array, jax.Array]:
    """Standardised samples with a constant feature, and one-hot targets."""
    x, y = read(return_X_y=True)
    chosen = np.random.default_rng(seed).permutation(len(x))
    chosen = chosen[: min(SAMPLES, 4 * len(x) // 5)]
    scale = 16 if x.shape[1] == 64 else x.std(axis=0)
    center = 0 if x.shape[1] == 64 else x.mean(axis=0)
    x = (x - center) / scale
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)[chosen]
    return jnp.asarray(x), jnp.asarray(np.eye(y.max() + 1)[y[chosen]])


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    chosen = (logits * targets).sum(axis=1)
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


def _decay(w: Any) -> jax.Array:
    return DECAY / 2 * sum((x**2).sum() for x in jax.tree.leaves(w))


def _logistic(read: Callable[..., Any], seed: int) -> Problem:
    x, y = _classes(read, seed)

    def loss(w: jax.Array, data: Any) -> jax.Array:
        samples, targets = data
        return _cross_entropy(samples @ w, targets) + _decay(w)

    return Problem(loss, jnp.zeros((x.shape[1], y.shape[1])), (x, y))


def _tanh(seed: int) -> Problem:
    x, y = _classes(datasets.load_digits, seed)

    def loss(w: Any, data: Any) -> jax.Array:
        samples, targets = data
        hidden = jnp.tanh(samples @ w[0])
        return _cross_entropy(hidden @ w[1], targets) + _decay(w)

    return Problem(loss, _dense(seed, x.shape[1], HIDDEN, y.shape[1]), (x, y))


def _pinn(seed: int) -> Problem:
    """-u'' = pi^2 sin(pi x) on [-1, 1] with u = 0 at both ends."""
    points = jnp.linspace(-1, 1, 64)
    first, last = _dense(seed, 1, HIDDEN, 1)
    start = (first, jnp.zeros(HIDDEN), last)

    def u(w: Any, x: jax.Array) -> jax.Array:
        return (jnp.tanh(x * w[0][0] + w[1]) @ w[2])[0]

    def loss(w: Any, data: jax.Array) -> jax.Array:
        second = jax.vmap(jax.grad(jax.grad(u, 1), 1), (None, 0))(w, data)
        residual = second + jnp.pi**2 * jnp.sin(jnp.pi * data)
        ends = u(w, data[0]) ** 2 + u(w, data[-1]) ** 2
        return (residual**2).mean() + 10 * ends

    return Problem(loss, start, points, gaps=(1.0, 1e-2), minimum=0.0)


def _dense(seed: int, *widths: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(a, b)) / np.sqrt(a))
        for a, b in itertools.pairwise(widths)
    )


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "logistic-digits": lambda seed: _logistic(datasets.load_digits, seed),
    "logistic-cancer": lambda seed: _logistic(datasets.load_breast_cancer, seed),
    "logistic-wine": lambda seed: _logistic(datasets.load_wine, seed),
    "tanh-digits": _tanh,
    "pinn": _pinn,
}
