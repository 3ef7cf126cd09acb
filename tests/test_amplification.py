"""Amplification: against its twin, and property by property."""

import functools
import math

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import plp_optax
from plp_optax import AmplificationWindow, TrainingStrategy
from tests import reference

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("default")

MEASURES = ("g1", "g1_per_weight", "g2")
every_measure = pytest.mark.parametrize("measure", MEASURES)

# Compiling is most of the cost here, and LLVM's optimisation half of that.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def kernels(values):
    """A tree of one-kernel layers, named a, b, c and on."""
    names = "abcdefghijklmnopqrstuvwxyz"
    return {n: {"kernel": jnp.asarray(v)} for n, v in zip(names, values, strict=False)}


def analyze(gradients, *, threshold=0.5, **kwargs):
    """The state after one analysis epoch of these gradients, and the transformation."""
    n = len(gradients)
    windows = [AmplificationWindow(0, 2 * n, n, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, threshold=threshold, **kwargs)
    state, update = tx.init(gradients[0]), jit(tx.update)
    for gradient in gradients:
        _, state = update(gradient, state)
    return state, tx


def feed(tx, gradients, params=None):
    """The updates that come out, and all states, the initial one included."""
    state, update = tx.init(gradients[0] if params is None else params), jit(tx.update)
    outputs, states = [], [state]
    for gradient in gradients:
        updates, state = update(gradient, state)
        outputs.append(updates)
        states.append(state)
    return outputs, states


# -- a whole strategy ------------------------------------------------------------------

# Epochs 1-2 plain; 3 analysed, 4-7 amplified; 8 analysed, 9-11 amplified; 12 plain.
STAGES = [(2, 0.1, 0, 1.0), (7, 0.1, 1, 1.75), (11, 0.02, 1, 2.5), (12, 0.02, 0, 1.0)]
STEPS = 3  # an epoch
TOTAL = 12 * STEPS
THRESHOLD = 0.6
LAYERS = ["conv0", "conv1", "conv2", "conv3", "head"]
SHAPES = [[(2, 3), (3,)], [(4, 1)], [(1, 2), (2,)], [(5,)], [(3, 2), (2,)]]
PARTS = ["kernel", "bias"]

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


def run_strategy(momentum=0.8, weight_decay=0.05, **kwargs):
    """Layers after each step, and (scores, z, amplified) of each selection."""
    strategy = TrainingStrategy(STAGES, steps_per_epoch=STEPS)
    with jax.enable_x64(True):
        tx = optax.chain(
            plp_optax.amplify_layers(strategy, threshold=THRESHOLD, **kwargs),
            optax.add_decayed_weights(weight_decay),
            optax.sgd(strategy.learning_rate, momentum=momentum),
        )

        @jit
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


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("reselect_every", [None, 1, 2])
@every_measure
def test_strategy_follows_its_twin(measure, reselect_every, two_sided):
    kwargs = {"measure": measure, "reselect_every": reselect_every}

    def choose(z_scores):
        return reference.select_layers(z_scores, THRESHOLD, two_sided)

    history, selections = run_strategy(**kwargs, two_sided=two_sided)
    # Stages of 5 and 4 epochs: 4 and 3 amplified, the last of which is never analysed.
    assert len(selections) == {None: 2, 1: 2 + 3 + 2, 2: 2 + 1 + 1}[reselect_every]
    assert_follows_twin(history, selections, choose, **kwargs)


def test_the_twins_cases_differ():
    """Else the test above would not tell case 1 from case 2, or selections apart."""
    _, one_sided = run_strategy()
    _, two_sided = run_strategy(two_sided=True)
    assert np.any(one_sided[0][2] != two_sided[0][2])
    _, often = run_strategy(reselect_every=1)
    assert len({tuple(s[2].tolist()) for s in often}) > 1


FACTORS = {
    "of the strategy": None,
    "number": 3.0,
    "schedule": lambda count: 1.0 + 0.1 * count,
}


@pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS.keys())
@pytest.mark.parametrize(
    "select", ["scores", "random", "all", ["head", "conv1"]], ids=str
)
def test_every_selection_and_factor_follows_the_twin(select, factor):
    kwargs = {"factor": factor, "reselect_every": 2}
    own = {"ratio": 0.5, "seed": 3} if select == "random" else {}
    history, selections = run_strategy(select=select, **own, **kwargs)
    drawn = iter([amplified.tolist() for _, _, amplified in selections])
    named = [name in select for name in LAYERS]

    def choose(z_scores):
        match select:
            case "scores":
                return reference.select_layers(z_scores, THRESHOLD, False)
            case "random":
                return next(drawn)
            case "all":
                return [True] * len(z_scores)
        return named

    assert_follows_twin(history, selections, choose, **kwargs)


# -- random selection ------------------------------------------------------------------


