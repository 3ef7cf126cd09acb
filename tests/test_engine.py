"""Feeds, loops on the device, accumulation, precision: the same training each time."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.dynamic_scale import DynamicScale

from tests.test_step import make_loop, tiny_dataset
from training import data, feed, parallel
from training.feed import Host, Resident, prefetch
from training.progress import Progress
from training.step import Preprocess, make_initial_state, make_train_step

DATASET = tiny_dataset()


def trained(epochs=3, **fields):
    """Metrics of each epoch and the last state of a run in float64."""
    with jax.enable_x64(True):
        loop = make_loop(DATASET, precision="float64", augment=True, **fields)
        metrics = [loop.train_epoch(Progress(epoch=epoch)) for epoch in range(epochs)]
        for m in metrics:
            del m["images_per_second"]
        return metrics, jax.device_get(loop.state)


@pytest.fixture(scope="module")
def reference():
    return trained()


@pytest.mark.parametrize(
    "fields",
    [
        {"steps_per_call": 4},
        {"steps_per_call": 3},  # the last call of an epoch is shorter
        {"input": "host"},
    ],
    ids=["epoch in a call", "3 steps a call", "host"],
)
def test_loops_and_feeds_agree_in_float64(reference, fields):
    metrics, state = trained(**fields)
    for here, there in zip(metrics, reference[0], strict=True):
        assert here == pytest.approx(there, abs=1e-9)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9),
        state,
        reference[1],
    )


def test_steps_a_call_are_told():
    loop = make_loop(DATASET, steps_per_call=3)
    seen = []
    loop.train_epoch(Progress(), lambda metrics, steps: seen.append(steps))
    assert seen == [3, 1]


class NoNorm(nn.Module):
    """A network without batch statistics."""

    @nn.compact
    def __call__(self, x, train):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = nn.relu(nn.Conv(4, (3, 3), dtype=x.dtype, param_dtype=wide)(x))
        x = nn.Dense(10, dtype=x.dtype, param_dtype=wide)(x.mean((1, 2)))
        return x.astype(wide)


def one_step(dtype, module=None, batch=64, state=None, **options):
    """State and metrics of one step on a batch of everything."""
    tx = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    module = module or NoNorm()
    initial = make_initial_state(module, tx, (8, 8, 1), dtype)
    state = parallel.replicate(state or initial(jax.random.key(0)))
    preprocess = Preprocess(DATASET.mean, DATASET.std, dtype, 1, False)
    step = Resident(DATASET.train, batch, 1).wrap(
        make_train_step(module, tx, preprocess, **options)
    )
    arguments = next(Resident(DATASET.train, batch, 1).calls(0, 0, range(1))).arguments
    state, metrics = parallel.compile_step(step, state, *arguments)(state, *arguments)
    return jax.device_get((state, metrics))


@pytest.mark.parametrize("unroll", [True, False], ids=["unrolled", "loop"])
@pytest.mark.parametrize("parts", [2, 16])
def test_accumulation_is_the_large_batch_without_batch_statistics(parts, unroll):
    with jax.enable_x64(True):
        whole = one_step(jnp.float64, augment=True)
        split = one_step(jnp.float64, augment=True, accumulate=parts, unroll=unroll)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            whole,
            split,
        )


def test_parts_of_a_batch_have_batch_statistics_of_their_own():
    """Which is why accumulation differs from the large batch with them."""
    whole, _ = trained(epochs=1)
    split, state = trained(epochs=1, accumulate=2)
    assert split[0]["loss"] != pytest.approx(whole[0]["loss"], abs=1e-6)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_computes_low_and_keeps_high(precision):
    low = make_loop(DATASET, precision=precision)
    high = make_loop(DATASET, precision="float32")
    kept = {x.dtype for x in jax.tree.leaves((low.state.params, low.state.batch_stats))}
    assert kept == {jnp.dtype("float32")}
    low_metrics, high_metrics = (loop.train_epoch(Progress()) for loop in (low, high))
    assert low_metrics["loss"] == pytest.approx(high_metrics["loss"], rel=0.02)
    assert low_metrics["loss"] != high_metrics["loss"]
    assert low_metrics["skipped"] == 0
    assert isinstance(low.state.loss_scale, DynamicScale) == (precision == "float16")


def test_float16_scales_its_loss():
    """Gradients come out unscaled: close to those of float32."""
    _, low = one_step(jnp.float16)
    _, high = one_step(jnp.float32)
    assert low["gradient_norm"] == pytest.approx(high["gradient_norm"], rel=0.01)


def test_an_overflow_of_float16_skips_the_step_and_halves_the_scale():
    tx = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    before = make_initial_state(NoNorm(), tx, (8, 8, 1), jnp.float16)(jax.random.key(0))
    scale = before.loss_scale.replace(scale=jnp.full((), 2.0**40))
    before = before._replace(loss_scale=scale)
    state, metrics = one_step(jnp.float16, state=before)
    assert metrics["skipped"] == 1
    assert state.loss_scale.scale == 2.0**39
    assert state.step == 0
    jax.tree.map(
        np.testing.assert_array_equal,
        state._replace(loss_scale=None, health=None),
        jax.device_get(before._replace(loss_scale=None, health=None)),
    )
    assert state.health.skipped_in_a_row == 1
    state, metrics = one_step(jnp.float16)
    assert metrics["skipped"] == 0
    assert state.step == 1


@pytest.mark.parametrize("kind", ["resident", "host"])
def test_epochs_visit_every_example_once_in_an_order_of_their_own(kind):
    examples = data.Examples(DATASET.train.images, np.arange(64, dtype=np.int32))

    def order(seed, epoch):
        if kind == "resident":
            (_, order), _ = next(
                Resident(examples, 16, 1).calls(seed, epoch, range(4))
            ).arguments
            return np.asarray(order)
        calls = Host(examples, 16).calls(seed, epoch, range(4))
        return np.concatenate(
            [np.asarray(c.arguments[0].labels).ravel() for c in calls]
        )

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    for visited in orders:
        assert sorted(visited) == list(range(64))
    for other in orders[1:]:
        assert not np.array_equal(orders[0], other)
    np.testing.assert_array_equal(orders[0], order(0, 0))


def test_both_feeds_visit_in_the_same_order():
    examples = data.Examples(DATASET.train.images, np.arange(64, dtype=np.int32))
    (_, resident), _ = next(Resident(examples, 16, 1).calls(3, 5, range(4))).arguments
    host = Host(examples, 16).calls(3, 5, range(4))
    labels = np.concatenate([np.asarray(c.arguments[0].labels).ravel() for c in host])
    np.testing.assert_array_equal(labels, resident)


def test_prefetch_keeps_the_order_and_runs_ahead_only_so_far():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    ahead = prefetch(items(), 2)
    assert next(ahead) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one taken, two waiting, one in hand
    assert list(ahead) == list(range(1, 10))


def test_prefetch_raises_what_goes_wrong_in_its_thread():
    def items():
        yield 1
        raise OSError("disk")

    ahead = prefetch(items(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk"):
        next(ahead)


def test_prefetch_ends_its_thread_when_it_is_left_early():
    before = feed.threading.active_count()
    ahead = prefetch(iter(range(100)), 2)
    next(ahead)
    ahead.close()
    assert feed.threading.active_count() == before


def test_nothing_compiles_after_the_first_epoch_of_the_first_seed():
    loop = make_loop(DATASET, model="tiny")
    loop.train_epoch(Progress())
    loop.parameter_norm()
    loop.evaluate(loop.state.variables, DATASET.validation)
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 1)(0)
        assert compiled, "the listener hears nothing"
        compiled.clear()
        loop.train_epoch(Progress(epoch=1))
        loop.evaluate(loop.state.variables, DATASET.test)
        loop.start(7)
        loop.train_epoch(Progress())
        loop.parameter_norm()
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled
