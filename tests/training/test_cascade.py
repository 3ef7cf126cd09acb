"""Training block by block: what is frozen, what trains, what is carried over."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import models
import plp_optax
import train
import training
from tests.support import programs
from tests.support.runs import Killed, assert_same_run, metrics_of, without_times
from training import cascade, recipe
from training.engine import parallel
from training.engine.networks import make_network
from training.errors import ConfigError
from training.layout import File
from training.run import callbacks
from training.run.checkpoints import read
from training.run.workdir import read_metrics
from training.settings import config

TINY = ["--model", "tiny", "--width", "4", "--batch-size", "256", "--method", "sgd"]
CASCADE = [*TINY, "--cascade", "conv", "--cascade-epochs", "2"]
STAGES = [*CASCADE, "--cascade-extra-epochs", "1", "--cascade-finetune", "1"]


def flat(tree):
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def stage_network(head="conv", start=1, dtype=jnp.float64, **options):
    network = models.create(
        *("tiny", programs.CLASSES),
        **{"head": head, "width": 4, "dtype": dtype, "axis_name": parallel.AXIS},
    )
    return network.clone(cut=2, frozen=start, **options)


# -- A stage ---------------------------------------------------------------------------


def test_frozen_blocks_do_not_change_and_the_optimizer_does_not_see_them():
    """With weight decay, momentum, amplification and prediction, which would."""
    windows = (plp_optax.AmplificationWindow(0, 9, epoch_steps=2, factor=3.0),)
    tx = optax.chain(
        plp_optax.amplify_layers(windows, select=plp_optax.all_layers()),
        programs.momentum(),
        plp_optax.plp(),
    )
    with jax.enable_x64(True):
        engine = programs.make(stage_network(), tx, dtype=jnp.float64)
        state = engine.initial_state(0)
        before = flat(state.variables)
        for epoch in range(2):
            state = programs.train_epoch(engine, state, epoch)
        after = flat(state.variables)
    for path, value in after.items():
        is_frozen = path.split("/")[1] == "stage1"
        assert np.array_equal(value, before[path]) == is_frozen, path
    # Momentum and window have the shapes of what is trained, amplification its layers.
    trained = state.params
    shapes = sorted(x.shape for x in jax.tree.leaves(trained))
    for buffer in ("trace", "window"):
        found = optax.tree.get(state.opt_state, buffer)
        assert sorted(x.shape for x in jax.tree.leaves(found)) == shapes
    names = plp_optax.layer_names(trained, "kernels")
    assert names == ("head/conv", "head/output", "stage2/conv")
    assert optax.tree.get(state.opt_state, "factors").shape == (3,)


def test_statistics_of_frozen_blocks_are_not_computed_again():
    """And those of the others, with what the frozen blocks make of an image."""
    with jax.enable_x64(True):
        engine = programs.make(stage_network(), dtype=jnp.float64, precise_bn=4)
        state = programs.train_epoch(engine, engine.initial_state(0))
        frozen = {"mean": jnp.full(4, 0.1), "var": jnp.full(4, 3.0)}
        variables = state.variables
        variables["batch_stats"]["stage1"]["norm"] = frozen
        found = engine.with_statistics(variables)
        # All four batches in one: the statistics of the first norm that trains.
        pixels = programs.DATASET.train.images / 255.0
        _, kept = stage_network(axis_name=None, dropout_rate=0.0).apply(
            jax.device_get(found),
            (pixels - 0.5) / np.float32(0.3),
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: module.path == ("stage2", "conv"),
        )
    hidden = kept["intermediates"]["stage2"]["conv"]["__call__"][0]
    after = flat(found["batch_stats"])
    for name in ("mean", "var"):
        np.testing.assert_array_equal(after[f"stage1/norm/{name}"], frozen[name])
        expected = getattr(np.asarray(hidden), name)((0, 1, 2))
        np.testing.assert_allclose(after[f"stage2/norm/{name}"], expected, rtol=1e-6)


def torch_gradient(head, params, stats, images, labels):
    """Loss and gradient of the last stage of the tiny network, written in PyTorch."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    p = {k: torch.tensor(v, requires_grad=True) for k, v in params.items()}
    s = {k: torch.tensor(v) for k, v in stats.items()}

    def conv(x, name, stride=1):
        kernel = p[f"{name}/kernel"].permute(3, 2, 0, 1)
        return f.conv2d(x, kernel, stride=stride, padding=1)

    def norm(x, name, train=True):
        mean, var = s[f"{name}/mean"].clone(), s[f"{name}/var"].clone()
        weight, bias = p[f"{name}/scale"], p[f"{name}/bias"]
        return f.batch_norm(x, mean, var, weight, bias, train, eps=1e-5)

    def dense(x, name):
        return f.linear(x, p[f"{name}/kernel"].T, p[f"{name}/bias"])

    x = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        x = torch.relu(norm(conv(x, "stage1/conv"), "stage1/norm", train=False))
    x = torch.relu(norm(conv(x, "stage2/conv", 2), "stage2/norm"))
    if head == "conv":
        x = torch.relu(norm(conv(x, "head/conv"), "head/norm1"))
        x = norm(f.avg_pool2d(x, 2), "head/norm2")
        logits = dense(x.permute(0, 2, 3, 1).flatten(1), "head/output")
    else:
        x = x.permute(0, 2, 3, 1).flatten(1)
        for name in ("hidden1", "hidden2"):
            x = torch.relu(dense(x, f"head/{name}"))
        logits = dense(x, "head/output")
    f.cross_entropy(logits, torch.tensor(labels).long()).backward()
    return {k: None if v.grad is None else v.grad.numpy() for k, v in p.items()}


