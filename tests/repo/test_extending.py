"""A method, a network and a data set: one entry in a registry and a function each.

CONTRIBUTING.md shows the same.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import models
import training
from experiments.study import Arm, Scale, Study
from models.layers import Layers, Network, as_input, as_logits
from training import data, recipe
from training.run import workdir
from training.run.callbacks import Callback
from training.settings import config as config_lib
from training.settings import registry

HERE = "tests.repo.test_extending"


def sign_descent(base, config, steps_per_epoch):
    """A method: the sign of the gradient, through the base optimizer."""
    assert config.method == "sign"
    assert steps_per_epoch > 0
    return optax.chain(optax.scale_by_sign(), base)


class Linear(Network):
    """A network: one linear layer on the pixels."""

    @nn.compact
    def __call__(self, images, *, train):
        x = as_input(images, self.dtype)
        layers = Layers(train, self.dtype, self.axis_name)
        x = x.reshape(len(x), -1)
        return as_logits(layers.dense(x, "head", self.num_classes))


VARIANTS = {"linear": (Linear, {})}


def stripes(data_dir):
    """A data set: horizontal and vertical stripes."""
    assert data_dir == "here"
    horizontal = np.zeros((40, 6, 6, 1), np.uint8)
    horizontal[:, ::2] = np.arange(100, 140)[:, None, None, None]
    images = np.concatenate([horizontal, horizontal.transpose(0, 2, 1, 3)])
    examples = data.Examples(images, np.repeat(np.arange(2, dtype=np.int32), 40))
    return data.Source(examples, None, ("horizontal", "vertical"), flips=False)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.METHODS, "sign", f"{HERE}:sign_descent")
    monkeypatch.setitem(models.NETWORKS, "linear", HERE)
    monkeypatch.setitem(registry.DATASETS, "stripes", f"{HERE}:stripes")


class Parameters(Callback):
    """Keeps the parameters after each call."""

    def __init__(self):
        self.seen = []

    def on_call(self, state):
        self.seen.append(jax.device_get(state.params))


def configure(tmp_path, *argv):
    argv = ["--model=linear", "--max-steps=1", "--workdir", str(tmp_path), *argv]
    (config,) = config_lib.parse(argv)
    return config


def test_a_method(tmp_path):
    """From the command line: a step moves every parameter by the learning rate."""
    argv = ["--method=sign", "--schedule=constant", "--lr=0.25"]
    config = configure(tmp_path, *argv, "--warmup-epochs=0", "--weight-decay=0")
    prepared = recipe.prepare(config)
    before = jax.device_get(prepared.program.initial_state(config.seed).params)
    callback = Parameters()
    recipe.run(prepared, config, callback)
    (after,) = callback.seen
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(np.abs(new - old), 0.25, rtol=1e-5)


def test_a_method_is_an_arm_of_a_study():
    arms = (
        Arm("sgd", "SGD", {"method": "sgd"}),
        Arm("sign", "Signs", {"method": "sign"}, baseline="sgd"),
    )
    scale = Scale("quick", models=("linear",), seeds=1, fields={"epochs": 2})
    study = Study("signs", "Signs", "Do signs help?", arms=arms, scales=(scale,))
    tasks = study.tasks(scale)
    assert [(task.arm.name, task.model) for task in tasks] == [
        ("sgd", "linear"),
        ("sign", "linear"),
    ]
    assert config_lib.resolve(tasks[1].config).method == "sign"


def test_a_network(tmp_path):
    (result,) = recipe.train([configure(tmp_path, "--method=sgd")])
    assert result["parameters"] == 8 * 8 * 10 + 10
    trained = training.load(tmp_path)
    assert trained.config.model == "linear"
    kernel = models.create("linear", 3).init(
        jax.random.key(0), np.zeros((1, 2, 2, 3), np.float32), train=False
    )["params"]["head"]["kernel"]
    assert kernel.shape == (12, 3)


def test_a_data_set(tmp_path):
    """It is loaded by name, split, trained on, and described for predictions."""
    argv = ["--dataset=stripes", "--data-dir=here", "--method=sgd", "--batch-size=16"]
    config = configure(tmp_path, *argv, "--lr=0.1", "--max-steps=20")
    (result,) = recipe.train([config])
    assert config_lib.resolve({"dataset": "stripes", "method": "sgd"}).workdir == (
        "runs/stripes-resnet18-sgd-0"
    )
    described = workdir.read_json(tmp_path / workdir.DATASET)
    assert described["name"] == "stripes"
    assert described["label_names"] == ["horizontal", "vertical"]
    assert [described[part] for part in ("train", "validation", "test")] == [51, 13, 16]
    assert result["test_accuracy"] == 1
    images = stripes("here").train.images[[0, -1]]
    assert training.load(tmp_path).predict(images).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("flag", "name"), [("--method", "sign"), ("--model", "linear")]
)
def test_choices_of_flags_are_the_entries(flag, name, capsys, monkeypatch):
    for argument in ("--help", f"{flag}=nonsense"):
        with pytest.raises(SystemExit):
            config_lib.parse([argument])
        shown = capsys.readouterr()
        assert name in shown.out + shown.err
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        config_lib.parse([f"{flag}={name}"])
