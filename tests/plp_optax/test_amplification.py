"""Amplification: whole strategies against their twin, when, types, trees."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import plp_optax
from plp_optax import (
    AmplificationWindow,
    TrainingStrategy,
    all_layers,
    at_random,
    by_score,
    named,
    stacked,
)
from tests.support import reference
from tests.support.amplification import (
    HALF,
    IDENTITY_WINDOWS,
    PARTS,
    analyze,
    every_measure,
    feed,
    kernels,
)

# -- a whole strategy ------------------------------------------------------------------

# Epochs 1-2 plain; 3 analysed, 4-7 amplified; 8 analysed, 9-11 amplified; 12 plain.
STAGES = [(2, 0.1, 0, 1.0), (7, 0.1, 1, 1.75), (11, 0.02, 1, 2.5), (12, 0.02, 0, 1.0)]
STEPS = 3  # an epoch
TOTAL = 12 * STEPS
THRESHOLD = 0.6
ONE_SIDED = by_score(THRESHOLD)
LAYERS = ["conv0", "conv1", "conv2", "conv3", "head"]
SHAPES = [[(2, 3), (3,)], [(4, 1)], [(1, 2), (2,)], [(5,)], [(3, 2), (2,)]]

_rng = np.random.default_rng(11)
START = [[_rng.normal(size=s) for s in shapes] for shapes in SHAPES]
PULL = [0.1, 1.0, 0.3, 2.0, 0.02]
NOISE = [
    [[0.5 * _rng.normal(size=s) for s in shapes] for shapes in SHAPES]
    for _ in range(TOTAL)
]


def strategy_gradient(layers, count):
    """Noise, and a pull towards 2 that differs from layer to layer."""
    return [
        [pull * (w - 2.0) + e for w, e in zip(layer, noise, strict=True)]
        for layer, pull, noise in zip(layers, PULL, NOISE[count], strict=True)
    ]


def as_tree(layers):
    return {
        name: dict(zip(PARTS, layer, strict=False))
        for name, layer in zip(LAYERS, layers, strict=True)
    }


def as_layers(tree):
    return [
        [np.asarray(tree[name][part]) for part in PARTS if part in tree[name]]
        for name in LAYERS
    ]


def run_strategy(momentum=0.8, weight_decay=0.05, select=ONE_SIDED, **kwargs):
    """Layers after each step, and (scores, z, amplified) of each selection."""
    strategy = TrainingStrategy(STAGES, steps_per_epoch=STEPS)
    with jax.enable_x64(True):
        tx = optax.chain(
            plp_optax.amplify_layers(strategy, select=select, **kwargs),
            optax.add_decayed_weights(weight_decay),
            optax.sgd(strategy.learning_rate, momentum=momentum),
        )

        @jax.jit
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        params = jax.tree.map(jnp.asarray, as_tree(START))
        state, history, selections = tx.init(params), [], []
        for count in range(TOTAL):
            gradient = as_tree(strategy_gradient(as_layers(params), count))
            params, state = step(params, state, gradient)
            history.append(as_layers(params))
            if int(state[0].selections) > len(selections):
                s = state[0]
                selections.append(
                    tuple(np.asarray(x) for x in (s.scores, s.z_scores, s.amplified))
                )
    return history, selections


def assert_follows_twin(history, selections, choose, measure="g2", **kwargs):
    expected, analyses = reference.train_with_strategy(
        START,
        strategy_gradient,
        STAGES,
        steps_per_epoch=STEPS,
        measure=measure,
        choose=choose,
        momentum=0.8,
        weight_decay=0.05,
        **kwargs,
    )
    assert len(selections) == len(analyses)
    for (scores, z_scores, amplified), (scores_, chosen) in zip(
        selections, analyses, strict=True
    ):
        np.testing.assert_allclose(scores, scores_, rtol=1e-11, atol=1e-13)
        z_scores_ = reference.standardize(scores_)
        np.testing.assert_allclose(z_scores, z_scores_, rtol=1e-9, atol=1e-9)
        assert amplified.tolist() == chosen
    assert any(any(chosen) for _, chosen in analyses)
    chex.assert_trees_all_close(history, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("measure", "reselect_every", "two_sided"),
    [
        ("g1", 2, True),
        ("g1_per_weight", 1, False),
        ("g2", None, True),
        ("g2", 2, False),
    ],
)
def test_strategy_follows_its_twin(measure, reselect_every, two_sided):
    kwargs = {"measure": measure, "reselect_every": reselect_every}

    def choose(z_scores):
        return reference.select_layers(z_scores, THRESHOLD, two_sided)

    history, selections = run_strategy(
        **kwargs, select=by_score(THRESHOLD, two_sided=two_sided)
    )
    # Stages of 5 and 4 epochs: 4 and 3 amplified, the last of which is never analysed.
    assert len(selections) == {None: 2, 1: 2 + 3 + 2, 2: 2 + 1 + 1}[reselect_every]
    assert_follows_twin(history, selections, choose, **kwargs)


@pytest.mark.parametrize(
    ("select", "factor"),
    [
        (at_random(0.5, seed=3), lambda count: 1.0 + 0.1 * count),
        (all_layers(), 3.0),
        (named("head", "conv1"), None),
    ],
    ids=["random", "all", "named"],
)
def test_every_selection_and_factor_follows_the_twin(select, factor):
    kwargs = {"factor": factor, "reselect_every": 2}
    history, selections = run_strategy(select=select, **kwargs)
    drawn = iter([amplified.tolist() for _, _, amplified in selections])
    assert_follows_twin(history, selections, lambda z_scores: next(drawn), **kwargs)


@pytest.mark.parametrize("is_inner", [True, False])
def test_factor_0_freezes_the_layers_of_the_lowest_scores(is_inner):
    """As inner. Before an optimizer, momentum and decay still move them."""
    base = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, 0.9))
    windows = [AmplificationWindow(0, 8, 4, factor=0.0)]
    select = by_score(1.0, lowest=True)
    if is_inner:
        tx = plp_optax.amplify_layers(windows, select=select, inner=base)
    else:
        tx = optax.chain(plp_optax.amplify_layers(windows, select=select), base)
    params = kernels(np.ones((4, 2), np.float32))
    state, history = tx.init(params), [params]
    for step in range(8):
        signs = [1.0, 1.0, (-1.0) ** step, 1.0]
        gradient = kernels([jnp.full(2, sign) for sign in signs])
        updates, state = jax.jit(tx.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    moved = {
        n: not np.array_equal(history[4][n]["kernel"], params[n]["kernel"])
        for n in "abcd"
    }
    assert moved == {"a": True, "b": True, "c": not is_inner, "d": True}


# -- when ------------------------------------------------------------------------------


def timeline(windows, steps, **kwargs):
    """By step: the factor on the one selected layer; where a selection was made."""
    tx = plp_optax.amplify_layers(windows, select=named("a"), **kwargs)
    gradients = [kernels(np.ones((2, 1), np.float32))] * steps
    outputs, states = feed(tx, gradients)
    assert all(float(u["b"]["kernel"][0]) == 1 for u in outputs)
    counts = [int(s.selections) for s in states]
    selected = [step for step in range(steps) if counts[step + 1] > counts[step]]
    assert [int(s.gradients_seen) for s in states] == list(range(steps + 1))
    return [float(u["a"]["kernel"][0]) for u in outputs], selected


WINDOW = AmplificationWindow(2, 12, 2, 3.0)  # analysis in 2-3, amplified in 4 to 11


@pytest.mark.parametrize(
    ("windows", "reselect_every", "factors", "selected"),
    [
        (
            [AmplificationWindow(0, 4, 2, 3.0), AmplificationWindow(4, 7, 1, 5.0)],
            None,
            [1, 1, 3, 3, 1, 5, 5, 1, 1],
            [1, 4],
        ),
        # Selected again at the end of every k amplified epochs but the last.
        ([WINDOW], None, [1] * 4 + [3] * 8 + [1] * 2, [3]),
        ([WINDOW], 1, [1] * 4 + [3] * 8 + [1] * 2, [3, 5, 7, 9]),
        ([WINDOW], 3, [1] * 4 + [3] * 8 + [1] * 2, [3, 9]),
        # A partial last epoch is amplified and not analysed.
        ([AmplificationWindow(0, 7, 2, 3.0)], 1, [1, 1, 3, 3, 3, 3, 3, 1], [1, 3, 5]),
    ],
)
def test_when_layers_are_amplified_and_selected(
    windows, reselect_every, factors, selected
):
    found = timeline(windows, len(factors), reselect_every=reselect_every)
    assert found == (factors, selected)


def test_windows_up_to_the_last_step_that_int32_counts():
    """Three epochs of two steps and a partial one, which would be analysed again."""
    last = 2**31 - 1
    start = last - 7
    tx = plp_optax.amplify_layers(
        [AmplificationWindow(start, last, 2, 3.0)],
        select=all_layers(),
        reselect_every=3,
        apply=False,
    )
    gradient = {"kernel": jnp.ones(1)}
    state = tx.init(gradient)._replace(gradients_seen=jnp.asarray(start, jnp.int32))
    factors, selections = [], []
    update = jax.jit(tx.update)
    for _ in range(10):
        factors.append(float(state.factors[0]))
        _, state = update(gradient, state)
        selections.append(int(state.selections))
    assert factors == [1, 1, 3, 3, 3, 3, 3, 1, 1, 1]
    assert selections == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert int(state.gradients_seen) == last


def test_parameters_outside_of_layers_pass_and_do_not_count():
    gradient = {
        "conv": {"kernel": jnp.ones((2, 2)), "bias": -jnp.ones(2)},
        "head": {"kernel": jnp.ones(3)},
        "norm": {"scale": jnp.full(2, jnp.nan), "bias": jnp.ones(2)},
    }
    windows = [AmplificationWindow(0, 3, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure="g1", select=all_layers())
    outputs, states = feed(tx, [gradient] * 2)
    np.testing.assert_allclose(states[1].scores, [(4 - 2) / (4 + 2), 1], rtol=1e-6)
    twice = jax.tree.map(lambda g: 2 * g, gradient)
    chex.assert_trees_all_equal(outputs[1], twice | {"norm": gradient["norm"]})


# -- apply=False -----------------------------------------------------------------------


def test_apply_false_measures_and_changes_nothing():
    rows = np.random.default_rng(2).normal(size=(8, 3, 4)).astype(np.float32) + 0.4
    gradients = [kernels(row) for row in rows]
    windows = [AmplificationWindow(0, 6, 2, factor=3.0)]
    make = functools.partial(plp_optax.amplify_layers, windows, select=by_score(0.5))
    outputs, states = feed(make(apply=False), gradients)
    _, expected = feed(make(), gradients)
    chex.assert_trees_all_equal(outputs, gradients)
    chex.assert_trees_all_equal(states, expected)  # the factors included
    assert {float(f) for f in states[3].factors} == {1.0, 3.0}


def test_apply_false_has_factors_of_1_in_epochs_analyzed_again():
    windows = [AmplificationWindow(0, 10, 2, factor=3.0)]
    gradients = [kernels(np.ones((2, 1), np.float32))] * 11
    factors = []
    for apply in (True, False):
        tx = plp_optax.amplify_layers(
            windows, select=named("a"), reselect_every=2, apply=apply
        )
        factors.append([float(s.factors[0]) for s in feed(tx, gradients)[1]][:-1])
    assert factors[0] == [1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 1]
    # The second amplified epoch, steps 4 and 5, is analysed; the fourth has none after.
    assert factors[1] == [1, 1, 3, 3, 1, 1, 3, 3, 3, 3, 1]


# -- arguments -------------------------------------------------------------------------


def test_factor_and_threshold_can_be_injected():
    rows = np.random.default_rng(4).normal(size=(6, 4, 3)).astype(np.float32) + 0.5
    gradients = [kernels(row) for row in rows]
    windows = [AmplificationWindow(0, 6, 3, factor=2.0)]

    def amplified(threshold, factor):
        return plp_optax.amplify_layers(
            windows, select=by_score(threshold), factor=factor
        )

    tx = optax.inject_hyperparams(amplified)(threshold=0.3, factor=5.0)
    actual, states = feed(tx, gradients)
    expected, _ = feed(amplified(0.3, 5.0), gradients)
    chex.assert_trees_all_close(actual, expected)
    assert np.any(states[-1].inner_state.amplified)

    # Changed in the state: the threshold before the selection, the factor after it.
    state, update = tx.init(gradients[0]), jax.jit(tx.update)
    state.hyperparams["threshold"] = jnp.asarray(9.0)
    for gradient in gradients[:3]:
        _, state = update(gradient, state)
    assert not np.any(state.inner_state.amplified)
    state = states[3]
    state.hyperparams["factor"] = jnp.asarray(7.0)
    _, state = update(gradients[3], state)
    assert {float(f) for f in state.inner_state.factors} == {1.0, 7.0}


def test_the_papers_tuples_with_steps_per_epoch():
    stages = [(1, 0.1, 0, 1), (4, 0.1, 1, 3.0)]
    gradients = [kernels(np.ones((2, 1), np.float32))] * 8
    strategy = plp_optax.TrainingStrategy(stages, steps_per_epoch=2)
    expected = feed(plp_optax.amplify_layers(strategy, select=all_layers()), gradients)
    tx = plp_optax.amplify_layers(stages, steps_per_epoch=2, select=all_layers())
    chex.assert_trees_all_equal(feed(tx, gradients), expected)


# -- memory and types ------------------------------------------------------------------

WINDOWS = [AmplificationWindow(0, 6, 3, factor=2.0)]


@pytest.mark.parametrize(
    ("measure", "signed", "absolute", "score"),
    [
        ("g1", 257 + 1.5 - 0.5, 257 + 1.5 + 0.5, 258 / 259),
        ("g1_per_weight", 256.5, 257 + 1.5 + 0.5, 258 / 259),
        ("g2", 256.5, 257.5, (256.5 / 257.5 + 1 + 1) / 3),
    ],
)
def test_bfloat16_gradients_are_summed_in_float32(measure, signed, absolute, score):
    """256 + 1 does not fit into bfloat16's 8 bits, over iterations or weights."""
    rows = [[256.0, 1.0, 0.0], [1.0, 0.0, 0.5], [-0.5, 0.0, 0.0]]
    gradients = [kernels(jnp.asarray([row, row], jnp.bfloat16)) for row in rows]
    state, _ = analyze(gradients, measure=measure)
    sums = (state.signed_sums, state.absolute_sums)
    first = [np.asarray(jax.tree.leaves(s)[0]).ravel()[0] for s in sums]
    assert first == [signed, absolute]
    np.testing.assert_allclose(state.scores, score, rtol=1e-6)