def random_selections(layers=12, selections=6, **kwargs):
    windows = [AmplificationWindow(0, selections + 1, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(
        windows, select="random", reselect_every=1, measure="g1", **kwargs
    )
    gradients = [kernels(np.ones((layers, 2), np.float32))] * selections
    return [tuple(s.amplified.tolist()) for s in feed(tx, gradients)[1][1:]]


@pytest.mark.parametrize(
    ("ratio", "drawn"), [(0.01, 1), (0.25, 3), (0.5, 6), (0.7, 8), (1.0, 12)]
)
def test_random_draws_the_ratio_of_layers_at_least_one(ratio, drawn):
    assert {sum(s) for s in random_selections(ratio=ratio)} == {drawn}


def test_random_draws_anew_and_depends_on_the_seed():
    draws = random_selections(ratio=0.5, selections=12)
    assert len(set(draws)) > 8  # of 924 possible ones
    assert np.mean(draws, axis=0).max() < 1  # no layer is always drawn
    assert draws == random_selections(ratio=0.5, selections=12)
    assert draws != random_selections(ratio=0.5, selections=12, seed=1)
    random_selections(ratio=0.5, selections=1, seed=2**31 - 1)


# -- replicas --------------------------------------------------------------------------

KINDS = {
    **{f"scores-{m}": {"measure": m, "threshold": 0.5} for m in MEASURES},
    "two-sided": {"threshold": 0.5, "two_sided": True},
    "random": {"select": "random", "ratio": 0.4},
    "all": {"select": "all"},
    "names": {"select": ["a", "d"]},
}


@pytest.mark.parametrize("kwargs", KINDS.values(), ids=KINDS.keys())
def test_replicas_select_the_same_layers(kwargs):
    """Every device sees other gradients and averages them in the step."""
    devices, steps, layers = 4, 4, 5
    assert jax.device_count() == devices
    rng = np.random.default_rng(5)
    drift = np.array([0.0, 0.1, 0.3, 1.0, 3.0]).reshape(-1, 1)
    gradients = rng.normal(size=(steps, devices, layers, 6)) + drift
    windows = [AmplificationWindow(0, 6, 2, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, reselect_every=1, **kwargs)

    def step(state, gradient):
        return tx.update(jax.lax.pmean(gradient, "batch"), state)

    parallel = jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=(0, None))
    params = kernels(np.zeros((layers, 6), np.float32))
    state = alone = tx.init(params)
    for gradient in gradients:
        per_device = kernels(np.moveaxis(gradient, 1, 0).astype(np.float32))
        updates, state = parallel(state, per_device)
        mean = jax.tree.map(lambda g: g.mean(0), per_device)
        expected, alone = tx.update(mean, alone)
    for leaf in jax.tree.leaves((state, updates)):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == devices
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])
    assert int(state.selections) == 2
    assert np.any(state.amplified)
    np.testing.assert_array_equal(state.amplified, alone.amplified)
    for i in range(devices):
        one = jax.tree.map(lambda u, i=i: u[i], updates)
        chex.assert_trees_all_close(one, expected, rtol=1e-5)


# -- measures --------------------------------------------------------------------------

MEASURED = [[(2, 3), (3,)], [(4,)], [(1, 1), (1,)]]  # kernel and bias of three layers
WEIGHTS = [9, 4, 2]


def measured_tree(row):
    """A step's gradients from its 15 numbers."""
    tree, at = {}, 0
    for name, shapes in zip("abc", MEASURED, strict=True):
        tree[name] = {}
        for part, shape in zip(PARTS, shapes, strict=False):
            size = math.prod(shape)
            tree[name][part] = row[at : at + size].reshape(shape)
            at += size
    return tree


