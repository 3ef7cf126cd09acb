"""What every optax transformation owes its users, for every public factory."""

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

import plp_optax
from tests.factories import CASES
from tests.problems import jitted, run_tree

STEPS = 12
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
with_inject = pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=name) for name, c in CASES.items() if c.inject],
)


def make_params(dtype=jnp.float32):
    return {
        "kernel": jnp.arange(6, dtype=dtype).reshape(2, 3) / 4,
        "inner": (jnp.ones(3, dtype), [jnp.asarray(0.5, dtype)]),
    }


def make_gradients(params, steps=STEPS):
    rng = np.random.default_rng(3)

    def like(p):
        return jnp.asarray(rng.normal(size=p.shape), p.dtype)

    return [jax.tree.map(like, params) for _ in range(steps)]


PARAMS = make_params()
GRADIENTS = make_gradients(PARAMS)


def avals(tree):
    """Structure, shapes, dtypes and weak types."""
    return jax.tree.map(jax.typeof, tree)


def assert_close(a, b, tolerance=2e-5):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


@every_case
def test_takes_and_ignores_extra_arguments(case):
    tx = case.make()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    state = tx.init(PARAMS)
    plain = tx.update(GRADIENTS[0], state, PARAMS)
    extra = tx.update(GRADIENTS[0], state, PARAMS, value=1.0, something_else=None)
    chex.assert_trees_all_equal(plain, extra)


@every_case
def test_parameters_are_optional_or_asked_for_in_words(case):
    tx = case.make()
    state = tx.init(PARAMS)
    if case.needs_params:
        with pytest.raises(ValueError, match="param"):
            tx.update(GRADIENTS[0], state)
    else:
        with_params = tx.update(GRADIENTS[0], state, PARAMS)
        chex.assert_trees_all_equal(tx.update(GRADIENTS[0], state), with_params)


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_state_and_updates_keep_their_types(case, dtype):
    params = make_params(dtype)
    tx = case.make()
    state = tx.init(params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
    before = avals(state)
    for gradient in make_gradients(params, 5):
        updates, state = tx.update(gradient, state, params)
        assert avals(state) == before
        assert avals(updates) == avals(gradient)


@pytest.mark.parametrize(
    "case", [c for c in CASES.values() if not c.optimizes]
)  # optax.sgd and optax.adam themselves start with weakly typed moments here
def test_weakly_typed_parameters_give_a_strongly_typed_state(case):
    params = {"w": jnp.asarray(1.0) * 1, "scalar": 2.0}
    state = case.make().init(params)
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@every_case
def test_initial_state_is_zeros_and_factors_of_one(case):
    """So that abstract parameters will do, and nothing aliases the parameters."""
    tx = case.make()
    state = tx.init(PARAMS)
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        of_one = path[-1] == jax.tree_util.GetAttrKey("factors")
        np.testing.assert_array_equal(x, np.full(x.shape, of_one, x.dtype))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(tx.init, PARAMS), state
    )
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((PARAMS, state))]
    assert len(set(buffers)) == len(buffers)


@every_case
def test_parameters_and_state_can_be_donated(case):
    tx = case.make()

    def step(params, state, gradient):
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.tree.map(jnp.copy, PARAMS), tx.init(PARAMS)
    donated = jax.jit(step, donate_argnums=(0, 1))
    for gradient in GRADIENTS:
        params, state = donated(params, state, gradient)
    expected, _ = run_tree(tx, PARAMS, GRADIENTS)
    assert_close(params, expected[-1])


@every_case
def test_compiles_once(case):
    chex.clear_trace_counter()
    tx = case.make()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(PARAMS)
    for gradient in GRADIENTS:
        _, state = update(gradient, state, PARAMS)
    assert update._cache_size() == 1


class Variants(chex.TestCase):
    @chex.variants(
        with_jit=True, without_jit=True, with_device=True, without_device=True
    )
    @parameterized.named_parameters(*CASES.items())
    def test_same_in_every_variant(self, case):
        tx = case.make()
        update = self.variant(tx.update)
        state, params = self.variant(tx.init)(PARAMS), PARAMS
        for gradient in GRADIENTS[:5]:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        expected, _ = run_tree(tx, PARAMS, GRADIENTS[:5])
        assert_close(params, expected[-1])