def test_empty_leaves_none_and_masked_nodes():
    gradient = {
        "a": {"kernel": jnp.ones((2, 2)), "bias": None},
        "b": {"kernel": jnp.zeros((0, 3)), "bias": optax.MaskedNode()},
        "c": {"kernel": jnp.asarray(1.0)},
    }
    windows = [AmplificationWindow(0, 4, 2, factor=2.0)]
    for measure in ("g1", "g2"):
        tx = plp_optax.amplify_layers(windows, measure=measure, select=all_layers())
        outputs, states = feed(tx, [gradient] * 3)
        np.testing.assert_array_equal(states[2].scores, [1, 0, 1])
        expected = jax.tree.map(lambda g: 2 * g, gradient)
        chex.assert_trees_all_equal(outputs[2], expected)


@pytest.mark.parametrize("empty", [{}, None, {"a": {"kernel": None}}], ids=str)
def test_an_empty_tree(empty):
    for kwargs in ({"measure": "g1"}, {"select": at_random(0.5)}):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, **kwargs)
        state = tx.init(empty)
        updates, after = jax.eval_shape(tx.update, empty, state)
        assert jax.tree.structure(updates) == jax.tree.structure(empty)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def complex_score(measure, g):
    """The measures' definitions with magnitudes; g[i, j] of iteration i, weight j."""
    if measure == "g1":
        return abs(g.sum()) / abs(g).sum()
    if measure == "g1_per_weight":
        return abs(g.sum(0)).sum() / abs(g).sum()
    return (abs(g.sum(0)) / abs(g).sum(0)).mean()


