"""The contract of an optax transformation: every public factory, on one device and on
four.

Includes each case of optax's own ``contrib/_common_test.py``.
"""

import functools

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from tests.support.factories import CASES
from tests.support.problems import avals, jitted, run_tree

STEPS = 12
CORE = [name for name, case in CASES.items() if case.core]
every_case = pytest.mark.parametrize("name", CASES)
# One of each state: others have that of affine_window, or monitor_layers inside.
OTHERS = ("plp", "plp_sgd", "plp_adamw", "lookahead", "noise_adaptive_rates")
STATES = [n for n, c in CASES.items() if n == c.factory.__name__ and n not in OTHERS]
each_state = pytest.mark.parametrize("name", STATES)
FIELDS = [n for n in STATES if not CASES[n].optimizes]


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


@functools.cache
def made(name):
    """The transformation, compiled."""
    return jitted(CASES[name].make())


@functools.cache
def expected(name):
    """Parameters after each of the gradients, and the last state."""
    with jax.transfer_guard("disallow"):
        return run_tree(made(name), PARAMS, GRADIENTS)


def assert_close(a, b, tolerance=2e-5):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


# -- arguments and types ---------------------------------------------------------------


@every_case
def test_takes_and_ignores_extra_arguments_and_asks_for_parameters_in_words(name):
    case, tx = CASES[name], made(name)
    plain, state = case.make(), tx.init(PARAMS)
    assert isinstance(plain, optax.GradientTransformationExtraArgs)
    more = functools.partial(plain.update, value=1.0, something_else=None)
    programs = (jax.make_jaxpr(f)(PARAMS, state, PARAMS) for f in (plain.update, more))
    assert len(set(map(str, programs))) == 1
    if case.needs_params:
        with pytest.raises(ValueError, match="param"):
            tx.update(GRADIENTS[0], state)
    else:
        given = tx.update(GRADIENTS[0], state, PARAMS)
        assert_close(tx.update(GRADIENTS[0], state), given, 1e-7)


@every_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_state_and_updates_keep_their_types(name, dtype):
    """So that nothing compiles again, also where ``lax.cond`` asks for equal types."""
    with jax.enable_x64(dtype == "float64"):
        params = make_params(jnp.dtype(dtype))
        gradient = make_gradients(params, 1)[0]
        tx = CASES[name].make()

        def step(state):
            new = tx.update(gradient, state, params)
            return jax.lax.cond(
                optax.tree.sum(gradient) > 0, lambda: new, lambda: (gradient, state)
            )

        state = jax.eval_shape(tx.init, params)
        updates, new = jax.eval_shape(step, state)
        assert avals(new) == avals(state)
        assert avals(updates) == avals(jax.eval_shape(lambda: gradient))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.optimizes])
# optax.sgd and optax.adam themselves start with weakly typed moments here
def test_weakly_typed_parameters_give_a_strongly_typed_state(name):
    params = {"w": jnp.asarray(1.0) * 1, "scalar": 2.0}
    tx = CASES[name].make()
    if name == "amplify_layers-inner":  # which has Adam's
        return
    state = jax.eval_shape(tx.init, params)
    assert not any(x.weak_type for x in jax.tree.leaves(state))


@every_case
def test_initial_state_depends_on_the_shapes_alone(name):
    """So that abstract parameters are enough, and nothing aliases the parameters."""
    init = made(name).init
    state = init(PARAMS)
    chex.assert_trees_all_equal(state, init(jax.tree.map(jnp.zeros_like, PARAMS)))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(init, PARAMS), state)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((PARAMS, state))]
    assert len(set(buffers)) == len(buffers)


# -- compilation and JAX's modes -------------------------------------------------------


@each_state
def test_a_stack_of_optimizers_donated_in_scan(name):
    """Equals the optimizers one by one."""
    tx = CASES[name].make()

    def step(carry, gradient):
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @functools.partial(jax.jit, donate_argnums=0)
    @functools.partial(jax.vmap, in_axes=(0, None))
    def train(carry, gradients):
        return jax.lax.scan(step, carry, gradients)[0]

    members = [PARAMS, jax.tree.map(lambda p: -2 * p, PARAMS)]
    start = jax.tree.map(lambda *x: jnp.stack(x), *members)
    gradients = jax.tree.map(lambda *x: jnp.stack(x), *GRADIENTS[:6])
    found = train((start, jax.vmap(tx.init)(start)), gradients)
    for i, member in enumerate(members):
        history, state = run_tree(made(name), member, GRADIENTS[:6])
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), (history[-1], state))