@functools.cache
def analysis(measure, n):
    """A compiled analysis epoch of n rows."""
    windows = [AmplificationWindow(0, 2 * n, n, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure=measure, threshold=0.5)

    @jit
    def states(rows):
        def step(state, row):
            return tx.update(measured_tree(row), state)[1], None

        return jax.lax.scan(step, tx.init(measured_tree(rows[0])), rows)[0]

    return states


def scores_of(measure, rows, dtype=np.float64):
    with jax.enable_x64(dtype == np.float64):
        return np.asarray(analysis(measure, len(rows))(rows.astype(dtype)).scores)


# Small integers, so that exact cancellation and weights that never move are common.
ROWS = st.sampled_from([1, 4]).flatmap(
    lambda n: arrays(np.float64, (n, 15), elements=st.integers(-2, 2).map(float))
)


@given(ROWS, st.sampled_from(MEASURES))
def test_measures_follow_their_definitions(rows, measure):
    layers = np.split(rows, np.cumsum(WEIGHTS)[:-1], axis=1)
    expected = [reference.MEASURE[measure](layer) for layer in layers]
    scores = scores_of(measure, rows)
    np.testing.assert_allclose(scores, expected, rtol=1e-13, atol=1e-15)
    assert np.all((scores >= 0) & (scores <= 1))


@given(
    st.integers(0, 2**31),
    st.floats(2.0**-60, 2.0**60),
    st.sampled_from(MEASURES),
    st.sampled_from([np.float32, np.float64]),
)
def test_measures_do_not_depend_on_the_size_of_gradients(seed, scale, measure, dtype):
    rows = np.random.default_rng(seed).normal(size=(4, 15))
    scaled = scores_of(measure, scale * rows, dtype)
    assert scaled.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(scores_of(measure, rows, dtype), scaled, atol=tolerance)
    assert np.all((scaled >= 0) & (scaled <= 1))


@given(st.integers(0, 2**31), st.sampled_from([np.float32, np.float64]))
def test_agreement_scores_1_and_cancellation_0(seed, dtype):
    rng = np.random.default_rng(seed)
    steady = np.abs(rng.normal(size=(4, 15))) + 0.1
    there_and_back = np.concatenate([steady[:2], -steady[1::-1]])
    signs = np.where(rng.random(15) < 0.5, -1, 1)
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    for measure in MEASURES:
        ones, zeros = (scores_of(measure, x, dtype) for x in (-steady, there_and_back))
        np.testing.assert_allclose(ones, 1, atol=tolerance)
        np.testing.assert_allclose(zeros, 0, atol=tolerance)
        if measure != "g1":  # which adds up weights of either sign
            mixed = scores_of(measure, signs * steady, dtype)
            np.testing.assert_allclose(mixed, 1, atol=tolerance)


def test_half_of_the_weights_against_the_other_half():
    """The paper's text: 0. Only "g1" reads it so."""
    rows = np.ones((4, 15))
    rows[:, 9:11] = -1  # of layer b's four weights
    assert [scores_of(m, rows)[1] for m in MEASURES] == [0, 1, 1]


@every_measure
def test_no_gradients_score_0(measure):
    np.testing.assert_array_equal(scores_of(measure, np.zeros((4, 15))), 0)
    np.testing.assert_array_equal(scores_of(measure, np.zeros((4, 15)), np.float32), 0)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_weights_without_gradients_count_as_0_in_every_accumulator(dtype):
    one = [kernels(np.array([[1e-5, 0.0], [1e-5, 1e-5]]))] * 3
    state, _ = analyze(one, accumulator_dtype=dtype)
    np.testing.assert_allclose(state.scores, [0.5, 1.0], rtol=1e-2)
    with jax.enable_x64(True):  # from gradients wider than the accumulators
        state, _ = analyze(
            [kernels(np.array([[1.0, 0.0]] * 2))] * 3,
            select="all",
            accumulator_dtype=dtype,
        )
        np.testing.assert_allclose(state.scores, 0.5, rtol=1e-2)


@every_measure
@pytest.mark.parametrize("n", [25, 100])
def test_noise_scores_its_floor(measure, n):
    """The mean over 400 layers, as "g1" is one draw a layer."""
    layers, weights = 400, 16
    rows = np.random.default_rng(n).normal(size=(n, layers, weights))
    windows = [AmplificationWindow(0, 2 * n, n, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure=measure, select="all")

    def one_layer(gradients):
        def step(state, gradient):
            return tx.update({"kernel": gradient}, state)[1], None

        return jax.lax.scan(step, tx.init({"kernel": gradients[0]}), gradients)[0]

    state = jit(jax.vmap(one_layer, in_axes=1))(rows.astype(np.float32))
    one = jax.tree.map(lambda x: x[0], state)
    account = plp_optax.layer_accounts(one, {"kernel": rows[0, 0]})[0]
    floor = (n * weights if measure == "g1" else n) ** -0.5
    np.testing.assert_allclose(account.noise_floor, floor, rtol=1e-6)
    assert 0.8 * floor < float(state.scores.mean()) < 1.2 * floor


# -- standardising and selecting -------------------------------------------------------


@given(
    arrays(np.float64, st.integers(2, 8), elements=st.floats(0, 1, width=32)),
    st.floats(0, 2.5),
    st.booleans(),
)
def test_standardising_and_both_cases(scores, threshold, two_sided):
    expected = reference.standardize(scores.tolist())
    if np.ptp(scores) and scores.std() <= 1e-5:
        return  # neither equal nor told apart
    with jax.enable_x64(True):
        z = plp_optax._amplification.standardize(jnp.asarray(scores))
    np.testing.assert_allclose(z, expected, atol=1e-6)
    assert np.all(np.abs(z) <= np.sqrt(len(scores) - 1) + 1e-9)


@given(
    arrays(np.float64, (4, 1), elements=st.integers(-3, 3).map(float)),
    arrays(np.float32, 3, elements=st.floats(2.0**-20, 2.0**20, width=32)),
    st.sampled_from(MEASURES),
)
def test_equal_scores_amplify_nothing(pattern, sizes, measure):
    """Layers of different sizes with the same score, up to float32 rounding."""
    rows = pattern * np.repeat(sizes, WEIGHTS)
    with jax.enable_x64(False):
        state = analysis(measure, 4)(rows.astype(np.float32))
        np.testing.assert_array_equal(state.z_scores, 0)
        assert not np.any(state.amplified)


@every_measure
def test_equal_scores_amplify_nothing_after_many_iterations(measure):
    pattern = np.random.default_rng(0).normal(size=(400, 1)) + 0.3
    rows = pattern * np.repeat([0.1, 0.7, 13.0], WEIGHTS)
    state = analysis(measure, 400)(rows.astype(np.float32))
    assert 0.1 < state.scores[0] < 0.9
    np.testing.assert_array_equal(state.z_scores, 0)


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_threshold_that_cannot_be_exceeded_is_refused(two_sided):
    windows = [AmplificationWindow(0, 2, 1, factor=2.0)]
    for layers in (1, 2, 5):
        params = kernels(np.zeros((layers, 2)))
        bound = math.sqrt(layers - 1)
        message = rf"threshold {bound} cannot .* {layers} layers"
        tx = functools.partial(plp_optax.amplify_layers, windows, two_sided=two_sided)
        with pytest.raises(ValueError, match=message):
            tx(threshold=bound).init(params)
        if layers > 1:
            tx(threshold=bound - 1e-3).init(params)
        # Nothing is compared with it here.
        tx(threshold=9.0, select="all").init(params)
        tx(threshold=9.0, select="random", ratio=0.5).init(params)


@pytest.mark.parametrize("layers", [2, 5, 17])
def test_the_bound_on_z_is_attained(layers):
    first_alone = kernels(np.eye(layers, dtype=np.float32)[:, :1])
    state, _ = analyze([first_alone] * 2, threshold=math.sqrt(layers - 1) - 1e-3)
    assert state.amplified.tolist() == [True] + [False] * (layers - 1)
    np.testing.assert_allclose(state.z_scores[0], math.sqrt(layers - 1), rtol=1e-5)


@every_measure
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_during_analysis_selects_nothing_until_the_next(measure, bad):
    good = kernels(np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]], np.float32))
    spoilt = good | {"b": {"kernel": jnp.array([bad, 1.0])}}
    windows = [AmplificationWindow(0, 6, 2, factor=2.0)]
    tx = plp_optax.amplify_layers(
        windows, measure=measure, threshold=0.5, reselect_every=1
    )
    outputs, states = feed(tx, [good, spoilt, good, good, good, good])
    assert not np.any(states[2].amplified)
    chex.assert_trees_all_equal(outputs[2], good)
    assert states[4].amplified[0]
    assert np.all(np.isfinite(states[4].scores))
    chex.assert_trees_all_equal(outputs[4]["a"]["kernel"], jnp.full(2, 2.0))


