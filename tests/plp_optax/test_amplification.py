"""Amplification: whole strategies against their twin, when, and arguments."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from plp_optax import (
    AmplificationWindow,
    TrainingStrategy,
    all_layers,
    at_random,
    by_score,
    named,
)
from tests.support import reference
from tests.support.amplification import PARTS, feed, kernels

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


# -- random selection ------------------------------------------------------------------


def random_selections(layers=12, selections=6, **kwargs):
    windows = [AmplificationWindow(0, selections + 1, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(
        windows, select=at_random(**kwargs), reselect_every=1, measure="g1"
    )
    gradients = [kernels(np.ones((layers, 2), np.float32))] * selections
    return [tuple(s.amplified.tolist()) for s in feed(tx, gradients)[1][1:]]


@pytest.mark.parametrize(("ratio", "drawn"), [(0.01, 1), (0.7, 8), (1.0, 12)])
def test_random_draws_the_ratio_of_layers_at_least_one(ratio, drawn):
    assert {sum(s) for s in random_selections(ratio=ratio)} == {drawn}


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


def test_random_draws_anew_and_depends_on_the_seed():
    draws = random_selections(ratio=0.5, selections=12)
    assert len(set(draws)) > 8  # of 924 possible ones
    assert np.mean(draws, axis=0).max() < 1  # no layer is always drawn
    assert draws == random_selections(ratio=0.5, selections=12)
    assert draws != random_selections(ratio=0.5, selections=12, seed=1)
    random_selections(ratio=0.5, selections=1, seed=2**31 - 1)


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


GOOD = {"strategy": [AmplificationWindow(0, 8, 4, 2.0)]}


def test_layers_to_select_must_exist():
    tx = plp_optax.amplify_layers(**GOOD, select=named("a", "z", "y"))
    with pytest.raises(ValueError, match="no layers named y, z; the layers are a, b"):
        tx.init(kernels(np.zeros((2, 3))))


def test_the_papers_tuples_with_steps_per_epoch():
    stages = [(1, 0.1, 0, 1), (4, 0.1, 1, 3.0)]
    gradients = [kernels(np.ones((2, 1), np.float32))] * 8
    strategy = plp_optax.TrainingStrategy(stages, steps_per_epoch=2)
    expected = feed(plp_optax.amplify_layers(strategy, select=all_layers()), gradients)
    tx = plp_optax.amplify_layers(stages, steps_per_epoch=2, select=all_layers())
    chex.assert_trees_all_equal(feed(tx, gradients), expected)