@each_state
def test_without_compilation_and_without_nan(name):
    with jax.disable_jit(), jax.debug_nans(True):
        history, _ = run_tree(CASES[name].make(), PARAMS, GRADIENTS[:2])
    assert_close(history[-1], expected(name)[0][1])


STRICT = [n for n in CORE if n not in ("amplify_layers-inner", "pace")]  # optax's Adam


@pytest.mark.parametrize("name", STRICT)
def test_under_jaxs_strict_settings(name):
    """No promotion of types or ranks, and no leaked tracer."""
    tx = CASES[name].make()
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.checking_leaks(),
    ):
        for dtype in ("float32", "bfloat16"):
            if (name, dtype) != ("ekf", "bfloat16"):
                params = make_params(jnp.dtype(dtype))
                state = jax.eval_shape(tx.init, params)
                jax.eval_shape(tx.update, params, state, params)


# -- optax's own transformations -------------------------------------------------------


@each_state
def test_partition(name):
    """Which masks the gradients and parameters of others."""
    case = CASES[name]
    labels = {"kernel": "a", "inner": ("b", ["a"])}
    parted = optax.partition({"a": case.make(), "b": optax.sgd(0.1)}, labels)
    params, _ = run_tree(jitted(parted), PARAMS, GRADIENTS[:6])
    ours = [PARAMS, *GRADIENTS[:6]]
    if case.couples:  # an empty leaf in the place of the other transformation's
        ours = [{**x, "inner": (jnp.zeros(0), x["inner"][1])} for x in ours]
    ours_alone, _ = run_tree(made(name), ours[0], ours[1:])
    plain, _ = run_tree(optax.sgd(0.1), PARAMS, GRADIENTS[:6])
    assert_close(params[-1]["kernel"], ours_alone[-1]["kernel"])
    assert_close(params[-1]["inner"][1], ours_alone[-1]["inner"][1])
    assert_close(params[-1]["inner"][0], plain[-1]["inner"][0])


@each_state
def test_multi_steps_around_the_chain_is_the_mean_gradient(name):
    tx = optax.MultiSteps(CASES[name].make(), 2)
    twice = [g for gradient in GRADIENTS[:6] for g in (gradient, gradient)]
    accumulated, _ = run_tree(jitted(tx), PARAMS, twice)
    assert_close(accumulated[-1], expected(name)[0][5])
    # The first mini-step changes nothing.
    chex.assert_trees_all_equal(accumulated[0], PARAMS)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.inject])
def test_inject_hyperparams(name):
    case = CASES[name]
    value = dict(case.kwargs).get(case.inject, 1.0)
    others = {k: v for k, v in case.kwargs.items() if k != case.inject}
    case = case._replace(kwargs=others)
    injected = optax.inject_hyperparams(lambda value: case.make(**{case.inject: value}))
    actual, state = run_tree(jitted(injected(value=value)), PARAMS, GRADIENTS)
    # Counters of states of chains are the same, too.
    assert_close(actual[-1], expected(name)[0][-1])
    assert_close(state.inner_state, expected(name)[1])
    assert_close(state.hyperparams["value"], jnp.asarray(value))


@every_case
def test_tree_map_params(name):
    """Only what has the shape of the parameters is mapped."""
    state = made(name).init(PARAMS)
    marked = optax.tree_map_params(CASES[name].make(), lambda x: x + 1, state)
    for before, after in zip(
        jax.tree.leaves(state), jax.tree.leaves(marked), strict=True
    ):
        like_params = before.shape in {p.shape for p in jax.tree.leaves(PARAMS)} - {()}
        if like_params:
            np.testing.assert_array_equal(after, before + 1)
        elif before.shape:
            np.testing.assert_array_equal(after, before)