@every_measure
def test_nan_outside_of_analysis_does_not_enter_the_sums(measure):
    good = kernels(np.array([[1.0, 1.0], [1.0, -1.0], [0.0, 0.0]], np.float32))
    nan = jax.tree.map(lambda g: g * jnp.nan, good)
    windows = [AmplificationWindow(1, 5, 2, 2.0), AmplificationWindow(6, 9, 2, 2.0)]
    tx = plp_optax.amplify_layers(windows, measure=measure, threshold=0.5)
    outputs, states = feed(tx, [nan, good, good, nan, nan, nan, good, good, nan, nan])
    _, clean = feed(tx, [good] * 10)
    chex.assert_trees_all_equal(states[3:], clean[3:])
    assert np.any(states[3].amplified)
    assert np.all(np.isnan(outputs[3]["a"]["kernel"]))  # nor are they hidden


# -- when ------------------------------------------------------------------------------


def timeline(windows, steps, **kwargs):
    """By step: the factor on the one selected layer; where a selection was made."""
    tx = plp_optax.amplify_layers(windows, select=["a"], **kwargs)
    gradients = [kernels(np.ones((2, 1), np.float32))] * steps
    outputs, states = feed(tx, gradients)
    assert all(float(u["b"]["kernel"][0]) == 1 for u in outputs)
    counts = [int(s.selections) for s in states]
    selected = [step for step in range(steps) if counts[step + 1] > counts[step]]
    assert [int(s.gradients_seen) for s in states] == list(range(steps + 1))
    return [float(u["a"]["kernel"][0]) for u in outputs], selected


def test_a_window_at_step_0_and_one_right_behind():
    windows = [AmplificationWindow(0, 4, 2, 3.0), AmplificationWindow(4, 7, 1, 5.0)]
    factors, selected = timeline(windows, 9)
    assert factors == [1, 1, 3, 3, 1, 5, 5, 1, 1]
    assert selected == [1, 4]


@pytest.mark.parametrize(
    ("reselect_every", "selected"),
    [
        (None, [3]),
        (1, [3, 5, 7, 9]),
        (2, [3, 7]),
        (3, [3, 9]),
        (4, [3]),
        (5, [3]),
    ],
)
def test_reselection_is_at_the_end_of_every_k_amplified_epochs(
    reselect_every, selected
):
    """Epochs of two steps: analysis in 2-3, amplified 4-5, 6-7, 8-9 and 10-11."""
    windows = [AmplificationWindow(2, 12, 2, 3.0)]
    factors, actual = timeline(windows, 14, reselect_every=reselect_every)
    assert factors == [1] * 4 + [3] * 8 + [1] * 2
    assert actual == selected


def test_a_partial_last_epoch_is_amplified_and_not_analyzed():
    windows = [AmplificationWindow(0, 7, 2, 3.0)]
    factors, selected = timeline(windows, 8, reselect_every=1)
    assert factors == [1, 1, 3, 3, 3, 3, 3, 1]
    assert selected == [1, 3, 5]  # the partial epoch 6 follows the one of 4 and 5


def test_windows_up_to_the_last_step_that_int32_counts():
    """Three epochs of two steps and a partial one, which would be analysed again."""
    last = 2**31 - 1
    start = last - 7
    tx = plp_optax.amplify_layers(
        [AmplificationWindow(start, last, 2, 3.0)],
        select="all",
        reselect_every=3,
        apply=False,
    )
    gradient = {"kernel": jnp.ones(1)}
    state = tx.init(gradient)._replace(gradients_seen=jnp.asarray(start, jnp.int32))
    factors, selections = [], []
    update = jit(tx.update)
    for _ in range(10):
        factors.append(float(state.factors[0]))
        _, state = update(gradient, state)
        selections.append(int(state.selections))
    assert factors == [1, 1, 3, 3, 3, 3, 3, 1, 1, 1]
    assert selections == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert int(state.gradients_seen) == last