@pytest.mark.parametrize("head", ["dense", "conv"])
def test_gradient_of_a_stage_is_that_of_pytorch(head):
    module = stage_network(head, dropout_rate=0.0, axis_name=None)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((16, 8, 8, 1)), np.arange(16) % 10
    with jax.enable_x64(True):
        shapes = jax.eval_shape(
            lambda: module.init(jax.random.key(0), images, train=False)
        )
        variables = jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape), shapes)
        params, stats = variables["params"], variables["batch_stats"]

        def loss_fn(params):
            logits, _ = module.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        gradient = flat(jax.jit(jax.grad(loss_fn))(params))
    expected = torch_gradient(head, flat(params), flat(stats), images, labels)
    assert expected.keys() == gradient.keys()
    for path, value in gradient.items():
        if path.startswith("stage1"):
            assert expected[path] is None
            assert not value.any()
        else:
            np.testing.assert_allclose(value, expected[path], rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_stage_costs_less_than_end_to_end():
    """With the same head: frozen blocks compute no gradient and keep nothing for it."""

    def costs(start):
        module = stage_network(start=start, dtype=jnp.float32)
        engine = programs.make(module, optax.sgd(0.1))
        compiled = engine.train_call
        memory = compiled.memory_analysis()
        return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes

    whole, stage = costs(0), costs(1)
    print("operations, bytes:", whole, stage)
    assert stage[0] < 0.8 * whole[0]
    assert stage[1] < whole[1]


# -- A cascade -------------------------------------------------------------------------


def test_stages():
    made = config.parse([*STAGES, "--workdir", "runs/x"])[0]
    found = cascade.stage_configs(made)
    networks = [make_network(c, 10, axis_name=None) for c in found.values()]
    assert [
        (block, network.frozen, network.cut, network.head, c.epochs, c.workdir)
        for (block, c), network in zip(found.items(), networks, strict=True)
    ] == [
        ("stage1", 0, 1, "conv", 2, "runs/x/stages/01"),
        ("stage2", 1, 2, "conv", 3, "runs/x/stages/02"),
        ("all", 0, None, "conv", 1, "runs/x/stages/03"),
    ]


class Kept(callbacks.Callback):
    """Keeps the variables of every epoch; ends the run at the given calls."""

    def __init__(self, kill_at=None):
        self.epochs, self.calls, self.kill_at = [], 0, kill_at

    def on_call(self, state):
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed

    def on_epoch(self, state, metrics):
        self.epochs.append((metrics, flat(state.variables)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("cascade") / "run"
    callback = Kept()
    recipe.train(config.parse([*STAGES, "--workdir", str(path)]), callback)
    return path, callback.epochs


@pytest.mark.slow
def test_a_second_seed_uses_the_programs_of_the_first(tmp_path, monkeypatch):
    """And is the cascade that it would be alone, blocks and all."""
    prepared, prepare = [], recipe.prepare
    monkeypatch.setattr(recipe, "prepare", lambda *a: prepared.append(a) or prepare(*a))
    argv = [*CASCADE, "--no-draw", "--workdir"]
    recipe.train(config.parse([*argv, str(tmp_path / "both"), "--seed", "1", "2"]))
    assert len(prepared) == 2  # stages
    recipe.train(config.parse([*argv, str(tmp_path / "alone"), "--seed", "2"]))
    assert len(prepared) == 4
    assert_same_cascade(tmp_path / "alone", tmp_path / "both" / "seed-2")
    assert not list((tmp_path / "both").rglob("*.png"))


def test_blocks_are_carried_over_from_the_best_epoch(uninterrupted):
    path, epochs = uninterrupted
    metrics = read_metrics(path)
    names = [(m["epoch"], m["step"], m["stage"], m["block"]) for m in metrics]
    assert names == [
        *((1, 4, 1, "stage1"), (2, 8, 1, "stage1")),
        *((3, 12, 2, "stage2"), (4, 16, 2, "stage2"), (5, 20, 2, "stage2")),
        (6, 24, 3, "all"),
    ]
    best = min(epochs[:2], key=lambda e: e[0]["validation_loss"])[1]
    # The batch statistics are those with which it was evaluated.
    kept = flat(read(path / File.STAGES / "01" / File.BEST).tree)
    assert all(
        np.array_equal(value, kept[name]) == name.startswith("params")
        for name, value in best.items()
    )
    best = kept
    for _, variables in epochs[2:5]:
        assert not any("stage2" in name for name in best)
        for name, value in best.items():
            same = np.array_equal(value, variables[name])
            assert same == (name.split("/")[1] != "head"), name
    last, tuned = epochs[4][1], epochs[5][1]
    assert last.keys() == tuned.keys()
    assert not any(np.array_equal(tuned[name], last[name]) for name in last)
    # Each stage has the schedule of a run of its length: constant after a warm-up.
    rates = [m["learning_rate"] for m in metrics]
    assert rates[1] == rates[4] > rates[0] == rates[2] == rates[5]
    result = json.loads((path / File.RESULT).read_text())
    assert [s["stage"] for s in result["stages"]] == [1, 2, 3]
    assert result["best_epoch"] == 6
    assert (result["epochs"], result["steps"]) == (6, 24)
    trained = training.load(path)
    assert trained.module.head == "conv"
    assert flat(trained.variables).keys() == tuned.keys()


def test_interrupted_in_every_stage_is_bitwise_the_same(uninterrupted, tmp_path):
    expected, _ = uninterrupted
    path = tmp_path / "run"
    configs = config.parse([*STAGES, "--workdir", str(path)])
    # A checkpoint is saved after every epoch of four calls.
    for call, stage in ((6, "01"), (7, "02"), (8, "02"), (10, "03")):
        with pytest.raises(Killed):
            recipe.train(configs, Kept(call))
        runs = [run.name for run in sorted((path / "stages").iterdir())]
        assert runs[-1] == stage
    recipe.train(configs)
    assert_same_cascade(expected, path)


def assert_same_cascade(expected, path):
    for stage in sorted((expected / File.STAGES).iterdir()):
        assert_same_run(stage, path / File.STAGES / stage.name)
    assert metrics_of(expected) == metrics_of(path)
    assert summary(expected) == summary(path)


def summary(path):
    """The result of a cascade without times."""
    result = json.loads((path / File.RESULT).read_text())
    return without_times(result) | {"stages": [*map(without_times, result["stages"])]}


def halve(path):
    path.write_text(path.read_text()[: len(path.read_text()) // 2])


DAMAGE = {
    "half of the metrics": lambda stage: halve(stage / File.METRICS),
    "another name": lambda stage: (stage / File.RESULT).write_text(
        (stage / File.RESULT).read_text().replace("best_epoch", "best")
    ),
    "no best": lambda stage: (stage / File.BEST).unlink(),
    "no configuration": lambda stage: (stage / File.CONFIG).unlink(),
}


def test_a_damaged_stage_is_refused_and_trained_again(uninterrupted, tmp_path, capsys):
    expected, _ = uninterrupted
    path = Path(shutil.copytree(expected, tmp_path / "run"))
    (path / File.RESULT).unlink()
    stage = path / File.STAGES / "01"
    for damage in DAMAGE.values():
        shutil.rmtree(stage)
        shutil.copytree(expected / File.STAGES / "01", stage)
        damage(stage)
        assert train.main([*STAGES, "--workdir", str(path)]) == 2
        message = capsys.readouterr().err
        assert str(stage) in message
        assert "to train this stage again" in message
    shutil.rmtree(stage)
    assert train.main([*STAGES, "--workdir", str(path)]) == 0
    assert_same_cascade(expected, path)


# -- Bad choices -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "googlenet"], "googlenet cannot be: choose a --model of vgg16"),
        (["--epochs", "3"], "leave --epochs out"),
        (["--head", "linear"], "leave --head out"),
        (
            ["--method", "amplify", "--strategy", "[(10, 0.1, 1, 2.0)]"],
            "choose --strategy paper or paper-deep",
        ),
    ],
)
def test_bad_choices(flags, message):
    with pytest.raises(ConfigError, match=message):
        config.parse(["--cascade", "conv", *flags])


def test_a_stage_is_not_run_alone(uninterrupted):
    path, _ = uninterrupted
    stage = path / File.STAGES / "02" / File.CONFIG
    with pytest.raises(ConfigError, match="two directories up"):
        config.parse(["--config", str(stage)])
    (whole,) = config.parse(["--config", str(path / File.CONFIG)])
    assert (whole.cascade, whole.cascade_stage) == ("conv", None)


def test_amplification_of_too_few_layers(capsys, tmp_path):
    """A threshold that no layer of so few can reach; and one of a later block."""
    flags = [*CASCADE, "--method", "amplify", "--workdir", str(tmp_path / "run")]
    flags[flags.index("--cascade-epochs") + 1] = "8"
    assert train.main([*flags, "--amplify-threshold", "1.5"]) == 2
    message = capsys.readouterr().err
    assert "in the stage of stage1, --amplify-threshold 1.5 does not fit" in message
    assert train.main([*flags, "--amplify-select", "stage1/conv"]) == 2
    message = capsys.readouterr().err
    assert "in the stage of stage2, --amplify-select stage1/conv does not" in message


def test_a_strategy_longer_than_a_stage(capsys, tmp_path):
    flags = [*CASCADE, "--method", "amplify", "--workdir", str(tmp_path / "run")]
    assert train.main([*flags, "--cascade-finetune", "2", "--strategy", "paper"]) == 2
    message = capsys.readouterr().err
    assert "train.py: in the stage of " in message
    assert "--strategy paper" in message
