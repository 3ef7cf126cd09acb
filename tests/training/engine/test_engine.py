"""Feeds, loops on the device, accumulation, precision: the same training each time."""

import threading
import time
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import Mesh

import plp_optax
from benchmarks.ahead_of_time import map_over_mesh
from tests.support import programs
from tests.support.programs import DATASET, Linear, Normalised, train_epoch
from training import data, recipe
from training.engine import feed, parallel
from training.engine.engine import means
from training.engine.feed import Host, Resident, prefetch
from training.engine.state import make_initial_state
from training.engine.step import Preprocess, make_train_step
from training.errors import ConfigError
from training.settings.config import resolve


def trained(epochs=3, **options):
    """The means of each epoch and the last state, in float64."""
    with jax.enable_x64(True):
        tx = optax.chain(programs.momentum(), plp_optax.plp())
        engine = programs.make(tx=tx, dtype=jnp.float64, augment=True, **options)
        state, history = engine.initial_state(0), []
        for epoch in range(epochs):
            state = train_epoch(engine, state, epoch)
            history.append(means(state.monitor.epoch))
        return history, jax.device_get(state)


@pytest.mark.parametrize(
    ("fields", "cores", "environment", "expected"),
    [
        ({}, 8, {}, 4),
        ({"batch_size": 96, "batch_parts": 3}, 2, {}, 2),
        ({}, 1, {}, None),
        ({"batch_size": 16}, 2, {}, None),
        ({"distributed": True}, 2, {}, None),
        ({}, 2, {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, None),
    ],
)
def test_a_cpu_with_several_cores_is_several_devices(
    fields, cores, environment, expected, monkeypatch
):
    calls = []
    config = resolve({"model": "tiny", **fields})
    unset = SimpleNamespace(
        jax_num_cpu_devices=-1, update=lambda *given: calls.append(given)
    )
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parallel.split_cpu(config)  # the tests' four devices stay
    assert jax.local_device_count() == 4
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "jax", SimpleNamespace(config=unset))
        parallel.split_cpu(config)
    assert calls == ([("jax_num_cpu_devices", expected)] if expected else [])


@pytest.fixture(scope="module")
def reference():
    """Three epochs of four steps, one step a call."""
    return trained()


@pytest.fixture(scope="module")
def single():
    """A program in float32."""
    return programs.make()


@pytest.mark.parametrize(
    "options",
    [{"steps_per_call": 3}, {"host": True}],  # the last call of an epoch is shorter
    ids=["3 steps a call", "host"],
)
def test_loops_and_feeds_agree_in_float64(reference, options):
    history, state = trained(**options)
    for here, there in zip(history, reference[0], strict=True):
        assert here == pytest.approx(there, abs=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9),
        state,
        reference[1],
    )


def test_shard_map_is_pmap(reference, monkeypatch):
    """The mapping for devices that are not attached gives the same training."""
    mesh = Mesh(np.array(jax.devices()), (parallel.AXIS,))

    def map_instead(step, *, in_axes, donate_argnums, **_):
        mapped = map_over_mesh(step, len(in_axes), mesh)
        return jax.jit(mapped, donate_argnums=donate_argnums)

    monkeypatch.setattr(jax, "pmap", map_instead)
    jax.tree.map(np.testing.assert_array_equal, trained(), reference)


def test_float64_state_has_no_other_floats(reference):
    dtypes = {x.dtype.name for x in jax.tree.leaves(reference[1])}
    assert {name for name in dtypes if "float" in name} == {"float64"}


def test_an_epoch_in_parts_is_the_epoch(single):
    """Stopped between any two steps, and resumed with what a checkpoint holds."""
    expected = jax.device_get(train_epoch(single, single.initial_state(0)))
    for split in (1, 3):
        state = single.initial_state(0)
        for call in single.train_steps(state, 0, 0, stop=split):
            state = call.state
        state = parallel.replicate(jax.tree.map(np.array, jax.device_get(state)))
        for call in single.train_steps(state, 0, 0, start=split):
            state = call.state
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)