def test_reselection_sees_raw_gradients_while_amplification_goes_on():
    """A selected layer's score does not rise because it is amplified."""
    rows = np.random.default_rng(2).normal(size=(8, 3, 4)).astype(np.float32) + 0.4
    gradients = [kernels(row) for row in rows]
    windows = [AmplificationWindow(0, 8, 2, factor=64.0)]
    tx = plp_optax.amplify_layers(windows, threshold=0.5, reselect_every=1)
    outputs, states = feed(tx, gradients)
    for end in (2, 4, 6):
        epoch = rows[end - 2 : end]
        scores = [reference.measure_g2(epoch[:, layer]) for layer in range(3)]
        np.testing.assert_allclose(states[end].scores, scores, rtol=1e-5)
        # They hold until the next epoch of analysis is over.
        np.testing.assert_array_equal(states[end + 1].scores, states[end].scores)
        np.testing.assert_array_equal(states[end + 1].z_scores, states[end].z_scores)
    for step in (2, 3, 4, 5, 6, 7):
        held = states[step // 2 * 2].amplified  # by the epoch before
        assert np.any(held)
        for layer, name in enumerate("abc"):
            factor = 64.0 if held[layer] else 1.0
            np.testing.assert_array_equal(
                outputs[step][name]["kernel"], factor * rows[step, layer]
            )


def test_parameters_outside_of_layers_pass_and_do_not_count():
    gradient = {
        "conv": {"kernel": jnp.ones((2, 2)), "bias": -jnp.ones(2)},
        "head": {"kernel": jnp.ones(3)},
        "norm": {"scale": jnp.full(2, jnp.nan), "bias": jnp.ones(2)},
    }
    windows = [AmplificationWindow(0, 3, 1, factor=2.0)]
    tx = plp_optax.amplify_layers(windows, measure="g1", select="all")
    outputs, states = feed(tx, [gradient] * 2)
    np.testing.assert_allclose(states[1].scores, [(4 - 2) / (4 + 2), 1], rtol=1e-6)
    twice = jax.tree.map(lambda g: 2 * g, gradient)
    chex.assert_trees_all_equal(outputs[1], twice | {"norm": gradient["norm"]})


# -- identities ------------------------------------------------------------------------

EPOCH = 4
IDENTITY_WINDOWS = [AmplificationWindow(0, 5 * EPOCH, EPOCH, factor=3.0)]


def batches(count):
    rng = np.random.default_rng(count)
    return rng.normal(size=(8, 5)), rng.normal(size=(8, 3))


def normalized_loss(params, batch):
    """Invariant to the scale of either kernel, as before a batch normalisation."""
    x, y = batch
    for name in ("conv", "head"):
        kernel = params[name]["kernel"]
        x = jnp.tanh(x @ (kernel / jnp.linalg.norm(kernel)) * 3.0)
    return ((x - y) ** 2).mean()


def plain_loss(params, batch):
    x, y = batch
    return (
        (jnp.tanh(x @ params["conv"]["kernel"]) @ params["head"]["kernel"] - y) ** 2
    ).mean()


def identity_params():
    rng = np.random.default_rng(1)
    return {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(5, 4)))},
        "head": {"kernel": jnp.asarray(rng.normal(size=(4, 3)))},
    }


def advance(tx, loss, params, state, counts):
    """Parameters after each step."""
    history = []

    @jit
    def step(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    for count in counts:
        params, state = step(params, state, batches(count))
        history.append(params)
    return history, state


def divide(tree, names, divisor):
    return {
        n: jax.tree.map(lambda x, n=n: x / divisor if n in names else x, tree[n])
        for n in tree
    }


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("selected", [["conv"], ["conv", "head"]], ids=str)
def test_amplifying_a_scale_invariant_weight_is_shrinking_it(selected, nesterov):
    """With L(cw) = L(w) the gradient at w/s is s times that at w, s = sqrt(f). So

        b' = m b + f g(w) + d w,   w' = w - r b'

    divided by s is the unamplified step from (w/s, b/s). It holds for every step.
    """
    with jax.enable_x64(True):
        sgd = optax.chain(
            optax.add_decayed_weights(0.02),
            optax.sgd(0.05, momentum=0.9, nesterov=nesterov),
        )
        tx = optax.chain(
            plp_optax.amplify_layers(IDENTITY_WINDOWS, select=selected), sgd
        )
        start = identity_params()
        history, state = advance(
            tx, normalized_loss, start, tx.init(start), range(EPOCH)
        )
        params = history[-1]
        later = range(EPOCH, 5 * EPOCH)
        amplified, _ = advance(tx, normalized_loss, params, state, later)

        root = math.sqrt(3.0)
        trace = divide(optax.tree.get(state, "trace"), selected, root)
        shrunk = divide(params, selected, root)
        plain = optax.tree.set(sgd.init(shrunk), trace=trace)
        expected, _ = advance(sgd, normalized_loss, shrunk, plain, later)
        chex.assert_trees_all_close(
            [divide(p, selected, root) for p in amplified], expected, rtol=1e-10
        )
        # And without the division it is another training.
        same = optax.tree.set(sgd.init(params), trace=optax.tree.get(state, "trace"))
        other, _ = advance(sgd, normalized_loss, params, same, later)
        losses = [
            float(normalized_loss(h[-1], batches(99)))
            for h in (amplified, expected, other)
        ]
        assert abs(losses[0] - losses[1]) < 1e-10
        assert abs(losses[0] - losses[2]) > 1e-3


def test_all_layers_is_a_rate_with_less_decay_and_a_rescaled_buffer():
    """b' = m b + f g + d w, w' = w - r b' is, for c = b/f,

    c' = m c + g + (d/f) w, w' = w - (f r) c'.
    """
    rate, decay, factor = 0.01, 0.02, 3.0
    with jax.enable_x64(True):

        def sgd(rate, decay):
            return optax.chain(
                optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9)
            )

        tx = optax.chain(
            plp_optax.amplify_layers(IDENTITY_WINDOWS, select="all"), sgd(rate, decay)
        )
        start = identity_params()
        history, state = advance(tx, plain_loss, start, tx.init(start), range(EPOCH))
        params, trace = history[-1], optax.tree.get(state, "trace")
        later = range(EPOCH, 5 * EPOCH)
        amplified, end = advance(tx, plain_loss, params, state, later)

        faster = sgd(factor * rate, decay / factor)
        other = optax.tree.set(
            faster.init(params), trace=jax.tree.map(lambda b: b / factor, trace)
        )
        expected, _ = advance(faster, plain_loss, params, other, later)
        chex.assert_trees_all_close(amplified, expected, rtol=1e-10)

        # Back at the end of amplification, the buffer is multiplied again.
        params, last = amplified[-1], range(5 * EPOCH, 6 * EPOCH)
        amplified, _ = advance(tx, plain_loss, params, end, last)
        slow = sgd(rate, decay)
        other = optax.tree.set(slow.init(params), trace=optax.tree.get(end, "trace"))
        expected, _ = advance(slow, plain_loss, params, other, last)
        chex.assert_trees_all_close(amplified, expected, rtol=1e-10)


