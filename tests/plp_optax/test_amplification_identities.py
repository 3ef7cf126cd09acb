"""Amplification: the same on every replica; its identities; its memory and types."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plp_optax
from plp_optax import AmplificationWindow, all_layers, at_random, by_score, named
from tests.support.amplification import (
    EPOCH,
    IDENTITY_WINDOWS,
    MEASURES,
    analyze,
    feed,
    jit,
    kernels,
)

# -- replicas --------------------------------------------------------------------------

KINDS = {
    "scores": {"measure": "g1_per_weight", "select": by_score(0.5)},
    "two-sided": {"select": by_score(0.5, two_sided=True)},
    "random": {"select": at_random(0.4)},
    "names": {"select": named("a", "d")},
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


# -- identities ------------------------------------------------------------------------


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
            plp_optax.amplify_layers(IDENTITY_WINDOWS, select=named(*selected)), sgd
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
            plp_optax.amplify_layers(IDENTITY_WINDOWS, select=all_layers()),
            sgd(rate, decay),
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
    tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, measure=measure, select=by_score(1))
    state = tx.init(params)
    large = [x for x in jax.tree.leaves(state) if x.size >= 1000]
    assert len(large) == 3 * buffers
    rest = sum(x.size for x in jax.tree.leaves(state)) - 3000 * buffers
    # Two counters; scores, z, amplified, factors and two counts of each layer; a sum a
    # layer in place of a buffer.
    assert rest == 2 + 6 * 3 + 3 * (2 - buffers)
    _, after = jit(tx.update)(params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@pytest.mark.parametrize("measure", ["g1_per_weight", "g2"])
@pytest.mark.parametrize(
    ("dtype", "accumulator", "expected"),
    [
        (jnp.float32, None, jnp.float32),
        (jnp.bfloat16, None, jnp.float32),
        (jnp.float16, None, jnp.float32),
        (jnp.bfloat16, "float32", jnp.float32),
    ],
)
def test_accumulator_dtype(measure, dtype, accumulator, expected):
    params = kernels(np.zeros((3, 4)).astype(dtype))
    tx = plp_optax.amplify_layers(
        IDENTITY_WINDOWS,
        measure=measure,
        select=all_layers(),
        accumulator_dtype=accumulator,
    )
    outputs, states = feed(tx, [params] * 2)
    for state in states:
        buffers = [x for x in jax.tree.leaves(state) if x.shape == (4,)]
        assert {x.dtype for x in buffers} == {jnp.dtype(expected)}
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(dtype)}


def test_accumulators_of_float64_parameters_are_float64():
    with jax.enable_x64(True):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, select=all_layers())
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
    outputs, _ = feed(
        plp_optax.amplify_layers(windows, select=all_layers()), [gradient] * 2
    )
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
        tx = plp_optax.amplify_layers(windows, measure=measure, select=all_layers())
        outputs, states = feed(tx, [gradient] * 3)
        np.testing.assert_array_equal(states[2].scores, [1, 0, 1])
        expected = jax.tree.map(lambda g: 2 * g, gradient)
        chex.assert_trees_all_equal(outputs[2], expected)


@pytest.mark.parametrize("empty", [{}, (), None, {"a": {"kernel": None}}], ids=str)
def test_an_empty_tree(empty):
    for kwargs in (
        {},
        {"measure": "g1"},
        {"select": at_random(0.5)},
        {"select": named("a")},
    ):
        tx = plp_optax.amplify_layers(IDENTITY_WINDOWS, **kwargs)
        state = tx.init(empty)
        updates, after = jit(tx.update)(empty, state)
        assert jax.tree.structure(updates) == jax.tree.structure(empty)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