def test_calls_report_their_steps_and_earlier_metrics(single):
    """Metrics are those of two calls before, so that nothing waits."""
    state, calls, after = single.initial_state(0), [], []
    for call in single.train_steps(state, 0, 0):
        calls.append(call)
        after.append(means(jax.device_get(call.state.monitor.epoch)))
    assert [call.steps for call in calls] == [1, 1, 1, 1]
    assert [call.metrics for call in calls] == [None, None, *after[:2]]


# -- Accumulation and precision --------------------------------------------------------


def make_step(dtype, module=None, batch=64, augment=False, **options):
    """An initial state, and a compiled step that takes it, on a batch of everything."""
    tx = programs.momentum()
    module = module or Linear()
    state = make_initial_state(module, tx, (8, 8, 1), dtype)(jax.random.key(0))
    preprocess = Preprocess(DATASET, dtype, augment)
    source = Resident(DATASET.train, batch, 1)
    step = source.wrap(make_train_step(module, tx, preprocess, **options))
    arguments = next(source.calls(0, 0, range(1))).arguments
    compiled = parallel.compile_step(step, state, *arguments).result()
    return state, lambda state: jax.device_get(compiled(state, *arguments)[0])


@pytest.fixture(scope="module")
def large_batch():
    with jax.enable_x64(True):
        state, step = make_step(jnp.float64, augment=True)
        return step(state)


@pytest.mark.parametrize(
    ("parts", "unroll"),
    [(2, True), (16, False)],
    ids=["2 parts, unrolled", "16 parts, loop on the device"],
)
def test_accumulation_is_the_large_batch(large_batch, parts, unroll):
    """Without batch statistics: loss, norms, parameters and momentum."""
    with jax.enable_x64(True):
        state, step = make_step(jnp.float64, augment=True, parts=parts, unroll=unroll)
        split = step(state)
    assert split.monitor.last.loss > 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        large_batch,
        split,
    )


def test_a_step_of_several_batches_is_a_larger_batch_in_parts(monkeypatch):
    seen = {}
    for part in ("Engine", "make_train_step"):
        monkeypatch.setattr(recipe, part, lambda *_, **options: seen.update(options))
    fields = {"batch_size": 8, "batch_parts": 2, "batches_per_step": 3}
    recipe.assemble(resolve(fields), DATASET)
    assert (seen["batch_size"], seen["parts"]) == (24, 6)
    assert recipe.count_steps(resolve(fields), DATASET).steps_per_epoch == 64 // 24


def test_smoothed_targets_are_mixed_with_even_ones():
    """Cross-entropy with (1 - s) * one_hot + s / classes, as in PyTorch."""
    with jax.enable_x64(True):
        state, step = make_step(jnp.float64, label_smoothing=0.1)
        after = step(state)
        images = (DATASET.train.images.astype(float) / 255 - 0.5) / np.float32(0.3)
        logits = Linear().apply(jax.device_get(state.variables), images, train=True)
        log_p = np.asarray(jax.nn.log_softmax(logits))
    target = 0.9 * np.eye(programs.CLASSES)[DATASET.train.labels] + 0.01
    expected = -np.mean(np.sum(target * log_p, axis=1))
    np.testing.assert_allclose(after.monitor.last.loss, expected, rtol=1e-12)


def statistics_by_hand(params, count):
    """Mean and variance of ``Normalised``'s norm over the first batches of an order."""
    order = np.random.default_rng(0).permutation(64)[: 16 * count]
    pixels = DATASET.train.images[order].astype(np.float64) / 255
    x = ((pixels - 0.5) / np.float32(0.3)).reshape(count, 16, -1)
    hidden = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    mean = hidden.mean((0, 1))
    squares = (hidden.var(1) + hidden.mean(1) ** 2).mean(0)
    return {"mean": mean, "var": squares - mean**2}


def test_statistics_are_those_of_the_parameters():
    """Of the last ones and of the average."""
    count = 3
    with jax.enable_x64(True):
        tx = optax.chain(programs.momentum(), plp_optax.tail_average())
        engine = programs.make(tx=tx, dtype=jnp.float64, precise_bn=count)
        state = train_epoch(engine, engine.initial_state(0))
        for variables in (state.variables, state.averaged(state.opt_state)):
            found = jax.device_get(engine.with_statistics(variables))
            expected = statistics_by_hand(found["params"], count)
            for name, value in expected.items():
                actual = found["batch_stats"]["norm"][name]
                np.testing.assert_allclose(actual, value, rtol=1e-9)
            before = jax.device_get(variables)
            jax.tree.map(
                np.testing.assert_array_equal, found["params"], before["params"]
            )
            stale = before["batch_stats"]["norm"]["mean"]
            assert abs(stale - expected["mean"]).max() > 1e-3