# -- memory and types ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "buffers"), [("g1", 0), ("g1_per_weight", 1), ("g2", 2)]
)
def test_memory_by_measure(measure, buffers):
    params = kernels(np.zeros((3, 20, 50), np.float32))
    tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, measure=measure, threshold=1)
    state = tx.init(params)
    large = [x for x in jax.tree.leaves(state) if x.size >= 1000]
    assert len(large) == 3 * buffers
    rest = sum(x.size for x in jax.tree.leaves(state)) - 3000 * buffers
    # Three counters; scores, z, amplified, factors; a sum a layer in place of a buffer.
    assert rest == 3 + 4 * 3 + 3 * (2 - buffers)
    _, after = jit(tx.update)(params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@pytest.mark.parametrize("measure", ["g1_per_weight", "g2"])
@pytest.mark.parametrize(
    ("dtype", "accumulator", "expected"),
    [
        (jnp.float32, None, jnp.float32),
        (jnp.bfloat16, None, jnp.float32),
        (jnp.float16, None, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.bfloat16),
        (jnp.bfloat16, "float16", jnp.float16),
    ],
)
def test_accumulator_dtype(measure, dtype, accumulator, expected):
    params = kernels(np.zeros((3, 4)).astype(dtype))
    tx = plp_optax.amplify_layers(
        IDENTITY_WINDOWS,
        measure=measure,
        select="all",
        accumulator_dtype=accumulator,
    )
    outputs, states = feed(tx, [params] * 2)
    for state in states:
        buffers = [x for x in jax.tree.leaves(state) if x.shape == (4,)]
        assert {x.dtype for x in buffers} == {jnp.dtype(expected)}
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(dtype)}


def test_accumulators_of_float64_parameters_are_float64():
    with jax.enable_x64(True):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, select="all")
        state = tx.init(kernels(np.zeros((3, 4))))
        assert {x.dtype for x in jax.tree.leaves(state.signed_sums)} == {
            jnp.dtype("float64")
        }


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


def test_bfloat16_gradients_are_multiplied_in_float32():
    gradient = kernels(jnp.full((2, 1), 1.0078125, jnp.bfloat16))
    windows = [AmplificationWindow(0, 2, 1, factor=1.7)]
    outputs, _ = feed(plp_optax.amplify_layers(windows, select="all"), [gradient] * 2)
    expected = jnp.asarray(np.float32(1.0078125) * np.float32(1.7), jnp.bfloat16)
    assert outputs[1]["a"]["kernel"].dtype == jnp.bfloat16
    assert outputs[1]["a"]["kernel"][0] == expected


def test_empty_leaves_none_and_masked_nodes():
    gradient = {
        "a": {"kernel": jnp.ones((2, 2)), "bias": None},
        "b": {"kernel": jnp.zeros((0, 3)), "bias": optax.MaskedNode()},
        "c": {"kernel": jnp.asarray(1.0)},
    }
    windows = [AmplificationWindow(0, 4, 2, factor=2.0)]
    for measure in MEASURES:
        tx = plp_optax.amplify_layers(windows, measure=measure, select="all")
        outputs, states = feed(tx, [gradient] * 3)
        np.testing.assert_array_equal(states[2].scores, [1, 0, 1])
        expected = jax.tree.map(lambda g: 2 * g, gradient)
        chex.assert_trees_all_equal(outputs[2], expected)


@pytest.mark.parametrize("empty", [{}, (), None, {"a": {"kernel": None}}], ids=str)
def test_an_empty_tree(empty):
    for kwargs in (
        {},
        {"measure": "g1"},
        {"select": "random", "ratio": 0.5},
        {"select": ["a"]},
    ):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, **kwargs)
        state = tx.init(empty)
        updates, after = jit(tx.update)(empty, state)
        assert jax.tree.structure(updates) == jax.tree.structure(empty)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


# -- apply=False -----------------------------------------------------------------------


@every_measure
def test_apply_false_measures_and_changes_nothing(measure):
    rows = np.random.default_rng(2).normal(size=(8, 3, 4)).astype(np.float32) + 0.4
    gradients = [kernels(row) for row in rows]
    windows = [AmplificationWindow(0, 6, 2, factor=3.0)]
    make = functools.partial(
        plp_optax.amplify_layers, windows, measure=measure, threshold=0.5
    )
    outputs, states = feed(make(apply=False), gradients)
    amplified, expected = feed(make(), gradients)
    chex.assert_trees_all_equal(outputs, gradients)
    chex.assert_trees_all_equal(states, expected)  # the factors included
    assert {float(f) for f in states[3].factors} == {1.0, 3.0}
    for step, updates in enumerate(amplified):  # which are what the other multiplies by
        for i, name in enumerate("abc"):
            np.testing.assert_array_equal(
                updates[name]["kernel"], states[step].factors[i] * rows[step, i]
            )


def test_apply_false_has_factors_of_1_in_epochs_analyzed_again():
    windows = [AmplificationWindow(0, 10, 2, factor=3.0)]
    gradients = [kernels(np.ones((2, 1), np.float32))] * 11
    factors = []
    for apply in (True, False):
        tx = plp_optax.amplify_layers(
            windows, select=["a"], reselect_every=2, apply=apply
        )
        factors.append([float(s.factors[0]) for s in feed(tx, gradients)[1]][:-1])
    assert factors[0] == [1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 1]
    # The second amplified epoch, steps 4 and 5, is analysed; the fourth has none after.
    assert factors[1] == [1, 1, 3, 3, 1, 1, 3, 3, 3, 3, 1]


