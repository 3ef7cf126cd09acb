"""The analysis of what amplification saw and chose."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from plp_optax import AmplificationWindow, all_layers, by_score
from tests.support import reference
from tests.support.amplification import (
    IDENTITY_WINDOWS,
    analyze,
    feed,
    kernels,
)


def analysis_state(measure="g2", limit=0.5):
    """Layers a to c score 1, 1/3 and 0 in three iterations of two weights."""
    rows = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0]], np.float32)
    gradients = [kernels(np.repeat(rows[:, i : i + 1], 2, axis=1)) for i in range(3)]
    return analyze(gradients, measure=measure, select=by_score(limit))[0], gradients[0]


@pytest.mark.parametrize(
    ("measure", "samples"), [("g1", 6), ("g1_per_weight", 3), ("g2", 3)]
)
def test_layer_analyses(measure, samples):
    state, params = analysis_state(measure)
    analyses = plp_optax.layer_analyses(state, params)
    z_scores = reference.standardize([1.0, 1 / 3, 0.0])
    assert [a.layer for a in analyses] == ["a", "b", "c"]
    np.testing.assert_allclose([a.score for a in analyses], [1, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose([a.noise_floor for a in analyses], samples**-0.5)
    np.testing.assert_allclose([a.z_score for a in analyses], z_scores, rtol=1e-5)
    assert [a.amplified for a in analyses] == [True, False, False]
    shapes = jax.eval_shape(lambda: params)
    assert plp_optax.layer_analyses(state, shapes) == analyses

    # A state that was read back from disk is of NumPy arrays.
    restored = flax.serialization.msgpack_restore(
        flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(state))
    )
    restored = type(state)(**restored)
    assert isinstance(restored.scores, np.ndarray)
    assert plp_optax.layer_analyses(restored, params) == analyses


def test_the_table_of_an_analysis():
    """z = 5, -1 and -4 over the root of 14; the floor is that of 3 iterations."""
    state, params = analysis_state()
    table = plp_optax.layer_table(state, params)
    assert plp_optax.layer_table(plp_optax.layer_analyses(state, params)) == table
    assert table.splitlines() == [
        "layer  score  noise floor      z  amplified",
        "a     1.0000       0.5774   1.34  yes",
        "b     0.3333       0.5774  -0.27",
        "c     0.0000       0.5774  -1.07",
    ]


def test_analyses_by_the_rule_of_the_transformation():
    gradient = {"w": jnp.ones(3), "v": jnp.ones(5)}
    layers = [("(.)", r"layer-\1")]
    state, _ = analyze([gradient] * 2, layers=layers, measure="g1")
    analyses = plp_optax.layer_analyses(state, gradient, layers=layers)
    assert [a.layer for a in analyses] == ["layer-v", "layer-w"]
    np.testing.assert_allclose(
        [a.noise_floor for a in analyses], [10**-0.5, 6**-0.5], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"2 layers, the rule .* finds 1 in params"):
        plp_optax.layer_analyses(state, gradient, layers=lambda path: "one")


def test_analyses_before_the_first_selection():
    params = kernels(np.zeros((3, 4)))
    for measure in ("g1", "g2"):
        tx = plp_optax.amplify_layers(
            IDENTITY_WINDOWS, measure=measure, select=by_score(1)
        )
        for analysis in plp_optax.layer_analyses(tx.init(params), params):
            assert np.isnan(
                [analysis.score, analysis.noise_floor, analysis.z_score]
            ).all()
            assert not analysis.amplified
        table = plp_optax.layer_table(tx.init(params), params)
        assert table.splitlines()[1].split() == ["a", "-", "-", "-"]
    empty = plp_optax.layer_table(tx.init({}), {})
    assert empty == "layer  score  noise floor      z  amplified"


def test_the_state_is_found_inside_of_others():
    gradient = kernels(np.array([[1.0], [2.0], [0.0]], np.float32))
    windows = [AmplificationWindow(0, 2, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, select=all_layers())
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), tx, optax.sgd(0.1, momentum=0.9)
    )
    for outer in (
        chain,
        optax.MultiSteps(chain, 1).gradient_transformation(),
        optax.masked(tx, True),
        optax.inject_hyperparams(lambda factor: chain)(factor=2.0),
    ):
        _, states = feed(outer, [gradient], gradient)
        analyses = plp_optax.layer_analyses(states[-1], gradient)
        assert [a.score for a in analyses] == [1, 1, 0]
        assert plp_optax.layer_table(states[-1], gradient).count("yes") == 3
    for others, number in ((optax.sgd(0.1), 0), (optax.chain(tx, tx), 2)):
        with pytest.raises(
            ValueError, match=f"one AmplifyLayersState, and contains {number}"
        ):
            plp_optax.layer_analyses(others.init(gradient), gradient)


@pytest.mark.parametrize("measure", ["g1", "g2"])
def test_stacked_members_have_a_table_each(measure):
    windows = [AmplificationWindow(0, 2, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, select=all_layers(), measure=measure)
    rows = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    gradients = [kernels(row) for row in rows]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *gradients)
    _, state = jax.jit(jax.vmap(tx.update))(stacked, jax.vmap(tx.init)(stacked))
    tables = []
    for i, gradient in enumerate(gradients):
        _, one = jax.jit(tx.update)(gradient, tx.init(gradient))
        tables.append(f"member {i}\n{plp_optax.layer_table(one, gradient)}")
    table = plp_optax.layer_table((state, optax.EmptyState()), stacked)
    assert table == "\n\n".join(tables)
    with pytest.raises(ValueError, match="holds 2 members"):
        plp_optax.layer_analyses(state, stacked)
