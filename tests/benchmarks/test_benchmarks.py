"""That the benchmarks measure what they say, in miniature; not how long it takes."""

import dataclasses
import importlib
import json
import math
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import models
from benchmarks import (
    first_step,
    host_input,
    measure,
    tables,
    throughput,
    time_share,
    trainer_overhead,
)
from training import recipe
from training.engine import feed, parallel
from training.run import style

BATCH = 16
NETWORK = {"model": "tiny", "width": 2, "batch_size": BATCH}


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Compiles a program once for all tests that need the same one, and quickly."""
    build, programs = recipe.build, {}

    def build_once(config, dataset, source=None):
        from_host = isinstance(source, feed.Host) or config.input == "host"
        # The number of epochs has no effect on a constant rate.
        same = dataclasses.replace(config, epochs=1, input="resident")
        key = repr(same), from_host, len(dataset.train.labels)
        if key not in programs:
            programs[key] = build(config, dataset, source)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "build", build_once)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def shown(benchmark, record):
    """The table of a record, without where it was measured."""
    return tables.TABLES[benchmark](record).replace("\N{NO-BREAK SPACE}", " ")


def check_quartiles(values):
    assert 0 < values["low"] <= values["median"] <= values["high"] < math.inf


def test_the_bare_step_is_the_training_step():
    # Otherwise the benchmark would compare different work. The data set is one batch,
    # so that its order has no effect.
    config = measure.training_config(**NETWORK)
    dataset = measure.synthetic(BATCH)
    training = measure.Training(config, dataset)
    start = training.engine.initial_state(0)
    bare = trainer_overhead.make_bare(config, dataset, start, steps=1)
    losses = []
    for _ in range(6):
        training.run()
        losses.append(float(bare()))
    np.testing.assert_allclose(losses, training.losses, rtol=1e-4)
    assert losses[-1] < losses[0]


def test_operations_of_a_known_network():
    # By the published table of ResNet-18, with the CIFAR stem. A kernel of three meets
    # 3n pixels in a row of n, less the padding at both ends, or with stride 2 at one.
    def stage(side, before, after, blocks=2):
        strided = before != after
        first = (3 * side - (1 if strided else 2)) ** 2 * before * after
        shortcut = side**2 * before * after if strided else 0
        return first + shortcut + (2 * blocks - 1) * (3 * side - 2) ** 2 * after**2

    stem = (3 * 32 - 2) ** 2 * 3 * 64
    stages = stage(32, 64, 64), stage(16, 64, 128), stage(8, 128, 256)
    products = stem + sum(stages) + stage(4, 256, 512) + 512 * 100
    # Forward, by the weights and by the inputs, but not by the images.
    operations = 2 * (3 * products - stem)
    config = measure.training_config(model="resnet18", width=64, batch_size=2)
    counted = throughput.count_operations(config, measure.synthetic(2))
    # The rest is normalisation, activations and the loss.
    assert operations < counted < 1.03 * operations


def test_throughput_without_pytorch(monkeypatch):
    monkeypatch.setattr(throughput, "why_no_torch", lambda: "not here")
    options = {"width": 2, "steps": 1, "rounds": 1}
    record = throughput.run(["tiny"], ["float32"], [BATCH], **options)
    (cell,) = record["cells"]
    assert set(cell["arms"]) == {"jax"}
    check_quartiles(cell["arms"]["jax"]["images_per_second"])
    assert cell["arms"]["jax"]["of_product"] > 0
    assert "No PyTorch: not here." in shown("throughput", options | record)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's are not ours
def test_throughput_with_pytorch(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(throughput, "PEERS", (throughput.EAGER,))
    options = {"width": 2, "steps": 1, "rounds": 1}
    record = throughput.run(["resnet18"], ["float32"], [BATCH], **options)
    (cell,) = record["cells"]
    check_quartiles(cell["arms"]["torch eager"]["speedup"])
    assert shown("throughput", options | record).count("resnet18") == 1


def test_throughput_reports_an_arm_that_failed():
    rate = {"median": 2.0, "low": 1.0, "high": 3.0}
    arms = {
        "jax": {"images_per_second": rate, "of_product": 0.25},
        "torch eager": {
            "images_per_second": rate,
            "of_product": 0.5,
            "speedup": rate,
            "best_speedup": 0.5,
        },
        "torch compiled": {"failed": "no compiler"},
    }
    cell = {"model": "vgg16", "precision": "float32", "batch_size": 1, "arms": arms}
    cell["product_operations_per_second"] = 2e11
    text = shown("throughput", {"torch_absent": None, "cells": [cell]})
    assert [part.strip() for part in text.split("\n")[2].strip("|").split("|")] == [
        *("vgg16, float32, 1", "2, 25%", "2, 50%", "failed"),
        *("2.00 [1.00, 3.00]", "0.50", "", ""),
    ]


@pytest.mark.filterwarnings("ignore")  # PyTorch's are not ours
def test_pytorch_has_the_same_networks():
    torch = pytest.importorskip("torch")
    theirs = importlib.import_module("benchmarks.torch_networks")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    for model in throughput.MODELS:
        network = models.create(model, width=3)
        shapes = jax.eval_shape(
            lambda x, network=network: network.init(jax.random.key(0), x, train=False),
            images,
        )
        ours = sorted(x.size for x in jax.tree.leaves(shapes["params"]))
        with torch.device("meta"):
            parameters = theirs.create(model, 3, 100).parameters()
        assert ours == sorted(x.numel() for x in parameters)


def test_convolutions_of_a_known_network_have_known_shapes():
    config = measure.training_config(model="resnet18", width=2, batch_size=BATCH)
    layers = time_share.layers_of(config, nn.Conv)
    assert len(layers) == 1 + 4 * 4 + 3  # stem, two blocks a stage, shortcuts
    own = BATCH // jax.device_count()
    assert layers[0].x.shape == (jax.device_count(), own, 32, 32, 3)
    assert layers[-1].y.shape == (jax.device_count(), own, 4, 4, 16)
    assert len(time_share.layers_of(config, nn.BatchNorm)) == len(layers)


def test_parts_of_a_step_in_jax():
    parts = time_share.make_parts(measure.training_config(**NETWORK))
    assert tuple(parts) == tables.STEP_PARTS
    for part in parts.values():
        part()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's are not ours
def test_time_share(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(style, "Figure", Figure)  # which draws
    options = {"width": [2], "batch_size": BATCH, "rounds": 1}
    record = {"model": "resnet18", "cores": 2} | options
    record |= time_share.run("resnet18", **options)
    for cell in record["cells"]:
        times = cell["milliseconds"]
        parts = sum(times[part] for part in tables.STEP_PARTS)
        assert parts + tables.rest_of_step(times) == pytest.approx(times["step"])
    assert shown("time_share", record).count("\n") == 3
    time_share.draw(tmp_path / "picture.png", record)
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_host_input():
    options = NETWORK | {"steps": 1, "feed_steps": 2, "rounds": 1}
    record = host_input.run(**options)
    feeds = record["feeds"]
    assert set(feeds) >= {"resident", "numpy thread"}
    assert feeds["resident"]["batches_per_second"] is None
    check_quartiles(feeds["numpy thread"]["batches_per_second"])
    for values in feeds.values():
        check_quartiles(values["images_per_second"])
    assert all(name in shown("host_input", options | record) for name in feeds)


@pytest.mark.parametrize("by_batch", [False, True])
def test_grain_feeds_each_example_once(by_batch):
    pytest.importorskip("grain")
    examples = measure.synthetic(3 * BATCH).train
    source = host_input.Grain(examples, BATCH, by_batch=by_batch)
    batches = [call.arguments[0] for call in source.calls(0, 0, range(3))]
    images = np.concatenate(
        [np.asarray(batch.images).reshape(BATCH, -1) for batch in batches]
    )
    np.testing.assert_array_equal(
        np.unique(images, axis=0),
        np.unique(examples.images.reshape(len(images), -1), axis=0),
    )


def test_trainer_overhead(capsys):
    options = NETWORK | {"steps": 1, "rounds": 1}
    record = trainer_overhead.run(**options)
    arms = record["arms"]
    assert list(arms) == [
        trainer_overhead.BARE,
        *trainer_overhead.STEPS,
        trainer_overhead.SESSION,
    ]
    for arm in arms.values():
        check_quartiles(arm["time_ratio"])
        assert arm["milliseconds"] > 0
    assert arms[trainer_overhead.BARE]["time_ratio"]["median"] == 1
    assert capsys.readouterr().out == ""
    assert all(name in shown("trainer_overhead", options | record) for name in arms)


@pytest.mark.slow
def test_first_step():
    record = first_step.run(["--model", "tiny", "--width", "2"], rounds=1)
    assert set(record["arms"]) == {"cold", "warm"}
    for arm in record["arms"].values():
        assert arm["to_compiling"]["median"] < arm["to_first_epoch"]["median"]
    assert "warm" in shown("first_step", {"rounds": 1} | record)


def test_first_step_fails_with_train(tmp_path):
    with pytest.raises(RuntimeError, match="with 2"):
        first_step.start(["--width", "0"], tmp_path, "run")


def test_committed_records_can_be_shown():
    paths = sorted(tables.RECORDS.glob("*.json"))
    assert len(paths) > 5
    for path in paths:
        record = json.loads(path.read_text())
        assert path.stem.startswith(f"{record['benchmark']}-")
        (rows,) = (record[k] for k in ("arms", "cells", "feeds") if k in record)
        lines = [n for n in tables.show(record).split("\n") if n.startswith("|")]
        assert len(lines) == 2 + len(rows)
        assert len({line.count("|") for line in lines}) == 1


def run_command(monkeypatch, *flags, **options):
    """Runs a benchmark that returns its flags, and returns them as they were given."""
    given = {}
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    monkeypatch.setitem(tables.TABLES, "name", lambda record: str(record["width"]))

    def run(model=("tiny",), width=2, batch_size=(64, 16)):
        given.update(model=model, width=width, batch_size=batch_size)
        return {}

    measure.main("name", "A benchmark.", run, **options)
    return given


def test_a_command_writes_flags_figures_and_versions(monkeypatch, tmp_path, capsys):
    out = tmp_path / "new" / "record.json"
    flags = ["--model", "plain", "vgg16", "--batch-size", "5", "--out", str(out)]
    given = run_command(monkeypatch, *flags)
    assert given == {"model": ["plain", "vgg16"], "width": 2, "batch_size": [5]}
    record = json.loads(out.read_text())
    assert given.items() <= record.items()
    assert record["benchmark"] == "name"
    assert record["jax"] == jax.__version__
    assert str(out) in capsys.readouterr().out


def test_a_cpu_is_split_for_the_smallest_batch(monkeypatch, tmp_path):
    sizes, out = [], ["--out", str(tmp_path / "record.json")]
    monkeypatch.setattr(
        parallel, "split_cpu", lambda config: sizes.append(config.batch_size)
    )
    run_command(monkeypatch, *out)
    assert not sizes
    run_command(monkeypatch, *out, split_cpu=True)
    run_command(monkeypatch, *out, "--batch-size", "96", split_cpu=True)
    assert sizes == [16, 96]


def test_an_accelerator_has_defaults_of_its_own(monkeypatch, tmp_path):
    out, fast = ["--out", str(tmp_path / "record.json")], {"width": 64}
    assert run_command(monkeypatch, *out, on_accelerator=fast)["width"] == 2
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert run_command(monkeypatch, *out, on_accelerator=fast)["width"] == 64
    out += ["--width", "8"]
    assert run_command(monkeypatch, *out, on_accelerator=fast)["width"] == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--width", "0"], "must be at least 1, got 0"),
        (["--batch", "5"], "unrecognized arguments: --batch"),
    ],
)
def test_a_wrong_flag_is_refused(monkeypatch, capsys, flags, message):
    with pytest.raises(SystemExit):
        run_command(monkeypatch, *flags)
    assert message in capsys.readouterr().err


def test_arms_alternate_and_the_first_round_is_not_timed():
    calls = []
    arms = {name: (lambda name=name: calls.append(name) or name) for name in "ab"}
    seconds = measure.alternate(arms, rounds=2, repeats={"a": 1, "b": 2})
    assert "".join(calls) == "abb" * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