@every_case
def test_scan(case):
    tx = case.make()

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *GRADIENTS)
    (params, _), _ = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), stacked)
    assert_close(params, run_tree(tx, PARAMS, GRADIENTS)[0][-1])


@every_case
def test_vmap(case):
    """A stack of optimizers equals the optimizers one by one."""
    tx = jitted(case.make())
    scales = jnp.array([1.0, -2.0, 0.5])
    stacked = jax.vmap(lambda s: jax.tree.map(lambda p: s * p, PARAMS))(scales)
    state = jax.vmap(tx.init)(stacked)
    update = jax.jit(jax.vmap(tx.update, in_axes=(None, 0, 0)))
    params = stacked
    for gradient in GRADIENTS[:6]:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for i in range(len(scales)):
        one = jax.tree.map(lambda p, i=i: p[i], stacked)
        expected, _ = run_tree(tx, one, GRADIENTS[:6])
        assert_close(jax.tree.map(lambda p, i=i: p[i], params), expected[-1])


def sharded_steps(tx, params, gradients, wrap):
    """Steps with the mean of per-device gradients; ``wrap`` maps a step."""
    devices = jax.device_count()

    def step(params, state, shard):
        gradient = jax.tree.map(lambda g: jax.lax.pmean(g[0], "batch"), shard)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = wrap(step)
    state = tx.init(params)
    weights = jnp.arange(devices, dtype=jnp.float32) * 2 / (devices - 1)  # mean 1
    for gradient in gradients:
        shards = jax.tree.map(
            lambda g: jnp.multiply(
                weights.reshape(-1, *([1] * (g.ndim + 1))), g[None, None]
            ),
            gradient,
        )
        params, state = step(params, state, shards)
    return params, state


@every_case
def test_pmap(case):
    assert jax.device_count() == 4
    tx = case.make()

    def wrap(step):
        return jax.pmap(step, axis_name="batch", in_axes=(None, None, 0), out_axes=None)

    params, state = sharded_steps(tx, PARAMS, GRADIENTS[:6], wrap)
    expected, expected_state = run_tree(tx, PARAMS, GRADIENTS[:6])
    assert_close(params, expected[-1])
    assert_close(state, expected_state)
    for leaf in jax.tree.leaves((params, state)):  # replicas, every one of them
        shards = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


@every_case
def test_shard_map(case):
    tx = case.make()
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

    def wrap(step):
        def body(params, state, shard):
            return step(params, state, jax.tree.map(lambda g: g[0], shard))

        return jax.jit(
            jax.shard_map(
                body, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=(P(), P())
            )
        )

    params, _ = sharded_steps(tx, PARAMS, GRADIENTS[:6], wrap)
    assert_close(params, run_tree(tx, PARAMS, GRADIENTS[:6])[0][-1])


@every_case
def test_state_keeps_the_shardings_of_the_parameters(case):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    sharded = NamedSharding(mesh, P("x"))
    params = {"w": jax.device_put(jnp.arange(8.0).reshape(8, 1), sharded)}
    tx = case.make()
    state = tx.init(params)
    update = jax.jit(tx.update)

    def shardings(state):
        return [
            x.sharding.is_equivalent_to(sharded, x.ndim)
            for x in jax.tree.leaves(state)
            if x.shape == (8, 1)
        ]

    assert bool(shardings(state)) == case.buffers
    assert all(shardings(state))
    for _ in range(5):
        _, state = update(params, state, params)
        assert all(shardings(state))


@every_case
def test_masked_and_partition(case):
    tx = case.make()
    mask = {"kernel": True, "inner": (False, [True])}
    masked = optax.masked(tx, mask)
    updates, _ = masked.update(GRADIENTS[0], masked.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates["inner"][0], GRADIENTS[0]["inner"][0])

    labels = {"kernel": "a", "inner": ("b", ["a"])}
    parted = optax.partition({"a": tx, "b": optax.sgd(0.1)}, labels)
    params, _ = run_tree(jitted(parted), PARAMS, GRADIENTS)
    ours = [PARAMS, *GRADIENTS]
    if case.couples:  # an empty leaf in the place of the other transformation's
        ours = [{**x, "inner": (jnp.zeros(0), x["inner"][1])} for x in ours]
    whole, _ = run_tree(tx, ours[0], ours[1:])
    plain, _ = run_tree(optax.sgd(0.1), PARAMS, GRADIENTS)
    assert_close(params[-1]["kernel"], whole[-1]["kernel"])
    assert_close(params[-1]["inner"][1], whole[-1]["inner"][1])
    assert_close(params[-1]["inner"][0], plain[-1]["inner"][0])


