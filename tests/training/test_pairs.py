"""Every method with every driver: all pairs of choices, generated."""

import itertools

import jax
import pytest
from jax.sharding import Mesh

import train
import training
from benchmarks.ahead_of_time import map_over_mesh
from tests.support import programs
from training import cascade, data, recipe
from training.engine import parallel
from training.layout import File
from training.run import workdir
from training.settings.config import parse
from training.settings.methods import METHODS

CHOICES = {
    "method": [name for name in METHODS if name != "sgd"],
    "cascade": [None, "conv", "dense"],
    "average": ["power", "ema", "none"],
    "batches-per-step": ["1", "2"],
    "precision": ["float32", "bfloat16", "float16", "float64"],
    "input": ["resident", "host"],
}


def cover(choices):
    """Rows of choices in which every two choices of different kinds meet."""
    kinds = list(itertools.combinations(choices, 2))
    left = {
        (a, x, b, y)
        for a, b in kinds
        for x, y in itertools.product(choices[a], choices[b])
    }
    rows = []
    while left:
        a, x, b, y = min(left, key=str)
        row = {a: x, b: y}
        for name in choices:
            if name not in row:
                row[name] = max(
                    choices[name],
                    key=lambda value, name=name, row=row: len(
                        left & pairs(row | {name: value}, kinds)
                    ),
                )
        rows.append(row)
        left -= pairs(row, kinds)
    return rows


def pairs(row, kinds):
    return {(a, row[a], b, row[b]) for a, b in kinds if {a, b} <= row.keys()}


def flags(row):
    argv = ["--model=tiny", "--width=2", "--batch-size=256", "--max-steps=2"]
    argv += [f"--{name}={value}" for name, value in row.items() if value is not None]
    argv += ["--cascade-epochs=8"] if row["cascade"] else ["--epochs=8"]
    return argv + ["--amplify-select=all"] * ("amplify" in row["method"])


ALL = cover(CHOICES)
FEW = {"cascade": [None, "conv"], "average": ["power", "none"]}
CORE = cover({"method": CHOICES["method"], **FEW})


@pytest.mark.parametrize("row", CORE, ids=lambda row: "-".join(map(str, row.values())))
def test_core_pairs_fit_each_other(row, tmp_path, monkeypatch):
    """Shapes only: the step of a run, or of a cascade's last stage, and its average."""
    argv = [*flags(row), "--workdir", str(tmp_path), "--batch-size=16"]
    (config,) = parse(argv)
    if row["cascade"]:
        config = list(cascade.stage_configs(config).values())[-1]
    # Options of a CPU's compiler are for what is compiled, and nothing is.
    monkeypatch.setattr(jax, "default_backend", lambda: "none")
    engine = recipe.assemble(config, programs.DATASET)
    arguments = next(engine._feed.calls(0, 0, range(1))).arguments
    state = jax.eval_shape(lambda: engine.initial_state(0))
    mesh = Mesh(jax.devices(), (parallel.AXIS,))
    step = map_over_mesh(engine.train_function, 1 + len(arguments), mesh)
    after, _ = jax.eval_shape(step, state, *arguments)
    assert jax.tree.map(shape, after) == jax.tree.map(shape, state)
    if row["average"] != "none":
        average = jax.eval_shape(lambda state: state.averaged(state.opt_state), after)
        assert jax.tree.map(shape, average) == jax.tree.map(shape, state.variables)


def shape(x):
    return x.shape, x.dtype


@pytest.mark.slow
@pytest.mark.parametrize("row", ALL, ids=lambda row: "-".join(map(str, row.values())))
def test_all_pairs_train(row, tmp_path):
    argv = [*flags(row), "--workdir", str(tmp_path / "run")]
    assert train.main(argv) == 0
    result = workdir.read_json(tmp_path / "run" / File.RESULT)
    assert result["steps"] == (4 if row["cascade"] else 2)
    assert ("average_test_accuracy" in result) == (row["average"] != "none")
    found = training.load(tmp_path / "run").evaluate(data.load("digits").test)
    # Rounding may decide a near tie otherwise.
    assert found.accuracy == pytest.approx(result["test_accuracy"], abs=0.02)