# -- arguments -------------------------------------------------------------------------

STATIC = (
    *("strategy", "select", "ratio", "seed", "measure", "two_sided"),
    *("reselect_every", "layers", "apply", "accumulator_dtype"),
)


def test_factor_and_threshold_can_be_injected():
    rows = np.random.default_rng(4).normal(size=(6, 4, 3)).astype(np.float32) + 0.5
    gradients = [kernels(row) for row in rows]
    windows = [AmplificationWindow(0, 6, 3, factor=2.0)]
    injected = optax.inject_hyperparams(plp_optax.amplify_layers, static_args=STATIC)
    tx = injected(windows, threshold=0.3, factor=5.0)
    actual, states = feed(tx, gradients)
    expected, _ = feed(
        plp_optax.amplify_layers(windows, threshold=0.3, factor=5.0), gradients
    )
    chex.assert_trees_all_close(actual, expected)
    assert np.any(states[-1].inner_state.amplified)

    # Changed in the state: the threshold before the selection, the factor behind it.
    state, update = tx.init(gradients[0]), jit(tx.update)
    state.hyperparams["threshold"] = jnp.asarray(9.0)
    for gradient in gradients[:3]:
        _, state = update(gradient, state)
    assert not np.any(state.inner_state.amplified)
    state = states[3]
    state.hyperparams["factor"] = jnp.asarray(7.0)
    _, state = update(gradients[3], state)
    assert {float(f) for f in state.inner_state.factors} == {1.0, 7.0}


GOOD = {"strategy": [AmplificationWindow(0, 8, 4, 2.0)]}
RANDOM = {"select": "random", "ratio": 0.5}


def window(**kwargs):
    return {"strategy": [AmplificationWindow(0, 8, 4, 2.0)._replace(**kwargs)]}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strategy": None}, "got None"),
        ({"strategy": "paper"}, "got 'paper'"),
        ({"strategy": 3}, "got 3"),
        ({"strategy": [3]}, r"got \[3\]"),
        ({"strategy": []}, r"nothing to do: \[\]"),
        ({"strategy": TrainingStrategy([(3, 0.1)], 5)}, "nothing to do: .*0.1"),
        ({"strategy": STAGES}, "stop .* got 0.1"),  # epochs are not steps
        (window(start=-1), "start .* got -1"),
        (window(start=0.0), r"start .* got 0\.0"),
        (window(stop="8"), "stop .* got '8'"),
        (window(stop=4), "stop=4, .* before its analysis epoch does"),
        (window(stop=2**31), r"stop .* int32, got 2147483648"),
        (window(epoch_steps=0), "epoch_steps .* got 0"),
        (window(factor=0.0), r"factor=0\.0\) must be positive"),
        (window(factor=np.inf), "factor .* got inf"),
        ({"strategy": [(0, 8, 4, 2.0), (7, 20, 4, 2.0)]}, "start=7, .* begins before"),
        ({"strategy": [(9, 20, 4, 2.0), (0, 8, 4, 2.0)]}, "start=0, .* begins before"),
        ({"select": "best"}, "got 'best'"),
        ({"select": []}, r"at least one layer, got \[\]"),
        ({"select": [1]}, r"got \[1\]"),
        ({"select": None}, "got None"),
        ({"select": {"a"}}, r"got \{'a'\}"),
        ({"select": "random"}, "ratio .* got None"),
        (RANDOM | {"ratio": 0.0}, r"\(0, 1\], got 0\.0"),
        (RANDOM | {"ratio": 1.5}, r"\(0, 1\], got 1\.5"),
        (RANDOM | {"ratio": np.nan}, "ratio .* got nan"),
        (RANDOM | {"ratio": "half"}, "ratio .* got 'half'"),
        (RANDOM | {"ratio": jnp.asarray(0.5)}, "'ratio' in static_args"),
        ({"ratio": 0.5}, r"belongs to select='random', got 0\.5"),
        ({"seed": -1}, "seed .* got -1"),
        ({"seed": 0.5}, r"seed .* got 0\.5"),
        ({"seed": jnp.asarray(0)}, "'seed' in static_args"),
        ({"measure": "g3"}, "'g1', 'g1_per_weight', 'g2', got 'g3'"),
        ({"threshold": -0.5}, r"threshold .* got -0\.5"),
        ({"threshold": np.nan}, "threshold .* got nan"),
        ({"threshold": None}, "threshold .* got None"),
        ({"threshold": True}, "threshold .* got True"),
        ({"threshold": jnp.ones(2)}, r"threshold .* \(2,\)"),
        ({"two_sided": 1}, "two_sided .* got 1"),
        ({"two_sided": jnp.asarray(True)}, "'two_sided' in static_args"),
        ({"factor": 0.0}, r"factor .* got 0\.0"),
        ({"factor": -2}, "factor .* got -2"),
        ({"factor": np.inf}, "factor .* got inf"),
        ({"factor": "2"}, "factor .* got '2'"),
        ({"factor": jnp.ones(3)}, r"factor .* \(3,\)"),
        ({"reselect_every": 0}, "reselect_every .* got 0"),
        ({"reselect_every": 1.0}, r"reselect_every .* got 1\.0"),
        ({"reselect_every": jnp.asarray(1)}, "'reselect_every' in static_args"),
        ({"layers": "kernel"}, "got 'kernel'"),
        ({"layers": None}, "got None"),
        ({"layers": [("(", "a")]}, r"got \[\('\(', 'a'\)\]"),
        ({"apply": 0}, "apply .* got 0"),
        ({"apply": jnp.asarray(True)}, "'apply' in static_args"),
        ({"accumulator_dtype": "int32"}, "accumulator_dtype .* got 'int32'"),
        (
            {"accumulator_dtype": jnp.zeros(())},
            "'accumulator_dtype' in static_args",
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        plp_optax.amplify_layers(**(GOOD | kwargs))


def test_layers_to_select_must_exist():
    tx = plp_optax.amplify_layers(**GOOD, select=["a", "z", "y"])
    with pytest.raises(ValueError, match="do not exist: y, z; there are a, b"):
        tx.init(kernels(np.zeros((2, 3))))


def test_windows_may_be_plain_tuples_and_numpy_numbers():
    plain = [(np.int64(0), np.int32(4), 2, np.float32(3.0))]
    assert timeline(plain, 5) == timeline([AmplificationWindow(0, 4, 2, 3.0)], 5)


# -- the account -----------------------------------------------------------------------


def account_state(measure="g2", threshold=0.5):
    """Layers a to c score 1, 1/3 and 0 in three iterations of two weights."""
    rows = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [0.0, 0.0, 0.0]], np.float32)
    gradients = [kernels(np.repeat(rows[:, i : i + 1], 2, axis=1)) for i in range(3)]
    return analyze(gradients, measure=measure, threshold=threshold)[0], gradients[0]


