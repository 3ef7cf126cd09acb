"""That the benchmarks measure what they say, in miniature; not how long it takes."""

import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    acceleration,
    first_step,
    host_input,
    measure,
    throughput,
    trainer_overhead,
)

BATCH = 8


def check_quartiles(values):
    assert 0 < values["low"] <= values["median"] <= values["high"] < math.inf


def test_training_lowers_the_loss_and_knows_its_memory():
    dataset = measure.synthetic(4 * BATCH)
    config = measure.training_config(model="tiny", width=8, batch_size=BATCH)
    training = measure.Training(config, dataset)
    for _ in range(8):
        training.run()
    assert len(training.losses) == 8
    assert training.losses[-1] < training.losses[0]
    # Parameters and momentum, and the data set.
    assert training.held_bytes > 8 * training.parameters + dataset.train.images.nbytes
    assert training.temporary_bytes > 0


def test_synthetic_images_show_their_class():
    dataset = measure.synthetic(2000)
    images, labels = dataset.train
    assert images.dtype == np.uint8
    assert set(labels) == set(range(measure.CLASSES))
    means = images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(len(labels), -1)
    of_class = np.stack([means[labels == c].mean(0) for c in range(measure.CLASSES)])
    nearest = ((means[:, None] - of_class) ** 2).sum(-1).argmin(1)
    assert np.mean(nearest == labels) > 0.99
    pixels = images / 255
    assert abs(pixels.mean() - dataset.mean[0]) < 0.05
    assert abs(pixels.std() - dataset.std[0]) < 0.05


def test_operations_of_a_known_network():
    # By the published table of ResNet-18, with the CIFAR stem. A kernel of three meets
    # 3n places in a row of n, but the padding at both ends, or with stride 2 at one.
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
    counted = measure.count_operations(config, measure.synthetic(2))
    # Beside them are normalisation, activations and the loss.
    assert operations < counted < 1.03 * operations


def test_throughput_without_peers(tmp_path):
    record = throughput.run(
        ["tiny"], ["float32"], [BATCH], width=1, rounds=1, steps=2, peers=()
    )
    (cell,) = record["cells"]
    assert set(cell["arms"]) == {"jax"}
    check_quartiles(cell["arms"]["jax"]["images_per_second"])
    assert cell["arms"]["jax"]["of_product"] > 0
    assert cell["parameters"] > 0
    assert record["torch_absent"]
    assert throughput.table(record).row_count == 1
    path = measure.write_record("throughput", record, tmp_path / "record.json")
    assert '"load"' in path.read_text()


def test_throughput_reports_an_arm_that_failed():
    pace = {"median": 2.0, "low": 1.0, "high": 3.0}
    arms = {
        "jax": {"images_per_second": pace, "of_product": 0.25},
        "torch eager": {
            "images_per_second": pace,
            "of_product": 0.5,
            "speedup": pace,
            "best_speedup": 0.5,
        },
        "torch compiled": {"failed": "no compiler"},
    }
    cell = {"model": "vgg16", "precision": "float32", "batch_size": 1, "arms": arms}
    cell["product_operations_per_second"] = 2e11
    record = {"width": 1, "rounds": 1, "torch_absent": None, "cells": [cell]}
    table = throughput.table(record)
    assert "200 GFLOP/s in float32" in table.title
    columns = table.columns
    assert [c for column in columns for c in column.cells] == [
        *("vgg16", "float32", "1", "2 (1 to 3), 25%"),
        *("2 (1 to 3), 50%", "2.00 (1.00 to 3.00)", "0.50"),
        *("failed", "", ""),
    ]