def test_without_normalisation_there_are_no_statistics_to_compute():
    engine = programs.make(Linear(), precise_bn=3)
    variables = engine.initial_state(0).variables
    assert engine.statistics_batches == 0
    assert engine.with_statistics(variables) is variables


def test_pinned_batches_are_the_same_batches():
    """A CPU has pinned memory too."""
    plain, pinned = (
        next(Host(DATASET.train, 16, pin=pin).calls(0, 0, range(1))).arguments
        for pin in (False, True)
    )
    jax.tree.map(np.testing.assert_array_equal, plain, pinned)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(pinned)}
    assert kinds == {x.sharding.memory_kind for x in jax.tree.leaves(plain)}


def test_parts_of_a_batch_have_their_own_batch_statistics():
    """Part i of all devices together, one part after the other."""
    with jax.enable_x64(True):
        state, step = make_step(jnp.float64, Normalised(), parts=2)
        after = step(state)
        order = feed._order(jax.random.key(0), 0, 64)
        # Device, part, example.
        indices = np.asarray(order).reshape(4, 2, 8)
        pixels = DATASET.train.images.astype(np.float64) / 255
        images = jnp.asarray((pixels - 0.5) / np.float32(0.3))
        variables, losses = jax.device_get(state.variables), []
        for part in (0, 1):
            own = indices[:, part].ravel()
            logits, stats = Normalised(axis_name=None).apply(
                variables, images[own], train=True, mutable=["batch_stats"]
            )
            variables |= stats
            own_logits = jax.nn.log_softmax(logits)
            labels = DATASET.train.labels[own]
            losses.append(-np.mean(np.asarray(own_logits)[range(32), labels]))
    assert abs(losses[0] - losses[1]) > 1e-3
    np.testing.assert_allclose(after.monitor.last.loss, np.mean(losses), rtol=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
        after.batch_stats,
        variables["batch_stats"],
    )


class Dropping(nn.Module):
    """Adds which units the first image keeps, twice, to its batch statistics."""

    @nn.compact
    def __call__(self, x, train):
        kept = nn.Dropout(0.5, deterministic=not train)(jnp.ones((x.shape[0], 64)))
        sums = self.variable("batch_stats", "sums", jnp.zeros, 64)
        sums.value += kept[0]
        return nn.Dense(10)(kept)


def test_every_device_and_every_part_drops_other_units():
    """Two parts on four devices: eight draws, so means of 0, 0.5, ..., 4."""
    state, step = make_step(jnp.float32, Dropping(), parts=2)
    state = state._replace(batch_stats=jax.tree.map(jnp.zeros_like, state.batch_stats))
    means = step(state).batch_stats["sums"]
    # Equal devices would give 0, 2 and 4; equal parts whole numbers.
    assert set(np.unique(means)) <= {i / 2 for i in range(9)}
    assert len(np.unique(means)) > 5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_computes_low_and_keeps_high(single, dtype):
    state, step = make_step(dtype, Normalised(), batch=16)
    kept = {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats))}
    assert kept == {jnp.dtype("float32")}
    assert isinstance(state.loss_scale, DynamicScale) == (dtype == jnp.float16)
    low = step(state).monitor.last
    assert low.taken == 1
    for call in single.train_steps(single.initial_state(0), 0, 0, stop=1):
        high = jax.device_get(call.state.monitor.last)
    assert low.loss == pytest.approx(high.loss, rel=0.02)
    assert low.loss != high.loss


@pytest.fixture(scope="module")
def half():
    """A step in float16, of a network without batch statistics."""
    return make_step(jnp.float16, most_skipped=25)