@every_measure
def test_complex_gradients_keep_their_imaginary_part(measure):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 3, 5)) + 1j * rng.normal(size=(4, 3, 5))
    rows = noise + np.array([0.0, 2.0j, 9.0j]).reshape(3, 1)
    gradients = [kernels(row.astype(np.complex64)) for row in rows]
    state, tx = analyze(gradients, measure=measure)
    expected = [complex_score(measure, rows[:, layer]) for layer in range(3)]
    np.testing.assert_allclose(state.scores, expected, rtol=1e-5)
    assert state.amplified[2]
    updates, _ = tx.update(gradients[0], state)
    last = gradients[0]["c"]["kernel"]
    np.testing.assert_array_equal(updates["c"]["kernel"], 2 * last)
    steady, _ = analyze([kernels(np.full((2, 3), 1j, np.complex64))] * 3)
    np.testing.assert_allclose(steady.scores, 1, rtol=1e-6)


def test_a_state_of_numpy_arrays_becomes_one_of_jax_arrays():
    """As after ``jax.device_get`` or a restore, with updates that are not compiled."""
    gradient = kernels(np.ones((3, 2), np.float32))
    for tx in (
        plp_optax.amplify_layers(WINDOWS, select=HALF),
        plp_optax.plp(),
        plp_optax.plp(store="snapshots"),
    ):
        state = tx.init(gradient)
        _, new = tx.update(gradient, jax.device_get(state), gradient)
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(new))
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_many_windows_are_no_larger_a_program_than_one():
    params = kernels(np.zeros((3, 2), np.float32))

    def size(windows):
        tx = plp_optax.amplify_layers(windows, select=all_layers())
        jaxpr = jax.make_jaxpr(tx.update)(params, tx.init(params))
        return len(jaxpr.eqns)

    many = [AmplificationWindow(100 * i, 100 * i + 20, 10, 2.0) for i in range(16)]
    assert size(many) == size(many[:1])


