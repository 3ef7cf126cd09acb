"""Top eigenvalues: of quadratics whose spectrum is known, and of dense Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from experiments.curvature import top_eigenvalue

KEY = jax.random.key(0)


def quadratic(spectrum, seed=0):
    """A loss on a tree of 3 x 4 and more parameters, with this Hessian spectrum."""
    n = len(spectrum)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(n, n)))
    hessian = jnp.asarray(rotation @ np.diag(spectrum) @ rotation.T)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(3, 4))),
        "rest": [jnp.asarray(rng.normal(size=n - 12))],
    }

    def loss(params):
        w = ravel_pytree(params)[0]
        return w @ hessian @ w / 2 + w.sum()

    return loss, params, rotation


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


SPECTRA = {
    "gap": [9.0, *np.linspace(-1, 5, 59)],
    "cluster": [5.0, 4.99, 4.98, *np.linspace(-3, 4.9, 57)],
    "repeated": [4.0, 4.0, 4.0, *np.linspace(-1, 3, 57)],
    "negative": [0.5, *np.linspace(-9, -2, 39)],
    "all negative": np.linspace(-9, -0.5, 40),
    "one for all": np.full(40, 3.0),
    "two values": np.repeat([2.0, -7.0], 20),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA.keys())
def test_rotated_quadratics(float64, spectrum, seed):
    loss, params, _ = quadratic(spectrum, seed)
    found = top_eigenvalue(loss, params, tolerance=1e-6, key=jax.random.key(seed))
    np.testing.assert_allclose(found.value, max(spectrum), rtol=1e-6)
    assert found.converged
    assert min(spectrum) - 1e-9 <= found.lowest <= found.value
    assert jax.tree.structure(found.vector) == jax.tree.structure(params)
    # The residual, from the dense matrix.
    v = ravel_pytree(found.vector)[0]
    hessian = jax.hessian(lambda w: loss(ravel_pytree(params)[1](w)))(v)
    np.testing.assert_allclose(jnp.linalg.norm(v), 1, rtol=1e-12)
    residual = jnp.linalg.norm(hessian @ v - found.value * v)
    np.testing.assert_allclose(found.residual, residual, atol=1e-10)
    assert found.residual <= 1e-6 * abs(found.value)


def test_vector_is_the_eigenvector(float64):
    loss, params, rotation = quadratic(SPECTRA["gap"])
    found = top_eigenvalue(loss, params, tolerance=1e-6, key=KEY)
    overlap = ravel_pytree(found.vector)[0] @ rotation[:, 0]
    np.testing.assert_allclose(abs(overlap), 1, rtol=1e-10)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4])
def test_stops_at_the_tolerance(float64, tolerance):
    loss, params, _ = quadratic(SPECTRA["cluster"])
    found = top_eigenvalue(loss, params, tolerance=tolerance, key=KEY)
    assert found.converged
    assert 0 < found.residual <= tolerance * found.value
    finer = top_eigenvalue(loss, params, tolerance=tolerance / 100, key=KEY)
    assert finer.iterations > found.iterations
    # The eigenvalue lies within the residual, and further down only by a Ritz value.
    assert found.value <= finer.value <= 5.0 + 1e-12


def test_says_when_it_did_not_converge(float64):
    loss, params, _ = quadratic(SPECTRA["cluster"])
    found = top_eigenvalue(loss, params, tolerance=1e-8, max_iterations=4, key=KEY)
    assert not found.converged
    assert found.iterations == 4
    assert found.residual > 1e-8 * found.value
    assert found.value < 5.0


def test_no_more_iterations_than_parameters(float64):
    found = top_eigenvalue(lambda w: -3 * w[0] ** 2, jnp.ones(1), key=KEY)
    assert (found.value, found.iterations, found.converged) == (-6, 1, True)
    found = top_eigenvalue(lambda w: 2 * w.sum(), jnp.ones(5), key=KEY)
    assert (found.value, found.residual, found.converged) == (0, 0, True)


def test_float32_reaches_its_tolerance():
    rng = np.random.default_rng(3)
    factor = jnp.asarray(rng.normal(size=(300, 2000)) / 40, jnp.float32)
    found = top_eigenvalue(
        lambda w: ((factor @ w) ** 2).sum() / 2, jnp.ones(2000), key=KEY
    )
    exact = np.linalg.norm(np.asarray(factor, np.float64), 2) ** 2
    assert found.converged
    np.testing.assert_allclose(found.value, exact, rtol=1e-4)


def test_networks_against_the_dense_hessian(float64):
    rng = np.random.default_rng(4)
    images = jnp.asarray(rng.normal(size=(16, 5)))
    labels = jnp.asarray(rng.integers(3, size=16))
    params = {
        "first": jnp.asarray(rng.normal(size=(5, 6))),
        "last": jnp.asarray(rng.normal(size=(6, 3))),
    }

    def loss(params):
        logits = jnp.tanh(images @ params["first"]) @ params["last"]
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean()

    flat, unravel = ravel_pytree(params)
    dense = np.linalg.eigvalsh(jax.hessian(lambda w: loss(unravel(w)))(flat))
    assert dense[0] < 0
    found = top_eigenvalue(loss, params, tolerance=1e-7, key=KEY)
    np.testing.assert_allclose(found.value, dense[-1], rtol=1e-10)
    assert dense[0] - 1e-12 <= found.lowest < 0


def test_what_is_not_finite_is_told():
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


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"max_iterations": 0}])
def test_options_must_be_positive(options):
    with pytest.raises(ValueError, match="must be positive"):
        top_eigenvalue(jnp.sum, jnp.ones(3), key=KEY, **options)