@every_case
def test_multi_steps_around_the_chain_is_the_mean_gradient(case):
    tx = case.make()
    twice = [g for gradient in GRADIENTS for g in (gradient, gradient)]
    accumulated, _ = run_tree(jitted(optax.MultiSteps(tx, 2)), PARAMS, twice)
    expected, _ = run_tree(tx, PARAMS, GRADIENTS)
    assert_close(accumulated[-1], expected[-1])


@with_inject
def test_inject_hyperparams(case):
    value = dict(case.kwargs).get(case.inject, 1.0)
    others = {k: v for k, v in case.kwargs.items() if k != case.inject}
    injected = optax.inject_hyperparams(
        case.factory, static_args=plp_optax.static_args(case.factory)
    )(**{case.inject: value}, **others)
    actual, state = run_tree(jitted(injected), PARAMS, GRADIENTS)
    assert_close(actual[-1], run_tree(case.make(), PARAMS, GRADIENTS)[0][-1])
    assert_close(state.hyperparams[case.inject], jnp.asarray(value))


@pytest.mark.parametrize(
    ("factory", "kwargs", "name"),
    [
        (plp_optax.plp, {}, "window"),
        (plp_optax.affine_window, {"coefficients": [0.0, 1.0], "period": 1}, "period"),
        (plp_optax.plp, {"window": 3}, "window"),
        (
            plp_optax.amplify_layers,
            {"strategy": [(0, 9, 3, 2.0)], "reselect_every": 2},
            "reselect_every",
        ),
    ],
)
def test_inject_hyperparams_without_static_arguments_says_which(factory, kwargs, name):
    with pytest.raises(ValueError, match=f"'{name}' in static_args"):
        optax.inject_hyperparams(factory)(**kwargs).init(PARAMS)


@pytest.mark.parametrize("factory", [plp_optax.plp_sgd, plp_optax.plp_adamw])
def test_the_learning_rate_of_the_chains_is_injected_without_more(factory):
    injected = optax.inject_hyperparams(factory)(learning_rate=0.1)
    actual, state = run_tree(jitted(injected), PARAMS, GRADIENTS[:4])
    expected, _ = run_tree(jitted(factory(0.1)), PARAMS, GRADIENTS[:4])
    assert_close(actual[-1], expected[-1])
    assert float(state.hyperparams["learning_rate"]) == np.float32(0.1)


@every_case
def test_tree_map_params(case):
    """Only what has the shape of the parameters is mapped."""
    tx = case.make()
    state = tx.init(PARAMS)
    marked = optax.tree_map_params(tx, lambda x: x + 1, state)
    for before, after in zip(
        jax.tree.leaves(state), jax.tree.leaves(marked), strict=True
    ):
        like_params = before.shape in {p.shape for p in jax.tree.leaves(PARAMS)} - {()}
        if like_params:
            np.testing.assert_array_equal(after, before + 1)
        elif before.shape:
            np.testing.assert_array_equal(after, before)


FIELDS = (*plp_optax.AffineWindowState._fields, *plp_optax.AmplifyLayersState._fields)


@pytest.mark.parametrize("field", FIELDS)
def test_fields_are_found_without_ambiguity(field):
    tx = optax.chain(
        CASES["amplify_layers"].make(),
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(0.1, 10)),
        plp_optax.plp(),
    )
    assert optax.tree.get(tx.init(PARAMS), field) is not None


@every_case
def test_survives_orbax_and_flax_serialization(case, tmp_path):
    tx = case.make()
    _, state = run_tree(tx, PARAMS, GRADIENTS[:2])
    blank = tx.init(PARAMS)

    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored, state)

    ocp.save(tmp_path / "state", state)
    restored = ocp.load(tmp_path / "state", blank)
    chex.assert_trees_all_equal(restored, state)
    assert avals(restored) == avals(state)


@every_case
def test_optimizes_a_small_problem_inside_scan(case):
    def loss(w):
        return (1 - w[0]) ** 2 + 3 * (w[1] - w[0]) ** 2

    tx = case.optimizer(0.05)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    w = jnp.array([-1.5, 2.0])
    (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=600)
    assert loss(w) < 1e-3