@pytest.mark.parametrize(
    ("measure", "samples"), [("g1", 6), ("g1_per_weight", 3), ("g2", 3)]
)
def test_layer_accounts(measure, samples):
    state, params = account_state(measure)
    accounts = plp_optax.layer_accounts(state, params)
    z_scores = reference.standardize([1.0, 1 / 3, 0.0])
    assert [a.layer for a in accounts] == ["a", "b", "c"]
    np.testing.assert_allclose([a.score for a in accounts], [1, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose([a.noise_floor for a in accounts], samples**-0.5)
    np.testing.assert_allclose([a.z_score for a in accounts], z_scores, rtol=1e-5)
    assert [a.amplified for a in accounts] == [True, False, False]
    shapes = jax.eval_shape(lambda: params)
    assert plp_optax.layer_accounts(state, shapes) == accounts

    # A state that was read back from disk is of NumPy arrays.
    restored = flax.serialization.msgpack_restore(
        flax.serialization.msgpack_serialize(flax.serialization.to_state_dict(state))
    )
    restored = type(state)(**restored)
    assert isinstance(restored.scores, np.ndarray)
    assert plp_optax.layer_accounts(restored, params) == accounts


def test_amplification_table():
    """z = 5, -1 and -4 over the root of 14; the floor is that of 3 iterations."""
    state, params = account_state()
    assert plp_optax.amplification_table(state, params).splitlines() == [
        "layer  score  noise floor      z  amplified",
        "a     1.0000       0.5774   1.34  yes",
        "b     0.3333       0.5774  -0.27",
        "c     0.0000       0.5774  -1.07",
    ]


def test_accounts_by_the_rule_of_the_transformation():
    gradient = {"w": jnp.ones(3), "v": jnp.ones(5)}
    layers = [("(.)", r"layer-\1")]
    state, _ = analyze([gradient] * 2, layers=layers, measure="g1")
    accounts = plp_optax.layer_accounts(state, gradient, layers=layers)
    assert [a.layer for a in accounts] == ["layer-v", "layer-w"]
    np.testing.assert_allclose(
        [a.noise_floor for a in accounts], [10**-0.5, 6**-0.5], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"2 layers, the rule .* finds 1 in params"):
        plp_optax.layer_accounts(state, gradient, layers=lambda path: "one")


def test_accounts_before_the_first_selection():
    params = kernels(np.zeros((3, 4)))
    for measure in MEASURES:
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, measure=measure, threshold=1)
        for account in plp_optax.layer_accounts(tx.init(params), params):
            assert np.isnan([account.score, account.noise_floor, account.z_score]).all()
            assert not account.amplified
        table = plp_optax.amplification_table(tx.init(params), params)
        assert table.splitlines()[1].split() == ["a", "nan", "nan", "nan"]
    empty = plp_optax.amplification_table(tx.init({}), {})
    assert empty == "layer  score  noise floor      z  amplified"


def find_state(state):
    """The transformation's own state inside a chain's."""
    (found,) = [
        leaf
        for leaf in jax.tree.leaves(
            state, is_leaf=lambda x: isinstance(x, plp_optax.AmplifyLayersState)
        )
        if isinstance(leaf, plp_optax.AmplifyLayersState)
    ]
    return found


def test_accounts_inside_of_chains():
    own, gradient = account_state()
    windows = [AmplificationWindow(0, 2, 1, factor=2.0)]
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        plp_optax.amplify_layers(windows, select="all"),
        optax.sgd(0.1, momentum=0.9),
    )
    ((_, by_name),) = optax.tree.get_all_with_path(
        tx.init(gradient), "AmplifyLayersState"
    )
    assert isinstance(by_name, plp_optax.AmplifyLayersState)
    for outer in (tx, optax.MultiSteps(tx, 1).gradient_transformation()):
        _, states = feed(outer, [gradient] * 1, gradient)
        accounts = plp_optax.layer_accounts(find_state(states[-1]), gradient)
        assert [a.score for a in accounts] == [1, 1, 0]
    assert own.scores.shape == (3,)