@pytest.mark.parametrize("model", throughput.MODELS)
def test_torch_has_the_same_networks(model):
    pytest.importorskip("torch")
    # Apart, since PyTorch's warnings are not ours.
    code = f"""
import jax, models
from benchmarks import torch_networks
for width in (3, 64):
    network = models.create("{model}", width=width)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    shapes = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), images
    )
    ours = sorted(x.size for x in jax.tree.leaves(shapes["params"]))
    theirs = torch_networks.create("{model}", width, 100).parameters()
    assert ours == sorted(x.numel() for x in theirs)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_acceleration(monkeypatch):
    kept = ("none", "host input", "all together")  # fewer to compile
    monkeypatch.setattr(
        acceleration, "ARMS", {name: acceleration.ARMS[name] for name in kept}
    )
    record = acceleration.run("tiny", width=2, batch_size=16, images=32, rounds=2)
    assert record["images"] == 32 * 3
    arms = record["arms"]
    assert set(arms) == set(kept)
    for arm in arms.values():
        check_quartiles(arm["microseconds_per_image"])
        assert 0 < arm["last_loss"] < 10
    # The same images in the same order from the same start; only the batches'
    # statistics and the rounding differ.
    first = {name: arm["first_loss"] for name, arm in arms.items()}
    assert first["host input"] == pytest.approx(first["none"], rel=1e-5)
    assert first["all together"] == pytest.approx(first["none"], rel=0.05)
    assert arms["host input"]["held_bytes"] < arms["none"]["held_bytes"]
    assert acceleration.table(record).row_count == len(arms)


def test_host_input():
    record = host_input.run(
        "tiny", width=1, batch_size=BATCH, images=32, train_images=16, rounds=1
    )
    feeds = record["feeds"]
    assert set(feeds) >= {"resident", "numpy thread"}
    assert feeds["resident"]["batches_per_second"] is None
    check_quartiles(feeds["numpy thread"]["batches_per_second"])
    for values in feeds.values():
        check_quartiles(values["images_per_second"])
    assert record["fastest_feed"] in feeds
    assert host_input.table(record).row_count == len(feeds)


def test_trainer_overhead(capsys, monkeypatch):
    monkeypatch.delitem(trainer_overhead._ARMS, "step, sgd")  # fewer to compile
    record = trainer_overhead.run(2, BATCH, steps=2, rounds=2, model="tiny")
    arms = record["arms"]
    assert next(iter(arms)) == trainer_overhead.BARE
    assert len(arms) == 3
    for arm in arms.values():
        check_quartiles(arm["time_ratio"])
        assert arm["milliseconds"] > 0
    assert arms[trainer_overhead.BARE]["time_ratio"]["median"] == 1
    assert trainer_overhead.table(record).row_count == len(arms)
    assert capsys.readouterr().out == ""


def test_the_bare_step_is_the_training_step():
    # Or the benchmark would compare different work. One batch is the whole set, so its
    # order does not matter.
    config = measure.training_config(model="tiny", width=2, batch_size=BATCH)
    dataset = measure.synthetic(BATCH)
    bare = trainer_overhead.make_bare(config, dataset, steps=1)
    whole = measure.Training(config, dataset)
    losses = []
    for _ in range(4):
        whole.run()
        losses.append(float(bare()))
    np.testing.assert_allclose(losses, whole.losses, rtol=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_first_step():
    record = first_step.run(["--model", "tiny", "--width", "2"], rounds=1)
    assert set(record["arms"]) == {"cold", "warm"}
    for arm in record["arms"].values():
        assert arm["to_compiling"]["median"] < arm["to_first_epoch"]["median"]
    assert first_step.table(record).row_count == 2


def test_first_step_fails_with_train():
    with (
        tempfile.TemporaryDirectory() as place,
        pytest.raises(RuntimeError, match="with 2"),
    ):
        first_step.start(["--width", "0"], Path(place), "run")


@pytest.mark.parametrize("whole_batches", [False, True])
def test_grain_feeds_each_example_once(whole_batches):
    pytest.importorskip("grain")
    examples = measure.synthetic(3 * BATCH).train
    feed = host_input.Grain(examples, BATCH, whole_batches=whole_batches)
    batches = [call.arguments[0] for call in feed.calls(0, 0, range(3))]
    images = np.concatenate(
        [np.asarray(batch.images).reshape(BATCH, -1) for batch in batches]
    )
    np.testing.assert_array_equal(
        np.unique(images, axis=0),
        np.unique(examples.images.reshape(len(images), -1), axis=0),
    )
