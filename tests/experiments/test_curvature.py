"""Top eigenvalues: of quadratics whose spectrum is known, and of dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from experiments.curvature import top_eigenvalue

KEY = jax.random.key(0)


def _quadratic(hessian, params):
    w = ravel_pytree(params)[0]
    return w @ hessian @ w / 2 + w.sum()


def quadratic(spectrum):
    """A loss on a tree of 3 x 4 and more parameters with these eigenvalues."""
    n = len(spectrum)
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.normal(size=(n, n)))
    hessian = rotation @ np.diag(spectrum) @ rotation.T
    params = {"kernel": jnp.ones((3, 4)), "rest": [jnp.ones(n - 12)]}
    # Equal partials compile once for all spectra of a size.
    return Partial(_quadratic, jnp.asarray(hessian)), params


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


SPECTRA = {
    "cluster": [5.0, 4.99, 4.98, *np.linspace(-3, 4.9, 57)],
    "negative": [0.5, *np.linspace(-9, -2, 59)],
    "one for all": np.full(60, 3.0),
    "two values": np.repeat([2.0, -7.0], 30),
}


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_rotated_quadratics(float64, spectrum):
    loss, params = quadratic(spectrum)
    found = top_eigenvalue(loss, params, tolerance=1e-6, key=KEY)
    np.testing.assert_allclose(found.value, max(spectrum), rtol=1e-6)
    assert found.converged
    assert found.residual <= 1e-6 * abs(found.value)


def test_says_when_it_did_not_converge(float64):
    loss, params = quadratic(np.linspace(4.9, 5, 60))
    found = top_eigenvalue(loss, params, tolerance=1e-12, max_restarts=1, key=KEY)
    assert not found.converged
    assert found.residual > 1e-12 * found.value
    assert 4.9 < found.value <= 5.0 + 1e-12


def test_float32_reaches_its_tolerance():
    rng = np.random.default_rng(3)
    factor = jnp.asarray(rng.normal(size=(60, 400)) / 20, jnp.float32)
    found = top_eigenvalue(
        lambda w: ((factor @ w) ** 2).sum() / 2, jnp.ones(400), key=KEY
    )
    exact = np.linalg.norm(np.asarray(factor, np.float64), 2) ** 2
    assert found.converged
    np.testing.assert_allclose(found.value, exact, rtol=1e-4)


def test_what_is_not_finite_is_reported():
    found = top_eigenvalue(lambda w: jnp.log(w).sum(), -jnp.ones(3), key=KEY)
    assert np.isfinite(found.value)  # 1/w**2 is
    found = top_eigenvalue(lambda w: jnp.sqrt(w).sum(), -jnp.ones(3), key=KEY)
    assert np.isnan(found.value)
    assert np.isnan(found.residual)
    assert not found.converged


def test_a_partial_compiles_once_for_all_batches():
    traces = 0

    def loss(batch, params):
        nonlocal traces
        traces += 1
        return ((batch @ params) ** 2).mean()

    def find(seed):
        keys = jax.random.split(jax.random.key(seed))
        batch, params = jax.random.normal(keys[0], (8, 5)), jnp.ones(5)
        return top_eigenvalue(Partial(loss, batch), params, key=keys[1])

    first = find(0)
    compiled = traces
    second = find(1)
    assert traces == compiled
    assert first.value != second.value
