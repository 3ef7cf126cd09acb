"""Statistics of layers, against literal twins."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import plp_optax
from plp_optax import AmplificationWindow, stacked
from tests.support import reference
from tests.support.amplification import every_measure, kernels
from tests.support.problems import jitted, run_tree

STEPS, DECAY, WINDOW = 9, 0.8, 4
SIZES = {"a": (2, 3), "b": (4,), "c": (1, 1)}


def problem(steps=STEPS, seed=0):
    """Parameters and gradients; of b one weight has none, of c one step is infinite."""
    rng = np.random.default_rng(seed)

    def tree(scale=1.0):
        return {n: {"kernel": scale * rng.normal(size=s)} for n, s in SIZES.items()}

    gradients = [tree(1 + i / 4) for i in range(steps)]
    for gradient in gradients:
        gradient["a"]["kernel"] += 0.7
        gradient["b"]["kernel"][1] = 0.0
    gradients[2]["c"]["kernel"][:] = np.inf
    return tree(), gradients


def monitored(tx, params, gradients):
    """The moments after each step, and all updates."""
    state, update = tx.init(params), jax.jit(tx.update)
    moments, outputs = [], []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        moments.append(state.moments)
        outputs.append(updates)
    return moments, outputs


def twin(params, gradients, steps, weight, measure):
    """The statistics of each layer over these steps."""
    found = []
    for name in SIZES:
        kept = [i for i in steps if np.isfinite(gradients[i][name]["kernel"]).all()]
        g = [gradients[i][name]["kernel"].ravel() for i in kept]
        u = [-0.1 * x for x in g]
        w = [params[name]["kernel"].ravel()] * len(g)
        # A step that a layer leaves out does not age the ones before it.
        weights = [weight ** (len(kept) - 1 - k) for k in range(len(kept))]
        found.append(reference.layer_statistics(g, u, w, weights, measure))
    return found


def assert_moments(moments, expected, measure):
    for name in expected[0]:
        values = getattr(moments, name)
        if measure == "g1" and name in ("signal", "noise"):
            assert values is None
        else:
            wanted = [layer[name] for layer in expected]
            np.testing.assert_allclose(values, wanted, rtol=1e-11, atol=1e-13)


@every_measure
def test_exponential_averages_follow_their_twin(measure):
    with jax.enable_x64(True):
        params, gradients = problem()
        tx = plp_optax.monitor_layers(optax.sgd(0.1), measure=measure, decay=DECAY)
        moments, _ = monitored(tx, params, gradients)
        for last in range(STEPS):
            expected = twin(params, gradients, range(last + 1), DECAY, measure)
            assert_moments(moments[last], expected, measure)


def test_windows_follow_their_twin_and_hold_until_the_next_ends():
    measure = "g1_per_weight"
    with jax.enable_x64(True):
        params, gradients = problem()
        tx = plp_optax.monitor_layers(optax.sgd(0.1), measure=measure, window=WINDOW)
        moments, _ = monitored(tx, params, gradients)
        for last in range(STEPS):
            first = (last + 1) // WINDOW * WINDOW - WINDOW
            if first < 0:
                np.testing.assert_array_equal(moments[last].samples, 0)
            else:
                steps = range(first, first + WINDOW)
                assert_moments(
                    moments[last], twin(params, gradients, steps, 1, measure), measure
                )


def test_noise_and_signal_are_unbiased():
    """400 layers with a known mean and deviation, in 5 gradients each."""
    rng = np.random.default_rng(1)
    rows = 0.5 + 2.0 * rng.normal(size=(5, 400, 16))
    params = {"kernel": jnp.ones((400, 16))}
    for kwargs in ({"window": 5}, {"decay": 0.7}):
        tx = plp_optax.monitor_layers(
            measure="g1_per_weight", layers=stacked(".*"), **kwargs
        )
        gradients = [{"kernel": jnp.asarray(row, jnp.float32)} for row in rows]
        moments = monitored(tx, params, gradients)[0][-1]
        assert float(moments.noise.mean()) == pytest.approx(16 * 4, rel=0.05)
        # Negative estimates are cut to 0, which leaves a bias at so low a signal.
        assert 16 * 0.25 < float(moments.signal.mean()) < 16 * 0.25 + 5


def test_updates_are_those_of_the_optimizer():
    params, gradients = problem()
    params, gradients = jax.tree.map(jnp.float32, (params, gradients[3:]))
    plain = optax.adamw(0.1)
    expected, _ = run_tree(jitted(plain), params, gradients)
    watched = plp_optax.monitor_layers(plain, measure="g2")
    actual, _ = run_tree(jitted(watched), params, gradients)
    chex.assert_trees_all_equal(actual, expected)
    outputs = monitored(plp_optax.monitor_layers(), params, gradients)[1]
    chex.assert_trees_all_equal(outputs, gradients)


def test_stacked_layers_are_layers_of_their_own():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        rows = rng.normal(size=(6, 3, 4))
        make = functools.partial(plp_optax.monitor_layers, measure="g2", decay=0.9)
        apart = [kernels(row) for row in rows]
        together = [{"blocks": {"kernel": row}} for row in rows]
        one = make(layers=stacked("blocks/.*", layers="modules"))
        moments = monitored(one, together[0], together)[0]
        chex.assert_trees_all_close(moments, monitored(make(), apart[0], apart)[0])


def test_masked_leaves_and_gradients_that_are_none():
    params, gradients = problem()
    tx = plp_optax.monitor_layers(measure="g1_per_weight")
    full = monitored(tx, params, gradients)[0][-1]
    masked = optax.masked(tx, {"a": True, "b": False, "c": False})
    state = masked.init(params)
    none = tx.init(params)
    for gradient in gradients:
        _, state = jax.jit(masked.update)(gradient, state, params)
        _, none = jax.jit(tx.update)(gradient | {"b": {"kernel": None}}, none, params)
    rows = plp_optax.layer_statistics(state, {"a": params["a"]})
    np.testing.assert_allclose(rows[0].noise, full.noise[0], rtol=1e-6)
    rows = plp_optax.layer_statistics(none, params)
    np.testing.assert_allclose(rows[0].snr, full.signal[0] / full.noise[0], rtol=1e-6)
    assert np.isnan(rows[1][1:]).all()


@pytest.mark.parametrize(
    "factory",
    [
        plp_optax.noise_adaptive_rates,
        functools.partial(plp_optax.monitor_layers, measure="g2"),
    ],
    ids=["rates", "monitor"],
)
def test_parameters_that_shard_map_splits(factory):
    with jax.enable_x64(True):
        mesh = Mesh(np.array(jax.devices()), ("x",))
        rng = np.random.default_rng(3)
        rows = rng.normal(size=(5, 2, 8, 3))
        gradients = [{"a": {"kernel": r[0]}, "b": {"kernel": r[1]}} for r in rows]
        params = gradients[0]
        make = functools.partial(factory, decay=0.7)
        expected = jax.jit(lambda: feed_with_params(make(), params, gradients))()

        def run(params, gradients):
            return feed_with_params(make(axis_name="x"), params, gradients)

        specs = jax.tree.map(
            lambda x: P("x") if x.shape == (8, 3) else P(),
            jax.eval_shape(lambda: expected),
        )
        split = jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=specs)
        chex.assert_trees_all_close(
            jax.jit(split)(params, gradients), expected, rtol=1e-9
        )


def feed_with_params(tx, params, gradients):
    state = tx.init(params)
    for gradient in gradients:
        updates, state = tx.update(gradient, state, params)
    return updates, state


# -- reading ---------------------------------------------------------------------------


def test_the_table_before_the_first_window_and_of_both_states():
    params = kernels(np.ones((2, 3), np.float32))
    windows = [AmplificationWindow(0, 4, 2, factor=2.0)]
    tx = plp_optax.monitor_layers(
        plp_optax.amplify_layers(windows, select=plp_optax.by_score(0.5)), window=2
    )
    state = tx.init(params)
    tables = plp_optax.layer_table(state, params).split("\n\n")
    assert tables[0].splitlines()[1:] == [
        *(f"{name}          -            -      -" for name in "ab"),
        "(nothing yet after 0 updates: filled at the end of the first analysis epoch)",
    ]
    assert tables[1].splitlines()[1].split() == ["a", *"------"]
    assert tables[1].splitlines()[-1] == (
        "(nothing yet after 0 updates: filled at the end of the first window)"
    )
    for _ in range(2):
        _, state = jax.jit(tx.update)(params, state, params)
    text = plp_optax.layer_table(state, params)
    assert "nothing yet" not in text
    # g1 has no signal and no noise.
    assert text.splitlines()[-1].split() == [
        *("b", "1.7e+00", "1.7e+00", "1.7e+00", "1.0e+00", "-", "1.0000")
    ]
    rows = plp_optax.layer_statistics(state, params)
    assert text.endswith(plp_optax.layer_table(rows))
    with pytest.raises(ValueError, match="finds 1 in params"):
        plp_optax.layer_statistics(state, params, layers=lambda path: "one")
    with pytest.raises(ValueError, match="several members"):
        plp_optax.layer_statistics(jax.tree.map(lambda x: x[None], state), params)
    with pytest.raises(ValueError, match="contains 0"):
        plp_optax.layer_table(optax.sgd(0.1).init(params), params)
