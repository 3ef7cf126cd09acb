"""Averages of the trajectory: weights, precision, read-outs, merged blocks."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from scipy.special import gammaln

import plp_optax
from tests.support.problems import RATE, W0, descend, jitted, read_out, run

STEPS = 40


def trajectory(tx):
    """Parameters and averages after each step on the noisy problem."""
    return read_out(descend(tx), STEPS, plp_optax.averaged_params)


# -- Weights ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "start"), [({"power": 0.0}, 5), ({"decay": 0.0}, 0), ({"decay": 0.8}, 5)]
)
def test_mean_and_exponential_average_by_brute_force(kwargs, start):
    params, averages = trajectory(plp_optax.tail_average(**kwargs, start=start))
    np.testing.assert_allclose(params, run(optax.sgd(RATE), STEPS), rtol=1e-12)
    average = W0
    for t, (w, actual) in enumerate(zip(params, averages, strict=True)):
        if t < start:
            average = w
        elif "power" in kwargs:
            average = params[start : t + 1].mean(axis=0)
        else:  # the weights of an exponential average, scaled to sum to 1
            weights = kwargs["decay"] ** np.arange(t - start, -1, -1.0)
            average = weights @ params[start : t + 1] / weights.sum()
        np.testing.assert_allclose(actual, average, rtol=1e-10)


@pytest.mark.parametrize("power", [0.0, 8.0, 16.5])
def test_power_average_weights_updates_as_a_decay_would(power):
    """W_j = 1 - Γ(n) Γ(j + g) / (Γ(j - 1) Γ(n + g + 1)), near 1 - (j/n)^(g + 1)."""
    params, averages = trajectory(plp_optax.tail_average(power))
    updates = np.diff(params, axis=0, prepend=W0[None])
    for n in (1, 2, 10, STEPS):
        j = np.arange(1, n + 1)
        with np.errstate(invalid="ignore"):
            log = (
                gammaln(n)
                + gammaln(j + power)
                - gammaln(j - 1)
                - gammaln(n + power + 1)
            )
        weights = 1 - np.where(j == 1, 0, np.exp(log))
        expected = W0 + weights @ updates[:n]
        np.testing.assert_allclose(averages[n - 1], expected, rtol=0, atol=1e-12)
        limit = 1 - ((j - 1) / n) ** (power + 1)
        assert np.abs(weights - limit).max() <= (power + 1) / n


def test_the_default_is_a_power_average():
    _, averages = trajectory(plp_optax.tail_average())
    _, expected = trajectory(plp_optax.tail_average(16.0))
    np.testing.assert_array_equal(averages, expected)


# -- Precision -------------------------------------------------------------------------

FOLLOWING = {
    "tail_average": lambda: plp_optax.tail_average(0.0),
    "bema": lambda: plp_optax.bema(bias_power=None),
    "gpa": lambda: plp_optax.gpa(decay=0.9),
    "outer_nesterov": lambda: plp_optax.outer_nesterov(0.7, momentum=0.9, period=2),
}


@pytest.mark.parametrize(
    ("name", "dtype", "update"),
    [
        *((name, "bfloat16", 1e-3) for name in FOLLOWING),
        ("tail_average", "float16", 1e-4),
        ("tail_average", "float32", 2e-8),
    ],
)
def test_updates_that_rounding_swallows_move_no_average_and_no_momentum(
    name, dtype, update
):
    """In half precision nobody can know it without the parameters."""
    tx = jitted(FOLLOWING[name]())
    w = jnp.ones((), dtype)
    state = tx.init(w)
    for _ in range(30):
        updates, state = tx.update(jnp.asarray(-update, dtype), state, w)
        w = optax.apply_updates(w, updates)
    assert w == 1
    if name == "outer_nesterov":
        assert state.outer_velocity == 0
    else:
        assert plp_optax.evaluation_params(state, w) == 1
    if dtype != "float32":
        with pytest.raises(ValueError, match="in half precision parameters round"):
            tx.update(updates, state)


ROUNDED = {  # with the weight of the t-th parameters in the average
    "power": (plp_optax.tail_average(4.0), lambda t: 5 / (t + 4)),
    "decay": (plp_optax.tail_average(decay=0.99), lambda t: 0.01 / (1 - 0.99**t)),
    "bema": (plp_optax.bema(), lambda t: (10 + t) ** -0.5),
    "pace": (plp_optax.pace(0.01), lambda t: (1 + t) ** -0.5),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_average_of_a_compiled_step_in_half_precision(name):
    """A compiler keeps updates wider than bfloat16 between two transformations."""
    tx, weight = ROUNDED[name]
    tx = optax.chain(optax.scale(0.37), tx)

    @jax.jit
    def step(w, state, direction):
        updates, state = tx.update(direction * w, state, w)
        return optax.apply_updates(w, updates), state

    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=50), jnp.bfloat16)
    state, average = tx.init(w), np.asarray(w, np.float64)
    for t in range(1, 101):
        w, state = step(w, state, jnp.asarray(0.1 * rng.normal(size=50), w.dtype))
        last = np.asarray(w, np.float64)
        average = average + weight(t) * (last - average)
    field = "ema_offset" if name == "bema" else "average_offset"
    offset = np.asarray(optax.tree.get(state, field), np.float64)
    np.testing.assert_allclose(last + offset, average, atol=1e-5)


def test_displacement_of_a_compiled_step_in_half_precision():
    tx = optax.chain(optax.scale(0.37), plp_optax.outer_nesterov(period=20))

    @jax.jit
    def step(w, state, direction):
        updates, state = tx.update(direction * w, state, w)
        return optax.apply_updates(w, updates), state

    rng = np.random.default_rng(0)
    first = w = jnp.asarray(rng.normal(size=50), jnp.bfloat16)
    state = tx.init(w)
    for _ in range(10):
        w, state = step(w, state, jnp.asarray(0.1 * rng.normal(size=50), w.dtype))
    moved = np.asarray(w, np.float64) - np.asarray(first, np.float64)
    np.testing.assert_allclose(optax.tree.get(state, "displacement"), moved, atol=1e-6)


@pytest.mark.parametrize("name", ROUNDED)
def test_average_of_rounded_parameters(name):
    """The average is of parameters as bfloat16 rounds them; its offset is float32."""
    tx, weight = ROUNDED[name]
    tx = jitted(tx)
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=50), jnp.bfloat16)
    state, first = tx.init(w), np.asarray(w, np.float64)
    average = first
    for t in range(1, 101):
        # In float32, as an optimizer with a float32 learning rate emits them.
        updates = jnp.asarray(0.01 * rng.normal(size=50), jnp.float32)
        updates, state = tx.update(updates, state, w)
        w = optax.apply_updates(w, updates)
        last = np.asarray(w, np.float64)
        average = average + weight(t) * (last - average)
    field = "ema_offset" if name == "bema" else "average_offset"
    offset = optax.tree.get(state, field)
    assert offset.dtype == jnp.float32
    np.testing.assert_allclose(last + np.asarray(offset, float), average, atol=1e-5)
    read = plp_optax.evaluation_params(state, w)
    assert read.dtype == jnp.bfloat16
    if name == "bema":
        average = average + 110**-0.2 * (last - first)
    np.testing.assert_allclose(np.asarray(read, float), average, rtol=2**-8)


def test_long_runs():
    """With noise the float32 offset follows float64; the count may not overflow."""
    steps = 2**31 - 1
    tx = plp_optax.tail_average(0.0)
    state = tx.init(jnp.zeros(()))._replace(
        tail_steps=jnp.asarray(steps, jnp.int32), average_offset=jnp.ones(())
    )
    noise = 1e-3 * np.random.default_rng(0).normal(size=2000)
    update = lambda state, u: (tx.update(u, state)[1], None)  # noqa: E731
    after, _ = jax.lax.scan(update, state, jnp.asarray(noise, jnp.float32))
    expected, n = 1.0, steps
    for u in np.asarray(noise, np.float32).astype(np.float64):
        n = min(n + 1, 2**31)
        expected = (1 - 1 / n) * (expected - u)
    # The average moves by 2,000 / n of the offset.
    np.testing.assert_allclose(after.average_offset, expected, atol=1e-5)


# -- Read-outs -------------------------------------------------------------------------

PARAMS = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2)), "d": jnp.zeros(())}}
MASK = {"a": True, "b": {"c": False, "d": True}}


def trained(tx, params=PARAMS, steps=3):
    state = tx.init(params)
    for t in range(steps):
        gradient = jax.tree.map(lambda p, t=t: jnp.cos(p + t), params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return state, params


def averaging(rate=0.1):
    return optax.chain(optax.sgd(rate), plp_optax.tail_average(0.0))


WRAPPED = {
    "chain": averaging,
    "named_chain": lambda: optax.named_chain(
        ("sgd", optax.sgd(0.1)), ("average", plp_optax.tail_average(0.0))
    ),
    "multi_steps": lambda: optax.MultiSteps(averaging(), 1).gradient_transformation(),
    "inject": lambda: optax.inject_hyperparams(averaging)(0.1),
    "finite": lambda: optax.apply_if_finite(averaging(), 2),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_evaluation_params_looks_inside_of_wrappers(wrap):
    state, params = trained(wrap())
    plain, path = PARAMS, []
    for t in range(3):
        plain = jax.tree.map(lambda p, t=t: p - 0.1 * jnp.cos(p + t), plain)
        path.append(plain)
    mean = jax.tree.map(lambda *ws: sum(ws) / 3, *path)
    for actual in (
        plp_optax.evaluation_params(state, params),
        plp_optax.averaged_params(state, params),
    ):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), actual, mean
        )


@pytest.mark.parametrize("mask", [MASK, {"a": True, "b": False}])
@pytest.mark.parametrize("partition", [False, True])
def test_leaves_that_the_average_does_not_see_stay(mask, partition):
    if partition:
        labels = jax.tree.map(lambda m: "on" if m else "off", mask)
        tx = optax.partition({"on": averaging(), "off": optax.set_to_zero()}, labels)
    else:
        tx = optax.masked(averaging(), mask)
    state, params = trained(tx)
    averaged = plp_optax.evaluation_params(state, params)
    np.testing.assert_array_equal(averaged["b"]["c"], params["b"]["c"])
    assert (averaged["a"] != params["a"]).any()


def test_a_blend_and_a_mask():
    state, params = trained(averaging())
    average = plp_optax.averaged_params(state, params)
    blend = plp_optax.averaged_params(state, params, 0.25, mask=lambda params: MASK)
    np.testing.assert_allclose(
        blend["a"], 0.75 * params["a"] + 0.25 * average["a"], rtol=1e-6
    )
    np.testing.assert_array_equal(blend["b"]["c"], params["b"]["c"])


LINKS = {
    "bema": lambda: descend(plp_optax.bema()),
    "gpa": lambda: descend(plp_optax.gpa(decay=0.5)),
    "pace": lambda: plp_optax.pace(0.01),
}


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
def test_masked_leaves_are_read_as_they_are(make):
    params = {"a": jnp.ones(3), "b": {"c": jnp.ones((2, 2))}}
    alone, tx = make(), optax.masked(make(), {"a": True, "b": False})
    gradient = jax.tree.map(jnp.ones_like, params)
    state, w = tx.init(params), params
    own, v = alone.init(params["a"]), params["a"]
    for _ in range(3):
        updates, state = tx.update(gradient, state, w)
        w = optax.apply_updates(w, updates)
        updates, own = alone.update(gradient["a"], own, v)
        v = optax.apply_updates(v, updates)
    found = plp_optax.evaluation_params(state, w)
    np.testing.assert_array_equal(found["b"]["c"], w["b"]["c"])
    expected = plp_optax.evaluation_params(own, v)
    np.testing.assert_allclose(found["a"], expected, rtol=1e-6)
    assert (found["a"] != w["a"]).all()


def test_state_of_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, averaging(), wrt=nnx.Param)
    path = []
    for t in range(3):
        gradient = jax.tree.map(
            lambda p, t=t: jnp.cos(p + t), nnx.state(model, nnx.Param)
        )
        optimizer.update(model, gradient)
        path.append(np.asarray(model.kernel[...]))
    averaged = plp_optax.evaluation_params(
        optimizer.opt_state, nnx.state(model, nnx.Param)
    )
    pure = plp_optax.evaluation_params(
        optimizer.opt_state, nnx.to_pure_dict(nnx.state(model, nnx.Param))
    )
    nnx.update(model, averaged)
    for kernel in (model.kernel[...], pure["kernel"]):
        np.testing.assert_allclose(kernel, np.mean(path, axis=0), rtol=1e-6)


def test_schedule_free_and_lookahead_of_optax():
    tx = optax.contrib.schedule_free_sgd(0.3, warmup_steps=2)
    state, params = trained(optax.chain(tx))
    expected = optax.contrib.schedule_free_eval_params(state[0], params)
    actual = plp_optax.evaluation_params(state, params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), actual, expected
    )
    pair = optax.LookaheadParams.init_synced(PARAMS)
    tx = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    state = tx.init(pair)
    np.testing.assert_array_equal(
        plp_optax.evaluation_params(state, pair)["a"], pair.slow["a"]
    )
    with pytest.raises(ValueError, match="pass its LookaheadParams"):
        plp_optax.evaluation_params(state, PARAMS)


def test_a_state_that_does_not_fit_is_refused():
    state, params = trained(averaging())
    with pytest.raises(ValueError, match="holds no average"):
        plp_optax.evaluation_params(optax.sgd(0.1).init(params), params)
    with pytest.raises(ValueError, match="TailAverageState, TailAverageState"):
        plp_optax.evaluation_params((state, state), params)
    with pytest.raises(ValueError, match=r"shape \(3,\) there, \(1,\) here"):
        plp_optax.evaluation_params(state, {**params, "a": jnp.ones(1)})
    with pytest.raises(ValueError, match="the parameters do not have b/c"):
        plp_optax.averaged_params(state, {"a": params["a"]})
    with pytest.raises(ValueError, match="the state does not have d"):
        plp_optax.averaged_params(state, {**params, "d": params["a"]})
    with pytest.raises(ValueError, match="restored without its structure"):
        plp_optax.evaluation_params(serialization.to_state_dict(state), params)


@pytest.mark.parametrize(
    "make", [plp_optax.bema, plp_optax.gpa, optax.contrib.schedule_free_sgd]
)
def test_states_of_several_members_are_read_inside_of_vmap(make):
    tx, w = make(), jnp.ones((4, 3))
    states = jax.vmap(tx.init)(w)
    with pytest.raises(ValueError, match="several members"):
        plp_optax.evaluation_params(states, w)
    read = jax.vmap(plp_optax.evaluation_params)(states, w)
    np.testing.assert_array_equal(read, w)


def test_trees_in_other_containers_are_paired_by_name():
    """Twelve layers of one shape, whose names a dict sorts as 0, 1, 10, 11, 2, ..."""
    w = [jnp.zeros(1) for _ in range(12)]
    tx = plp_optax.tail_average(power=0)
    state = tx.init(w)
    for _ in range(2):
        updates, state = tx.update([jnp.full(1, float(i)) for i in range(12)], state)
        w = optax.apply_updates(w, updates)
    restored = serialization.to_state_dict(w)
    reverse = collections.OrderedDict(reversed(restored.items()))
    for params in (restored, reverse):
        read = plp_optax.evaluation_params(state, params)
        assert type(read) is type(params)
        assert [read[str(i)][0] for i in range(12)] == [1.5 * i for i in range(12)]


def test_what_is_read_outlives_donated_parameters():
    tx = optax.masked(plp_optax.tail_average(), {"a": True, "b": False})
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    read = plp_optax.evaluation_params(tx.init(params), params)
    jax.tree.map(lambda x: x.delete(), params)  # as a step that donates them does
    np.testing.assert_array_equal(read["b"], np.ones(2))


# -- Merged blocks ---------------------------------------------------------------------


def test_merge_is_exact_for_decays_that_are_linear_within_blocks():
    """Against the sum over all steps, in blocks of different lengths."""
    counts = [3, 5, 4, 8, 6, 14]
    params = run(optax.sgd(RATE), sum(counts))
    updates = np.diff(params, axis=0, prepend=W0[None])
    blocks = np.split(params, np.cumsum(counts)[:-1])
    with jax.enable_x64(True):
        means = [jnp.asarray(block.mean(axis=0)) for block in blocks]
        over = (6 + 14) / 40
        actual = plp_optax.merge(means, counts, decay="linear", over=over)
    rates = np.minimum(1, np.arange(40, 0, -1) / 20)  # falls from the 21st step on
    np.testing.assert_allclose(actual, W0 + rates @ updates, rtol=1e-12)
    np.testing.assert_allclose(actual, params[20:].mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    ("decay", "shape"),
    [
        ("1-sqrt", lambda x: 1 - np.sqrt(x)),
        ("cosine", lambda x: (1 + np.cos(np.pi * x)) / 2),
        (lambda x: (1 - x) ** 2, lambda x: (1 - x) ** 2),
    ],
)
def test_merge_weights_blocks_by_the_fall_of_the_rate(decay, shape):
    weights = plp_optax.merge_weights(8, decay=decay, over=0.5)
    done = np.arange(5) / 4
    expected = [0, 0, 0, 0, *-np.diff(shape(done))]
    np.testing.assert_allclose(weights, expected, atol=1e-15)
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("over", [3e-9, 1e-300])
def test_a_decay_shorter_than_a_block_is_the_last_block(over):
    weights = plp_optax.merge_weights(4, [3, 7, 11, 13], decay="linear", over=over)
    np.testing.assert_array_equal(weights, [0, 0, 0, 1])


def test_merge_needs_a_sequence():
    with pytest.raises(ValueError, match="means must be a sequence of trees"):
        plp_optax.merge({"first": W0, "second": W0})