# -- several devices -------------------------------------------------------------------


def split_problem():
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(5, 3, 8, 2)) + np.array([0.0, 0.4, 2.0]).reshape(3, 1, 1)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    return [kernels(row) for row in rows], mesh


@pytest.mark.parametrize(("measure", "check_vma"), [("g1", True), ("g2", False)])
def test_parameters_that_shard_map_splits_are_measured_over_the_axis(
    measure, check_vma
):
    with jax.enable_x64(True):
        gradients, mesh = split_problem()
        make = functools.partial(
            plp_optax.amplify_layers, WINDOWS, measure=measure, select=HALF
        )
        expected_outputs, expected = feed(make(), gradients)
        tx = make(axis_name="model")

        def specs(state):
            return jax.tree.map(lambda x: P("model") if x.ndim == 2 else P(), state)

        def run(gradients):
            state = tx.init(gradients[0])
            for gradient in gradients:
                updates, state = tx.update(gradient, state)
            return updates, state

        out = specs((expected_outputs[-1], expected[-1]))
        split = jax.shard_map(
            run, mesh=mesh, in_specs=P("model"), out_specs=out, check_vma=check_vma
        )
        updates, state = jax.jit(split)(gradients)
        assert not np.all(expected[-1].amplified)
        chex.assert_trees_all_close(state, expected[-1], rtol=1e-9)
        chex.assert_trees_all_close(updates, expected_outputs[-1], rtol=1e-9)


