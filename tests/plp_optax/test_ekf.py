"""The extended Kalman filter: exact against NumPy, stable, and what it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from plp_optax import _ekf

SETTINGS = {
    "prior_variance": 2.0,
    "measurement_noise": 0.3,
    "process_noise": 0.01,
    "forgetting": 0.97,
}


def make_params(dtype=jnp.float32):
    return {
        "hidden": (jnp.asarray([[0.5, -0.2, 0.1], [0.3, 0.8, -0.5]], dtype),),
        "out": jnp.asarray([[0.2, -0.4], [0.9, 0.1], [-0.3, 0.6]], dtype),
        "bias": jnp.asarray(0.1, dtype),
    }


def network(params, x):
    """Two inputs, three hidden units, two outputs; 13 parameters."""
    return jnp.tanh(x @ params["hidden"][0]) @ params["out"] + params["bias"]


def one_output(params, x):
    return network(params, x)[0]


def make_samples(steps=20, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, 2))
    y = np.stack([np.sin(x[:, 0]), x[:, 0] * x[:, 1]], axis=1)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def make_step(tx, model=network):
    """One update, as a function of (params, state) and a sample."""

    def step(carry, sample):
        params, state = carry
        x, y = sample
        prediction, jacobian = model(params, x), jax.jacrev(model)(params, x)
        y = y[: prediction.size].reshape(prediction.shape)
        updates, state = tx.update(jacobian, state, params, innovation=y - prediction)
        return (optax.apply_updates(params, updates), state), y - prediction

    return step


def run(tx, params, samples, model=network):
    """Parameters and state after all samples, updated in a Python loop."""
    step = jax.jit(make_step(tx, model))
    carry = params, tx.init(params)
    for sample in zip(*samples, strict=True):
        carry, _ = step(carry, sample)
    return carry


PARAMS = make_params()
SAMPLES = make_samples()
JACOBIAN = jax.jacrev(network)(PARAMS, SAMPLES[0][0])
INNOVATION = jnp.asarray([0.5, -1.0])


# -- what it computes ------------------------------------------------------------------


class Twin:
    """The filter as textbooks print it, with inverses, in NumPy float64."""

    def __init__(
        self,
        w,
        prior_variance=1.0,
        measurement_noise=1.0,
        process_noise=0.0,
        forgetting=1.0,
    ):
        self.w = w
        self.p = prior_variance * np.eye(w.size)
        self.r, self.q, self.forgetting = measurement_noise, process_noise, forgetting

    def update(self, a, e):
        p = self.p / self.forgetting
        k = p @ a.T @ np.linalg.inv(a @ p @ a.T + self.r * np.eye(len(e)))
        self.w = self.w + k @ e
        self.p = p - k @ a @ p + self.q * np.eye(self.w.size)


@pytest.mark.parametrize(("model", "settings"), [(one_output, {}), (network, SETTINGS)])
def test_equals_the_textbook(model, settings):
    with jax.enable_x64(True):
        params, samples = make_params(float), make_samples(dtype=float)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        twin = Twin(np.asarray(flat), **settings)
        linearize = jax.jit(lambda p, x: (model(p, x), jax.jacrev(model)(p, x)))
        for x, y in zip(*samples, strict=True):
            prediction, jacobian = linearize(unravel(twin.w), x)
            m = prediction.size
            rows = [np.reshape(leaf, (m, -1)) for leaf in jax.tree.leaves(jacobian)]
            twin.update(np.concatenate(rows, axis=1), np.ravel(y[:m] - prediction))
        params, state = run(plp_optax.ekf(**settings), params, samples, model)
        np.testing.assert_allclose(
            jax.flatten_util.ravel_pytree(params)[0], twin.w, rtol=0, atol=1e-11
        )
        np.testing.assert_allclose(state.covariance, twin.p, rtol=0, atol=1e-11)


def test_on_a_linear_model_it_is_ridge_regression():
    outputs, forgetting = 3, 0.9
    rng = np.random.default_rng(1)
    n, size, p0, r = 40, 5, 3.0, 0.2
    a = rng.normal(size=(n, outputs, size))
    y = rng.normal(size=(n, outputs))
    w0 = rng.normal(size=size)
    weights = forgetting ** np.arange(n - 1, -1, -1.0) / r
    normal = np.einsum("t,tmi,tmj->ij", weights, a, a)
    normal += forgetting**n / p0 * np.eye(size)
    right = np.einsum("t,tmi,tm->i", weights, a, y) + forgetting**n / p0 * w0

    with jax.enable_x64(True):
        tx = plp_optax.ekf(p0, measurement_noise=r, forgetting=forgetting)
        step = make_step(tx, lambda w, a: a @ w)
        carry = jnp.asarray(w0), tx.init(jnp.asarray(w0))
        (w, state), _ = jax.lax.scan(step, carry, (jnp.asarray(a), jnp.asarray(y)))
    np.testing.assert_allclose(w, np.linalg.solve(normal, right), rtol=1e-11)
    np.testing.assert_allclose(state.covariance, np.linalg.inv(normal), atol=1e-12)


def test_covariance_stays_symmetric_and_positive_definite():
    """10^5 updates with inputs of unequal scale that are nearly collinear."""
    dtype = jnp.float32
    settings = (  # prior variance, measurement noise, process noise, forgetting
        (1.0, 1.0, 0.0, 1.0),
        (1e2, 1e-2, 0.0, 1.0),
        (1.0, 1.0, 1e-6, 1.0),
        (1.0, 0.1, 0.0, 0.99),
    )
    scales = np.array([1.0, 3.0, 0.3])

    def worst(prior, r, q, forgetting):
        tx = plp_optax.ekf(
            prior, measurement_noise=r, process_noise=q, forgetting=forgetting
        )

        def step(carry, key):
            state, smallest, asymmetry = carry
            z = jax.random.normal(key, (3,), dtype)
            a = (z[0] + z / 10) * scales.astype(dtype)
            _, state = tx.update(a, state, innovation=z[1])
            p = state.covariance
            smallest = jnp.minimum(smallest, smallest_pivot(p))
            asymmetry = jnp.maximum(asymmetry, jnp.abs(p - p.T).max())
            return (state, smallest, asymmetry), None

        keys = jax.random.split(jax.random.key(0), 100_000)
        start = (
            tx.init(jnp.zeros(3, dtype)),
            jnp.asarray(1, dtype),
            jnp.zeros((), dtype),
        )
        return jax.lax.scan(step, start, keys)[0]

    arguments = (jnp.asarray(x, dtype) for x in zip(*settings, strict=True))
    state, smallest, asymmetry = jax.jit(jax.vmap(worst))(*arguments)
    assert np.all(np.linalg.eigvalsh(np.asarray(state.covariance, np.float64)) > 0)
    assert np.all(np.asarray(smallest) > 0)
    np.testing.assert_array_equal(asymmetry, 0)


def smallest_pivot(p):
    """The smallest pivot of a symmetric 3 x 3 matrix with its diagonal scaled to 1.

    Positive if and only if the matrix is positive definite, and NaN propagates.
    """
    d = jnp.sqrt(jnp.diag(p))
    c = p / d[:, None] / d[None, :]
    second = 1 - c[0, 1] ** 2
    third = 1 - c[0, 2] ** 2 - (c[1, 2] - c[0, 1] * c[0, 2]) ** 2 / second
    return jnp.minimum(second, third)


@pytest.mark.parametrize(
    ("dtypes", "kept"),
    [(["bfloat16"], "float32"), (["float32", "float64", "float16"], "float64")],
)
def test_covariance_has_the_widest_type(dtypes, kept):
    with jax.enable_x64(True):
        params = [jax.ShapeDtypeStruct((2, i), d) for i, d in enumerate(dtypes)]
        assert jax.eval_shape(plp_optax.ekf().init, params).covariance.dtype == kept


def test_a_chain_without_parameters_passes():
    tx = plp_optax.ekf()
    updates, after = tx.update({}, tx.init({}), innovation=INNOVATION)
    assert updates == {}
    assert after.covariance.shape == (0, 0)


# -- what it refuses -------------------------------------------------------------------


def test_names_the_bytes_of_a_covariance_that_is_too_large():
    init = plp_optax.ekf().init
    fits = jax.ShapeDtypeStruct((100, _ekf.MAX_PARAMETERS // 100), jnp.float32)
    shape = jax.eval_shape(init, fits).covariance.shape
    assert shape == (_ekf.MAX_PARAMETERS, _ekf.MAX_PARAMETERS)
    # (10,000 + 1)^2 * 4
    with pytest.raises(ValueError, match=r"10,001 .* 400,080,004 bytes in float32"):
        jax.eval_shape(init, (fits, jnp.zeros(())))


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32])
def test_refuses_what_is_not_real(dtype):
    tx, ones = plp_optax.ekf(), jnp.ones(2)
    name = jnp.dtype(dtype).name
    with pytest.raises(ValueError, match=f"parameters .* got {name}"):
        tx.init(ones.astype(dtype))
    state = tx.init(ones)
    with pytest.raises(ValueError, match=f"Jacobian .* got {name}"):
        tx.update(ones.astype(dtype), state, innovation=jnp.ones(()))
    with pytest.raises(ValueError, match=f"innovation .* got {name}"):
        tx.update(ones, state, innovation=jnp.ones((), dtype))


def test_refuses_an_update_without_an_innovation():
    tx = optax.chain(plp_optax.ekf(), optax.scale(1.0))
    with pytest.raises(ValueError, match="innovation=target - prediction"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("jacobian", "innovation", "message"),
    [
        (JACOBIAN, jnp.ones(()), r"shape \(\), the Jacobian"),
        (PARAMS, INNOVATION, r"shape \(2,\), the Jacobian"),
        (JACOBIAN, jnp.ones(3), r"shape \(3,\), the Jacobian"),
        (PARAMS["out"], jnp.ones(()), "13 parameters"),
        (JACOBIAN, jnp.ones((2, 1)), r"got shape \(2, 1\)"),
        (JACOBIAN, jnp.ones(0), r"got shape \(0,\)"),
    ],
)
def test_refuses_a_jacobian_that_does_not_fit(jacobian, innovation, message):
    tx = plp_optax.ekf()
    for params in (None, PARAMS):
        with pytest.raises(ValueError, match=message):
            tx.update(jacobian, tx.init(PARAMS), params, innovation=innovation)


def test_missing_targets_are_left_out_and_counted():
    """An output with a NaN target is as if the model did not have it."""
    params, (x, y) = make_params(), make_samples(6)
    tx = plp_optax.ekf(**SETTINGS)
    both, first = jax.jit(make_step(tx)), jax.jit(make_step(tx, one_output))
    carry = expected = (params, tx.init(params))
    for t in range(6):
        missing = t % 2 == 1
        carry, _ = both(carry, (x[t], y[t].at[1].set(jnp.nan) if missing else y[t]))
        expected, _ = (first if missing else both)(expected, (x[t], y[t]))
    chex.assert_trees_all_close(carry[0], expected[0], rtol=1e-4)
    chex.assert_trees_all_close(
        carry[1].covariance, expected[1].covariance, rtol=1e-3, atol=1e-6
    )
    assert carry[1].missing == 3
    before = carry
    (params, state), _ = first(carry, (x[0], jnp.full(2, jnp.nan)))
    chex.assert_trees_all_equal(params, before[0])
    assert state.missing == 4
    assert np.isfinite(state.covariance).all()


def test_strict_promotion_with_several_dtypes():
    with jax.numpy_dtype_promotion("strict"):
        state = plp_optax.ekf().init({"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(1)})
    assert state.covariance.dtype == jnp.float32
