"""Running statistics that are computed again, against NumPy in float64."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import plp_optax

SIZES = (8, 8, 5)


def batches():
    rng = np.random.default_rng(0)
    return [jnp.asarray(3 + 2 * rng.normal(size=(n, 4))) for n in SIZES]


def by_hand(kernel, epsilon=1e-5):
    """Statistics of both norms, weighting batches by their examples."""
    inputs = [np.asarray(x) for x in batches()]
    everything = np.concatenate(inputs)
    hidden = [
        (x - x.mean(0)) / np.sqrt(x.var(0) + epsilon) @ np.asarray(kernel)
        for x in inputs
    ]
    mean = sum(len(h) * h.mean(0) for h in hidden) / sum(SIZES)
    square = sum(len(h) * (h.var(0) + h.mean(0) ** 2) for h in hidden) / sum(SIZES)
    return [everything.mean(0), everything.var(0), mean, square - mean**2]


def test_linen():
    norm = functools.partial(nn.BatchNorm, dtype=float)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = norm(not train, name="first")(x)
            x = nn.Dense(3, use_bias=False, name="dense", param_dtype=float)(x)
            return norm(not train, name="second")(x)

    with jax.enable_x64(True):
        net = Net()
        variables = net.init(jax.random.key(0), batches()[0], train=False)
        variables["batch_stats"] = jax.tree.map(
            lambda x: jnp.full(x.shape, 7.0), variables["batch_stats"]
        )
        fresh = plp_optax.linen.recompute_batch_stats(
            jax.jit(
                lambda variables, x: net.apply(
                    variables, x, train=True, mutable=["batch_stats"]
                )
            ),
            variables,
            batches(),
        )
        stats = fresh["batch_stats"]
        actual = [stats[n][m] for n in ("first", "second") for m in ("mean", "var")]
        for x, y in zip(
            actual, by_hand(variables["params"]["dense"]["kernel"]), strict=True
        ):
            # Flax keeps statistics in float32.
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)
    assert fresh["params"] is variables["params"]


def test_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.BatchNorm(4, dtype=float, rngs=rngs)
            self.dense = nnx.Linear(4, 3, use_bias=False, param_dtype=float, rngs=rngs)
            self.second = nnx.BatchNorm(3, dtype=float, rngs=rngs)

        def __call__(self, x):
            return self.second(self.dense(self.first(x)))

    with jax.enable_x64(True):
        model = Net(nnx.Rngs(0))
        kernel = np.asarray(model.dense.kernel[...])
        plp_optax.nnx.recompute_batch_stats(model, batches())
        norms = (model.first, model.second)
        actual = [x[...] for norm in norms for x in (norm.mean, norm.var)]
        for x, y in zip(actual, by_hand(kernel), strict=True):
            # nnx keeps statistics in float32.
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(model.dense.kernel[...], kernel)


def test_nnx_with_dropout_compiles_once():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    traces = []

    def apply(model, x):
        traces.append(x)
        return model.dropout(model.norm(x))

    model, (batch, *_) = Net(nnx.Rngs(0)), batches()
    for _ in range(2):
        plp_optax.nnx.recompute_batch_stats(model, [batch], apply)
        assert len(traces) == 1
    mean = np.asarray(batch).mean(0)
    np.testing.assert_allclose(model.norm.mean[...], mean, rtol=1e-5)
    assert model.dropout.rngs.count[...] == 0  # the model's own stream is not used


def test_frozen_variables():
    norm = nn.BatchNorm(use_running_average=False)
    variables = flax.core.freeze(norm.init(jax.random.key(0), batches()[0]))
    fresh = plp_optax.linen.recompute_batch_stats(
        lambda v, x: norm.apply(v, x, mutable=["batch_stats"]), variables, batches()
    )
    everything = np.concatenate([np.asarray(x) for x in batches()])
    mean = fresh["batch_stats"]["mean"]
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-5)


def test_wrong_statistics_are_refused():
    def apply(variables, batch):
        return None, {"batch_stats": variables["batch_stats"]}

    recompute = plp_optax.linen.recompute_batch_stats
    with pytest.raises(ValueError, match="no batches"):
        recompute(apply, {"batch_stats": {"mean": jnp.ones(1), "var": jnp.ones(1)}}, [])
    with pytest.raises(ValueError, match="have no batch_stats"):
        recompute(apply, {"params": {}}, batches())
    with pytest.raises(ValueError, match="end in mean and var"):
        recompute(apply, {"batch_stats": {"scale": jnp.ones(1)}}, batches())
    with pytest.raises(ValueError, match="in training mode"):
        recompute(
            apply, {"batch_stats": {"mean": jnp.ones(1), "var": jnp.ones(1)}}, batches()
        )


def test_small_variance_next_to_a_large_mean():
    """In float32 the square of the mean alone would round by 0.06."""
    batch = {"mean": np.array([1000.0]), "var": np.array([0.01])}

    def apply(variables, x):
        stats = variables["batch_stats"]
        return None, {
            "batch_stats": {
                n: jnp.asarray(0.5 * stats[n] + 0.5 * batch[n], jnp.float32)
                for n in batch
            }
        }

    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    fresh = plp_optax.linen.recompute_batch_stats(
        apply, {"batch_stats": stats}, batches()[:2]
    )["batch_stats"]
    np.testing.assert_allclose(fresh["var"], 0.01, rtol=1e-4)
