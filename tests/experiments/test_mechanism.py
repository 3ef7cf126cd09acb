"""The mechanism's arms and measurements, and the network without norms."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import models
from experiments.curvature import top_eigenvalue
from experiments.studies import mechanism
from experiments.studies.mechanism import STUDY
from experiments.training_loss import TrainingLoss
from training import data, recipe
from training.data.pixels import normalize
from training.engine import networks
from training.run.callbacks import Callback
from training.settings.config import resolve

# -- the network -----------------------------------------------------------------------


def test_plain_is_two_convolutions_with_tanh():
    network = models.create("plain", num_classes=3, width=2)
    images = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)
    variables = network.init(jax.random.key(0), images, train=False)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])

    def convolve(x, layer, stride):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = (range(0, side, stride) for side in x.shape[1:3])
        patches = [[padded[:, i : i + 3, j : j + 3] for j in columns] for i in rows]
        taps = np.einsum("ijnhwc,hwco->nijo", np.array(patches), layer["kernel"])
        return taps + layer["bias"]

    x = np.tanh(convolve(images, params["conv1"], 1))
    x = np.tanh(convolve(x, params["conv2"], 2))
    assert x.shape == (2, 3, 3, 4)
    head = params["head"]
    expected = x.mean(axis=(1, 2)) @ head["kernel"] + head["bias"]
    for is_training in (False, True):
        logits = network.apply(variables, images, train=is_training)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


# -- the arms --------------------------------------------------------------------------

SMALL_PART = {"validation_fraction": 0.1, "train_fraction": 0.025}


def configure(fields, model, arm):
    return resolve(STUDY.configure(fields, model, arm))


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "cifar100"])
@pytest.mark.parametrize("part", [{}, {"train_fraction": 1.0}, SMALL_PART], ids=str)
def test_plain_trains_on_its_complete_training_part(dataset, part):
    config = configure({"dataset": dataset, **part}, "plain", STUDY.arms[0])
    if dataset == "digits":
        part = data.load(
            "digits",
            data_dir=None,
            validation_fraction=config.validation_fraction,
            train_fraction=config.train_fraction,
            split_seed=config.split_seed,
        ).train.labels
    else:  # 50,000 images, as many of each class
        labels = np.repeat(np.arange(int(dataset.removeprefix("cifar"))), 50_000)
        labels = labels[:: int(dataset.removeprefix("cifar"))]
        left, _ = data.stratified_split(labels, config.validation_fraction, 0)
        _, part = data.stratified_split(labels[left], config.train_fraction, 0)
    assert config.batch_size == len(part)
    assert config.weight_decay == 0


# -- measurements ----------------------------------------------------------------------


@pytest.fixture
def normalised():
    """A loss with batch normalisation in float64, its arguments, and its gradient."""
    with jax.enable_x64(True):
        config = resolve({"model": "tiny", "width": 2, "precision": "float64"})
        module = networks.make_network(config, 3, axis_name=None)
        images = jax.random.normal(jax.random.key(1), (16, 8, 8, 1), jnp.float64)
        labels = jnp.arange(16) % 3
        variables = module.init(jax.random.key(0), images, train=False)
        yield module, variables, images, labels


def test_training_loss_takes_the_statistics_of_the_batch(normalised):
    module, variables, images, labels = normalised
    logits, _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    loss = TrainingLoss(module)(images, labels, variables["params"])
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    logits = module.apply(variables, images, train=False)
    running = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    assert abs(loss - running) > 1e-3


def test_curvature_is_that_of_the_loss_with_batch_normalisation(normalised):
    module, variables, images, labels = normalised
    flat, unravel = ravel_pytree(variables["params"])
    loss = Partial(TrainingLoss(module), images, labels)
    dense = jax.jit(jax.hessian(lambda w: loss(unravel(w))))(flat)
    found = top_eigenvalue(loss, unravel(flat), tolerance=1e-7, key=jax.random.key(0))
    np.testing.assert_allclose(found.value, np.linalg.eigvalsh(dense)[-1], rtol=1e-10)


def test_losses_of_equal_networks_are_equal():
    config = resolve({"model": "tiny", "width": 2})
    one, two = (
        TrainingLoss(networks.make_network(config, 3, axis_name=None)) for _ in range(2)
    )
    assert one == two
    assert hash(one) == hash(two)


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    """A run of sixteen full-batch steps with PLP, and where it began and ended."""
    fields = STUDY.scale("quick").fields
    config = configure(fields, "plain", STUDY.arm("plp-none-low"))
    workdir = str(tmp_path_factory.mktemp("mechanism") / "plp" / "run")
    config = dataclasses.replace(
        config,
        width=2,
        epochs=16,
        seed=3,
        batch_size=config.batch_size // 4 * 4,  # on four devices in these tests
        workdir=workdir,
    )
    prepared = recipe.prepare(config)
    observer = STUDY.observe(prepared, config)
    states = []

    class Both(Callback):
        def on_call(self, state):
            states.append(jax.device_get(state.params))

        def on_epoch(self, state, metrics):
            observer.on_epoch(state, metrics)

    start = jax.device_get(prepared.engine.initial_state(config.seed).params)
    recipe.train([config], Both(), {None: prepared})
    return prepared, config, observer.measures, start, states[-1], states


def test_observer_measures_at_the_start_and_at_ends_of_cycles(observed):
    _, _, measures, *_ = observed
    assert measures["step"] == [0, 8, 16]
    names = ("top_eigenvalue", "residual", "converged")
    assert all(len(measures[name]) == 3 for name in names)
    assert all(measures["converged"])
    assert json.loads(json.dumps(measures)) == measures


def test_observer_measures_the_curvature_of_the_full_batch(observed):
    prepared, config, measures, start, end, _ = observed
    dataset = prepared.dataset
    images = normalize(
        jnp.asarray(dataset.train.images[: config.batch_size]),
        dataset.mean,
        dataset.std,
    )
    labels = jnp.asarray(dataset.train.labels[: config.batch_size])
    module = networks.make_network(config, dataset.num_classes, axis_name=None)
    _, unravel = ravel_pytree(start)

    loss = Partial(TrainingLoss(module), images, labels)
    hessian = jax.jit(jax.hessian(lambda w: loss(unravel(w))))
    for at, params in ((0, start), (-1, end)):
        top = np.linalg.eigvalsh(hessian(ravel_pytree(params)[0]))[-1]
        np.testing.assert_allclose(measures["top_eigenvalue"][at], top, rtol=1e-3)


@pytest.mark.parametrize(("method", "factor"), [("sgd", 1.0), ("matched", 0.5)])
def test_observer_measures_the_distance_from_the_runs_before(observed, method, factor):
    """PLP has moved twice as far as the other method, in the same direction."""
    prepared, config, measures, start, _, states = observed
    assert "distance" not in measures  # PLP's run came first
    rate = config.learning_rate * (1 if method == "sgd" else float(mechanism.MATCHED))
    other = dataclasses.replace(config, method="sgd", learning_rate=rate)
    observer = STUDY.observe(prepared, other)
    for step in (8, 16):
        moved = jax.tree.map(lambda a, b: a + factor * (b - a), start, states[step - 1])
        observer._measure(step, moved)
    expected = pytest.approx([1 - factor] * 2, abs=1e-4)
    assert observer.measures["distance"] == {method: expected}


# -- distances of paths ----------------------------------------------------------------


def trees(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        {"a": scale * rng.normal(size=(40, 50)), "b": scale * rng.normal(size=321)}
        for _ in range(count)
    ]


def norm(tree):
    return np.sqrt(sum((x**2).sum() for x in tree.values()))


def test_sketches_keep_distances():
    ratios = []
    for one, two in itertools.pairwise(trees(101)):
        apart = {name: one[name] - two[name] for name in one}
        found = np.linalg.norm(mechanism.sketch(one) - mechanism.sketch(two))
        ratios.append(found / norm(apart))
    # The relative error of each is 1/sqrt(2 * 256) = 0.044.
    assert abs(np.mean(ratios) - 1) < 0.02
    assert 0.03 < np.std(ratios) < 0.06


def test_few_parameters_are_kept_as_they_are():
    tree = {"a": np.arange(200.0).reshape(10, 20), "b": np.array([-7.5])}
    np.testing.assert_array_equal(mechanism.sketch(tree), [*np.arange(200.0), -7.5])


def test_distance_is_relative_to_the_distance_that_the_first_has_covered():
    one = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    two = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 3.0]])
    np.testing.assert_array_equal(mechanism.distance(one, two), [np.nan, 0, 0.5])