# -- around optimizers -----------------------------------------------------------------


def test_inner_measures_raw_gradients_and_changes_no_optimizer_state():
    rows = np.random.default_rng(9).normal(size=(8, 3, 4)).astype(np.float32) + 0.5
    gradients = [kernels(row) for row in rows]
    adam = optax.scale_by_adam()
    _, measured = feed(plp_optax.amplify_layers(WINDOWS, select=HALF), gradients)
    outputs, states = feed(
        plp_optax.amplify_layers(WINDOWS, select=HALF, inner=adam), gradients
    )
    plain, adam_states = feed(adam, gradients)
    for step, state in enumerate(states[:-1]):
        np.testing.assert_array_equal(state.scores, measured[step].scores)
        chex.assert_trees_all_close(state.inner_state, adam_states[step], rtol=1e-6)
        for i, name in enumerate("abc"):
            expected = state.factors[i] * plain[step][name]["kernel"]
            actual = outputs[step][name]["kernel"]
            np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert any(np.any(s.factors != 1) for s in states)


# -- trees -----------------------------------------------------------------------------


class DenseBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(3, name="dense")(x)), None


class Scanned(nn.Module):
    """Four blocks whose parameters are stacked, and a head."""

    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            DenseBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=4,
        )
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(1, name="head")(x)