def test_float16_scales_its_loss(half):
    """Gradients are unscaled again: close to those in float64, by hand."""
    state, step = half
    after = step(state)
    assert after.loss_scale.scale == 2**16
    params = jax.device_get(state.params)["Dense_0"]
    pixels = DATASET.train.images.reshape(64, -1) / 255
    pixels = (pixels - DATASET.mean) / DATASET.std
    logits = pixels @ params["kernel"] + params["bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    errors = odds / odds.sum(1, keepdims=True) - np.eye(10)[DATASET.train.labels]
    gradients = pixels.T @ errors / 64, errors.mean(0)
    norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
    assert after.monitor.last.gradient_norm == pytest.approx(norm, rel=0.01)


def test_an_overflow_of_float16_skips_the_step_and_halves_the_scale(half):
    before, step = half
    large = before.loss_scale.replace(scale=jnp.full((), 2.0**40))
    before = before._replace(loss_scale=parallel.replicate(large))
    after = step(before)
    assert after.monitor.epoch.skipped == 1
    assert after.monitor.skipped_in_a_row == 1
    assert after.loss_scale.scale == 2.0**39
    assert after.step == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        after._replace(loss_scale=None, monitor=None),
        jax.device_get(before._replace(loss_scale=None, monitor=None)),
    )
    fits = after.loss_scale.replace(scale=np.float32(2.0**10))
    after = step(parallel.replicate(after._replace(loss_scale=fits)))
    assert after.step == 1
    assert after.monitor.skipped_in_a_row == 0


# -- Feeds -----------------------------------------------------------------------------

NUMBERED = data.Examples(DATASET.train.images, np.arange(64, dtype=np.int32))


def order(kind, seed, epoch, start=0):
    """The numbers of the examples in the order that a feed visits them."""
    if kind == "resident":
        source = Resident(NUMBERED, 16, 1)
        (_, order), _ = next(source.calls(seed, epoch, range(4))).arguments
        return np.asarray(order)[16 * start :]
    calls = Host(NUMBERED, 16).calls(seed, epoch, range(start, 4))
    return np.concatenate([np.asarray(c.arguments[0].labels).ravel() for c in calls])


@pytest.mark.parametrize("kind", ["resident", "host"])
def test_epochs_visit_every_example_once_each_in_another_order(kind):
    orders = [order(kind, 0, 0), order(kind, 0, 1), order(kind, 1, 0)]
    for visited in orders:
        assert sorted(visited) == list(range(64))
    for other in orders[1:]:
        assert not np.array_equal(orders[0], other)
    np.testing.assert_array_equal(orders[0], order(kind, 0, 0))


def test_both_feeds_visit_in_the_same_order():
    np.testing.assert_array_equal(order("host", 3, 5), order("resident", 3, 5))
    np.testing.assert_array_equal(order("host", 3, 5, 2), order("resident", 3, 5, 2))


def test_prefetch_keeps_the_order_and_ends_its_thread():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i
        raise OSError("disk")

    before = threading.active_count()
    ahead = prefetch(items(), 2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one taken, two waiting, one in hand
    assert [next(ahead) for _ in range(9)] == list(range(1, 10))
    with pytest.raises(OSError, match="disk"):
        next(ahead)
    left = prefetch(items(), 2)
    next(left)
    left.close()
    assert threading.active_count() == before


def test_nothing_compiles_after_the_first_epoch_of_the_first_seed(single):
    state = train_epoch(single, single.initial_state(0))
    single.evaluate(state.variables, DATASET.validation)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 1)(0)
        assert compiled, "the listener hears nothing"
        compiled.clear()
        state = train_epoch(single, state, 1)
        single.evaluate(state.variables, DATASET.test)
        state = train_epoch(single, single.initial_state(7), seed=7)
        single.evaluate(jax.device_get(state.variables), DATASET.test)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def test_images_that_do_not_fit_are_refused_with_the_remedy():
    class Huge(Host):
        def calls(self, seed, epoch, steps):
            jnp.zeros(2**50, jnp.uint8)

    config = resolve({"model": "tiny", "width": 2, "batch_size": 16})
    source = Huge(DATASET.train, config.batch_size)
    with pytest.raises(ConfigError, match=r"enough memory .* --input host"):
        recipe.build(config, DATASET, source)
