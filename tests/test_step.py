"""One step on one and on several devices, against the same thing done plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from tests import problems
from training import data, parallel
from training.config import resolve
from training.errors import ConfigError
from training.loop import Loop, count_steps
from training.networks import DTYPES, make_network
from training.optimizers import make_optimizer
from training.progress import Progress
from training.step import _rank

RNG = np.random.default_rng(0)


def tiny_dataset(train=64, test=22, classes=10):
    def examples(n):
        images = RNG.integers(0, 256, (n, 8, 8, 1), np.uint8)
        return data.Examples(images, (np.arange(n) % classes).astype(np.int32))

    return data.Dataset(
        name="made",
        num_classes=classes,
        train=examples(train),
        validation=examples(test),
        test=examples(test),
        mean=np.array([0.5], np.float32),
        std=np.array([0.3], np.float32),
        crop_padding=1,
        flips=False,
        label_names=tuple(map(str, range(classes))),
    )


def make_loop(dataset, **fields):
    config = resolve({"model": "tiny", "width": 8, "batch_size": 16, **fields})
    schedule = optax.constant_schedule(config.learning_rate or 0.05)
    tx = make_optimizer(config, schedule, steps_per_epoch=4)
    module = make_network(config, dataset.num_classes, axis_name=parallel.AXIS)
    loop = Loop(config, dataset, module, tx, DTYPES[config.precision])
    loop.start(config.seed)
    loop.compile()
    return loop


def test_step_on_four_devices_is_the_step_on_the_whole_batch():
    """Losses, norms, parameters and statistics, in float64, without pmap."""
    assert jax.local_device_count() == 4
    with jax.enable_x64(True):
        dataset = tiny_dataset()
        loop = make_loop(dataset, precision="float64", batch_size=64, weight_decay=0.01)
        variables = jax.tree.map(jnp.asarray, jax.device_get(loop.state.variables))
        tx = problems.jitted(
            optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.9))
        )
        module = models.create("tiny", 10, width=8, dtype=jnp.float64)
        pixels = dataset.train.images.astype(np.float64) / 255
        images = jnp.asarray((pixels - 0.5) / np.float32(0.3))

        def loss_fn(params, batch_stats):
            logits, mutated = module.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            labels = jax.nn.one_hot(dataset.train.labels, 10, dtype=jnp.float64)
            loss = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))
            return loss, (logits, mutated["batch_stats"])

        params, batch_stats = variables["params"], variables["batch_stats"]
        state = tx.init(params)
        value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        for epoch in range(2):  # PLP's jump comes with the third step
            (loss, (logits, batch_stats)), gradient = value_and_grad(
                params, batch_stats
            )
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            metrics = loop.train_epoch(Progress(epoch=epoch))
            expected = {
                "loss": loss,
                "accuracy": np.mean(logits.argmax(-1) == dataset.train.labels),
                "gradient_norm": optax.tree.norm(gradient),
                "update_norm": optax.tree.norm(updates),
            }
            np.testing.assert_allclose(
                loop.parameter_norm(), optax.tree.norm(params), rtol=1e-12
            )
            for name, value in expected.items():
                np.testing.assert_allclose(metrics[name], value, rtol=1e-9)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            {"params": params, "batch_stats": batch_stats},
            jax.device_get(loop.state.variables),
        )


def test_replicas_stay_the_same():
    loop = make_loop(tiny_dataset(), augment=True)
    for epoch in range(2):
        loop.train_epoch(Progress(epoch=epoch))
    for leaf in jax.tree.leaves(loop.state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def test_evaluation_pads_and_masks():
    """22 examples in batches of 16: the same sums as without batches."""
    dataset = tiny_dataset()
    loop = make_loop(dataset)
    variables = jax.device_get(loop.state.variables)
    module = models.create("tiny", 10, width=8)
    logits = module.apply(
        variables,
        data.normalize(jnp.asarray(dataset.test.images), dataset.mean, dataset.std),
        train=False,
    )
    labels = dataset.test.labels
    order = np.argsort(-np.asarray(logits), axis=-1, kind="stable")
    expected = {
        "loss": -np.mean(np.asarray(jax.nn.log_softmax(logits))[range(22), labels]),
        "accuracy": np.mean(order[:, 0] == labels),
        "top1_error": np.mean(order[:, 0] != labels),
        "top5_error": np.mean(
            [y not in row[:5] for y, row in zip(labels, order, strict=True)]
        ),
    }
    actual = loop.evaluate(variables, dataset.test)
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5)


def test_evaluation_of_nothing_is_nan():
    loop = make_loop(tiny_dataset())
    empty = data.Examples(np.zeros((0, 8, 8, 1), np.uint8), np.zeros(0, np.int32))
    assert all(np.isnan(x) for x in loop.evaluate(loop.state.variables, empty).values())


def test_rank_of_ties_and_nan():
    logits = jnp.array(
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [jnp.nan] * 3, [0.0, 2.0, 1.0]]
    )
    assert _rank(logits, jnp.array([0, 1, 0, 0])).tolist() == [0, 1, 3, 2]


def test_steps_are_counted_in_whole_batches():
    dataset = tiny_dataset(train=70)
    config = resolve({"batch_size": 16, "epochs": 3})
    assert count_steps(config, dataset) == (4, 12)
    config = resolve({"batch_size": 16, "epochs": 3, "max_steps": 5})
    assert count_steps(config, dataset) == (4, 5)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (18, "--batch-size 18 .* over 4 devices: take 16 or 20"),
        (3, "take 4"),
        (128, "more than the 64 training examples"),
    ],
)
def test_batches_that_do_not_fit_are_refused(size, message):
    with pytest.raises(ConfigError, match=message):
        count_steps(resolve({"batch_size": size}), tiny_dataset())


def test_float64_state_is_float64_through_and_through():
    with jax.enable_x64(True):
        loop = make_loop(tiny_dataset(), precision="float64")
        loop.train_epoch(Progress())
        floats = [
            x.dtype
            for x in jax.tree.leaves(loop.state)
            if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        assert set(floats) == {jnp.dtype("float64")}