def test_fields_are_found_without_ambiguity():
    links = [case.make() for name, case in CASES.items() if name in FIELDS]
    tx = optax.chain(*links, optax.adam(optax.cosine_decay_schedule(0.1, 10)))
    state = jax.eval_shape(tx.init, PARAMS)
    for name in FIELDS:
        for field in CASES[name].make().init(PARAMS)._fields:
            optax.tree.get(state, field)  # raises where there are several


@every_case
def test_survives_orbax_and_flax_serialization(name, tmp_path):
    state, blank = expected(name)[1], made(name).init(PARAMS)
    restored = flax.serialization.from_bytes(blank, flax.serialization.to_bytes(state))
    chex.assert_trees_all_equal(restored, state)

    if not jax.tree.leaves(state):
        return  # Orbax saves no empty trees
    ocp.save(tmp_path / "state", state)
    restored = ocp.load(tmp_path / "state", blank)
    chex.assert_trees_all_equal(restored, state)
    assert avals(restored) == avals(state)


def targets(w):
    """The targets of optax's test: two paraboloids, Rosenbrock's valley, two tensors.

    All in one tree, the valley ten times less steep.
    """
    x, y = w["valley"]
    matrix = jnp.asarray([[3.0, -2.0], [1.0, 4.0]])
    return (
        ((w["parabola"] - jnp.asarray([1.0, -1.0, 1.0])) ** 2).sum()
        + ((w["matrix"] - matrix) ** 2).sum()
        + ((w["mixed"][0] - jnp.asarray([1.0, -1.0, 2.0])) ** 2).sum()
        + ((w["mixed"][1] - jnp.eye(2)) ** 2).sum()
        + (1 - x) ** 2
        + 10 * (y - x**2) ** 2
    )


@pytest.mark.parametrize("name", [n for n in FIELDS if n != "ekf"])
def test_optimizes_in_scan(name):
    tx = CASES[name].optimizer(0.01)

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(targets)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    w = {
        "parabola": jnp.asarray([-1.0, 10.0, 1.0]),
        "valley": jnp.zeros(2),
        "matrix": jnp.zeros((2, 2)),
        "mixed": (jnp.zeros(3), jnp.zeros((2, 2))),
    }
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, length=6000)[0])
    w, _ = train((w, tx.init(w)))
    assert targets(w) < 3e-3  # with weight decay; 1e-6 without


# -- several devices -------------------------------------------------------------------


@each_state
def test_replicas_with_the_mean_gradient_are_as_one_device(name):
    devices = jax.device_count()
    assert devices == 4
    tx = CASES[name].make()

    def step(params, state, gradient):
        gradient = jax.lax.pmean(gradient, "batch")
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.pmap(step, axis_name="batch", in_axes=(None, None, 0), out_axes=None)
    params, state = PARAMS, tx.init(PARAMS)
    shares = 2 * np.arange(devices, dtype=np.float32) / (devices - 1)  # mean 1
    for gradient in GRADIENTS[:6]:
        parts = [jax.tree.map(lambda g, s=s: s * g, gradient) for s in shares]
        gradient = jax.tree.map(lambda *x: jnp.stack(x), *parts)
        params, state = step(params, state, gradient)
    assert_close(params, expected(name)[0][5])
    for leaf in jax.tree.leaves((params, state)):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == devices
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])


@pytest.mark.parametrize("name", [n for n in STATES if n != "ekf"])
def test_on_a_mesh_with_explicit_axes(name):
    """The default of ``jax.make_mesh`` from JAX 0.12 on."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,))
    params = {"kernel": jnp.linspace(-1, 1, 32).reshape(4, 8), "bias": jnp.ones(8)}
    specs = {"kernel": P("x", None), "bias": P()}

    def train(params):
        tx = jitted(CASES[name].make())
        state = tx.init(params)
        for t in range(4):
            gradient = jax.tree.map(lambda p, t=t: 0.1 * jnp.cos(p + t), params)
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, specs
        )
        actual = train(placed)
        # Also what the state has of the parameters' shape.
        kernels = [x for x in jax.tree.leaves(actual) if x.shape == (4, 8)]
        assert {jax.typeof(x).sharding.spec for x in kernels} == {specs["kernel"]}
    assert_close(jax.device_get(actual), train(params))