def unstack(params):
    """The same parameters, a module for each block."""
    dense = params["blocks"]["dense"]
    blocks = {f"block{i}": jax.tree.map(lambda x, i=i: x[i], dense) for i in range(4)}
    return blocks | {"head": params["head"]}


def test_every_slice_of_a_scanned_block_is_a_layer():
    shape = jnp.ones((2, 3))
    params = jax.eval_shape(Scanned().init, jax.random.key(0), shape)["params"]
    rng = np.random.default_rng(1)
    offsets = np.array([0.0, 3.0, 0.2, 0.5], np.float32)  # of the blocks

    def random(x):
        offset = offsets.reshape(4, *[1] * (x.ndim - 1)) if x.shape[0] == 4 else 0.1
        return jnp.asarray(rng.normal(size=x.shape) + offset, jnp.float32)

    gradients = [jax.tree.map(random, params) for _ in range(6)]
    make = functools.partial(plp_optax.amplify_layers, WINDOWS, select=HALF)
    outputs, states = feed(make(layers=stacked("blocks/.*")), gradients)
    expected, other = feed(make(), [unstack(g) for g in gradients])
    names = plp_optax.layer_names(params, stacked("blocks/.*"))
    assert names == (*(f"blocks/dense[{i}]" for i in range(4)), "head")
    np.testing.assert_allclose(states[-1].z_scores, other[-1].z_scores, rtol=1e-4)
    assert states[-1].amplified.tolist() == [False, True, False, False, False]
    np.testing.assert_array_equal(states[-1].amplified, other[-1].amplified)
    chex.assert_trees_all_close(unstack(outputs[-1]), expected[-1], rtol=1e-6)
    # Without the rule the blocks are one layer.
    assert plp_optax.layer_names(params) == ("blocks/dense", "head")


def test_gradients_of_none_do_not_shift_the_other_layers():
    rows = np.random.default_rng(5).normal(size=(4, 4, 6)).astype(np.float32)
    rows += np.array([5.0, 0.0, 0.7, 3.0], np.float32).reshape(4, 1)
    params = kernels(rows[0])
    none = [kernels(row) | {"a": {"kernel": None}} for row in rows]
    tx = plp_optax.amplify_layers(WINDOWS, select=HALF)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in none:
        updates, state = update(gradient, state, params)
    assert updates["a"]["kernel"] is None
    _, expected = feed(tx, [{n: k for n, k in g.items() if n != "a"} for g in none])
    np.testing.assert_array_equal(state.scores[1:], expected[-1].scores)
    np.testing.assert_array_equal(state.z_scores[1:], expected[-1].z_scores)
    assert state.amplified.tolist() == [False, *expected[-1].amplified.tolist()]
    with pytest.raises(ValueError, match="finds 3 layers, and init found 4"):
        tx.update(none[0], state)
