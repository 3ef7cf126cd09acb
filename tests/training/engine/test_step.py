"""One step on one and on several devices, against the same thing done plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

import models
import plp_optax
from tests.support import problems, programs
from tests.support.programs import DATASET, Normalised, train_epoch
from training.data.pixels import normalize
from training.engine import parallel
from training.engine.engine import means
from training.engine.evaluation import Evaluation, macro_f1
from training.engine.step import measure
from training.errors import ConfigError
from training.recipe import count_steps
from training.settings.config import resolve


@pytest.fixture(scope="module")
def engine():
    """With prediction and augmentation, in float32."""
    tx = optax.chain(programs.momentum(), plp_optax.plp())
    return programs.make(tx=tx, augment=True)


def test_step_on_four_devices_is_the_step_on_the_whole_batch():
    """Losses, norms, parameters and statistics, in float64, without pmap."""
    assert jax.local_device_count() == 4
    with jax.enable_x64(True):
        tx = optax.chain(programs.momentum(), plp_optax.plp())
        create = {"num_classes": 10, "width": 2, "dtype": jnp.float64}
        split = models.create("tiny", axis_name=parallel.AXIS, **create)
        engine = programs.make(split, tx, batch_size=64, dtype=jnp.float64)
        training = engine.initial_state(0)
        variables = jax.tree.map(jnp.asarray, jax.device_get(training.variables))
        tx = problems.jitted(tx)
        module = models.create("tiny", **create)
        pixels = DATASET.train.images.astype(np.float64) / 255
        images = jnp.asarray((pixels - 0.5) / np.float32(0.3))

        def loss_fn(params, batch_stats):
            logits, mutated = module.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            labels = jax.nn.one_hot(DATASET.train.labels, 10, dtype=jnp.float64)
            loss = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))
            return loss, (logits, mutated["batch_stats"])

        params, batch_stats = variables["params"], variables["batch_stats"]
        state = tx.init(params)
        value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        for epoch in range(5):  # PLP jumps with the fourth step
            (loss, (logits, batch_stats)), gradient = value_and_grad(
                params, batch_stats
            )
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            training = train_epoch(engine, training, epoch)
            expected = {
                "loss": loss,
                "accuracy": np.mean(logits.argmax(-1) == DATASET.train.labels),
                "gradient_norm": optax.tree.norm(gradient),
                "update_norm": optax.tree.norm(updates),
            }
            actual = means(training.monitor.epoch)
            assert set(actual) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(actual[name], value, rtol=1e-9)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            {"params": params, "batch_stats": batch_stats},
            jax.device_get(training.variables),
        )


def test_replicas_stay_the_same(engine):
    state = engine.initial_state(0)
    for epoch in range(2):
        state = train_epoch(engine, state, epoch)
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 4
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0])


def test_what_depends_on_seed_and_step(engine):
    """Parameters, order and augmentation; the last also on the step."""

    def loss(parameters=0, key=0, order=0, step=0):
        state = engine.initial_state(parameters)._replace(
            key=engine.initial_state(key).key,
            step=parallel.replicate(np.int32(step)),
        )
        for call in engine.train_steps(state, order, 0, stop=1):
            state = call.state
        return float(state.monitor.last.loss)

    others = [loss(2**32 - 1), loss(key=1), loss(order=1), loss(step=1)]
    assert loss() == loss()
    assert len({loss(), *others}) == 5


def test_evaluation_pads_and_masks(engine):
    """22 examples in batches of 16: the same sums as without batches."""
    variables = jax.device_get(engine.initial_state(0).variables)
    logits = Normalised(axis_name=None).apply(
        variables,
        normalize(jnp.asarray(DATASET.test.images), DATASET.mean, DATASET.std),
        train=False,
    )
    labels = DATASET.test.labels
    order = np.argsort(-np.asarray(logits), axis=-1, kind="stable")
    expected = {
        "loss": -np.mean(np.asarray(jax.nn.log_softmax(logits))[range(22), labels]),
        "accuracy": np.mean(order[:, 0] == labels),
        "top1_error": np.mean(order[:, 0] != labels),
        "top5_error": np.mean(
            [y not in row[:5] for y, row in zip(labels, order, strict=True)]
        ),
    }
    batches = []
    actual = engine.evaluate(variables, DATASET.test, lambda: batches.append(1))
    expected["macro_f1"] = f1_score(labels, order[:, 0], average="macro")
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(actual, name), value, rtol=1e-5)
    np.testing.assert_array_equal(
        actual.confusion[:, :-1],
        confusion_matrix(labels, order[:, 0], labels=range(programs.CLASSES)),
    )
    assert len(batches) == 2
    nothing = engine.evaluate(variables, DATASET.test.take(np.arange(0)))
    assert all(np.isnan(x) for x in nothing.metrics("test").values())
    assert not nothing.confusion.any()


def test_losses_of_batches_add_up_in_float64(engine, monkeypatch):
    """A small loss after a large one is not lost, as it would be in float32."""
    losses = iter([2.0**25, 1.0])

    def eval_step(variables, batch):
        zero = np.int32(0)
        return {
            **{"loss": np.float32(next(losses)), "top1": zero, "top5": zero},
            **{"count": np.int32(batch.mask.sum())},
            "confusion": np.zeros((programs.CLASSES, programs.CLASSES + 1), np.int32),
        }

    monkeypatch.setattr(engine, "_eval_step", eval_step)
    evaluation = engine.evaluate(engine.initial_state(0).variables, DATASET.test)
    assert evaluation.loss == (2**25 + 1) / 22


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_macro_f1_is_scikit_learns(classes, count, seed):
    """Also where classes occur in neither labels nor predictions."""
    labels, predictions = np.random.default_rng(seed).integers(classes, size=(2, count))
    expected = f1_score(labels, predictions, average="macro")
    confusion = np.zeros((12, 12), int)
    np.add.at(confusion, (labels, predictions), 1)
    assert macro_f1(confusion) == pytest.approx(expected, rel=1e-12)


def test_a_label_is_not_above_itself_however_its_logit_is_rounded(monkeypatch):
    take = jnp.take_along_axis
    monkeypatch.setattr(jnp, "take_along_axis", lambda *a, **k: take(*a, **k) - 1e-3)
    logits = jnp.arange(8.0)[None]
    found = measure(logits, jnp.array([3]), jnp.array([True]))  # four are above it
    assert found["top5"] == 1


def test_accuracy_rank_and_confusion_are_one_definition():
    """The twin: a stable sort of each row; an example with a NaN has no prediction."""
    numbers = np.random.default_rng(0)
    logits = numbers.integers(0, 3, (300, 6)).astype(np.float32)  # many ties
    logits[numbers.random(logits.shape) < 0.05] = np.nan
    logits[:3] = np.nan
    labels = numbers.integers(0, 6, 300)
    mask = numbers.random(300) < 0.9
    top1 = top5 = 0
    confusion = np.zeros((6, 7), int)
    for row, label in zip(logits[mask], labels[mask], strict=True):
        order = list(np.argsort(-row, kind="stable"))
        if np.isnan(row).any():
            confusion[label, 6] += 1
            continue
        confusion[label, order[0]] += 1
        top1 += order.index(label) < 1
        top5 += order.index(label) < 5
    found = measure(*map(jnp.asarray, (logits, labels, mask)))
    assert (found["top1"], found["top5"], found["count"]) == (top1, top5, mask.sum())
    np.testing.assert_array_equal(found["confusion"], confusion)
    assert Evaluation.of(jax.device_get(found)).accuracy == (
        np.trace(confusion) / confusion.sum()
    )


def test_steps_are_counted_in_whole_batches():
    config = resolve({"batch_size": 20, "epochs": 3})
    plan = count_steps(config, DATASET)
    assert (plan.steps_per_epoch, plan.total_steps, plan.last_step) == (3, 9, 9)
    config = resolve({"batch_size": 20, "epochs": 3, "max_steps": 5})
    plan = count_steps(config, DATASET)
    assert (plan.steps_per_epoch, plan.total_steps, plan.last_step) == (3, 9, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 18}, "--batch-size 18 .* over 4 devices: choose 16 or 20"),
        ({"batch_size": 3}, "choose 4"),
        ({"batch_size": 12, "batch_parts": 2}, "--batch-parts 2: choose 8 or 16"),
        (
            {"batch_size": 16, "batches_per_step": 5},
            "--batch-size 16 times --batches-per-step 5 is more than the 64",
        ),
        ({"batch_size": 128}, "more than the 64 training examples of made"),
        ({"batch_size": 4, "epochs": 2**27}, r"fewer than 2\*\*31"),
    ],
)
def test_batches_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        count_steps(resolve(fields), DATASET)
