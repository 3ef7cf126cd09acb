"""What CONTRIBUTING.md says of adding something, followed literally."""

import dataclasses
import inspect
import re
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
import training
from experiments import report
from experiments.reports import Report
from experiments.study import Arm, Scale, Study
from experiments.table import ACCURACY
from models.layers import Layers, Network, as_input, as_logits
from tests.plp_optax import test_contract
from tests.support import reports
from tests.support.factories import CASES, Case
from tests.support.programs import Parameters
from training import data, recipe
from training.data import registry
from training.engine.optimizer import make_optimizer, make_plan
from training.errors import ConfigError
from training.layout import File
from training.run import workdir
from training.settings import config as config_lib
from training.settings import methods, optimizers, schedules
from training.settings.flags import flag

HERE = "tests.repo.test_extending"
CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"


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
    monkeypatch.setitem(methods.METHODS, "sign", methods.METHODS["sgd"])
    (program,) = re.findall("```python\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)
    exec(program, {"__name__": HERE})  # sets METHODS["sign"]
    monkeypatch.setitem(models.NETWORKS, "linear", models.Family(HERE))
    monkeypatch.setitem(registry.DATASETS, "stripes", f"{HERE}:stripes")


def configure(tmp_path, *argv):
    argv = ["--model=linear", "--max-steps=1", "--workdir", str(tmp_path), *argv]
    (config,) = config_lib.parse(argv)
    return config


def test_a_method_and_a_network(tmp_path):
    """A step moves every parameter by the learning rate times the scale."""
    argv = ["--method=sign", "--sign-scale=2", "--schedule=constant", "--lr=0.25"]
    argv += ["--warmup-epochs=0", "--weight-decay=0", "--momentum=0"]
    config = configure(tmp_path, *argv)
    prepared = recipe.prepare(config)
    before = jax.device_get(prepared.engine.initial_state(config.seed).params)
    callback = Parameters()
    (result,) = recipe.train([config], callback, {None: prepared})
    (after,) = callback.seen
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_allclose(np.abs(new - old), 0.5, rtol=1e-5)
    assert result["parameters"] == 8 * 8 * 10 + 10
    assert training.load(tmp_path).config.model == "linear"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method=sign", "--sign-scale=0"], "--sign-scale must be above 0"),
        (["--sign-scale=2"], "--sign-scale 2.0 .* --method plp: .* --method sign"),
    ],
)
def test_the_settings_of_a_method_are_checked(argv, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.parse(argv)


@dataclasses.dataclass(frozen=True)
class Signed(optimizers.Optimizer):
    """An optimizer: a mean of the gradient and its signs."""

    prefix = "signed"
    share: float = flag(0.25, "Part of the gradient.", low=0, high=1)

    def __call__(self, rate, decay):
        def mixed(updates, params):
            return jax.tree.map(
                lambda g: self.share * g + (1 - self.share) * jnp.sign(g), updates
            )

        return optax.chain(optax.stateless(mixed), optax.scale_by_learning_rate(rate))


@dataclasses.dataclass(frozen=True)
class Halved(schedules._WarmedUp):
    """A schedule: half the rate from the middle of the run on."""

    def after_warmup(self, rate, steps):
        return optax.piecewise_constant_schedule(rate, {steps // 2: 0.5})


def test_an_optimizer_and_a_schedule(monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "signed", Signed)
    monkeypatch.setitem(schedules.SCHEDULES, "halved", Halved)
    argv = ["--optimizer=signed", "--signed-share=0.5", "--lr=0.5", "--weight-decay=0"]
    argv += ["--schedule=halved", "--warmup-epochs=1", "--epochs=5", "--method=none"]
    (config,) = config_lib.parse([*argv, "--average=none"])
    tx = make_optimizer(config, make_plan(config, steps_per_epoch=4))
    state, rates = tx.init(3.0), []
    for _ in range(20):
        update, state = tx.update(jnp.array(3.0), state, jnp.zeros(()))
        rates.append(float(-update / (0.5 * 3 + 0.5 * 1)))
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(rates[4:], [0.5] * 8 + [0.25] * 8, rtol=1e-6)
    with pytest.raises(ConfigError, match=r"--signed-share .* has no meaning"):
        config_lib.parse(["--signed-share=0.5"])


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


def test_a_study_has_sections_of_its_own(tmp_path, monkeypatch):
    module = types.ModuleType(f"experiments.reports.{reports.PAIR.name}")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.REPORT = Report(lambda table: ["## Signs", "Few."], metrics=[ACCURACY])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    records = [reports.run(arm, 0, test_accuracy=0.5) for arm in ("old", "new")]
    text = report.write(reports.table_of(records), tmp_path).read_text()
    assert "\n\n## Signs\n\nFew.\n\n## Settings" in text
    assert "**Test accuracy**" in text
    assert "**Validation loss" not in text


def test_a_data_set(tmp_path):
    """It is loaded by name, split, trained on, and described for predictions."""
    argv = ["--dataset=stripes", "--data-dir=here", "--method=sgd", "--batch-size=16"]
    config = configure(tmp_path, *argv, "--lr=0.1", "--max-steps=20")
    (result,) = recipe.train([config])
    assert config_lib.resolve({"dataset": "stripes", "method": "sgd"}).workdir == (
        "runs/stripes-resnet18-sgd-0"
    )
    described = workdir.read_json(tmp_path / File.DATASET)
    assert described["name"] == "stripes"
    assert described["label_names"] == ["horizontal", "vertical"]
    assert [described[part] for part in ("train", "validation", "test")] == [51, 13, 16]
    assert result["test_accuracy"] == 1
    images = stripes("here").train.images[[0, -1]]
    assert training.load(tmp_path).predict(images).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("flag", "entries"),
    [("--method", methods.METHODS), ("--model", models.NETWORKS)],
)
def test_choices_of_flags_are_the_entries(flag, entries, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        config_lib.parse([f"{flag}=a-new-one"])
    monkeypatch.setitem(entries, "a-new-one", next(iter(entries.values())))
    for argument in ("--help", f"{flag}=nonsense"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            config_lib.parse([argument])
        shown = capsys.readouterr()
        assert "a-new-one" in shown.out + shown.err


def test_a_transformation(monkeypatch, tmp_path):
    """A case passes the contract, also if it has no state."""

    def clip(limit):
        return optax.with_extra_args_support(optax.clip(limit))

    monkeypatch.setitem(CASES, "clip", Case(clip, {"limit": 1.0}, leads=True))
    for name, test in inspect.getmembers(test_contract, inspect.isfunction):
        marks = getattr(test, "pytestmark", [])
        lists = [mark.args[1] for mark in marks if mark.args[:1] == ("name",)]
        if not any(
            set(test_contract.STATES) <= set(map(str, found)) for found in lists
        ):
            continue
        arguments = {"name": "clip", "tmp_path": tmp_path, "dtype": "float64"}
        wanted = inspect.signature(test).parameters
        assert set(wanted) <= set(arguments), name
        test(**{key: arguments[key] for key in wanted})
