"""Using what was trained: in Python, and by ``python -m training``."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
from PIL import Image

import train
import training
from training import __main__ as command
from training import data, recipe
from training.data.images import resize
from training.engine import networks
from training.errors import UserError
from training.layout import File
from training.run.checkpoints import Checkpoint, read, write
from training.settings.config import identity, parse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network(trained):
    return training.load(trained.path)


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the run that may be changed."""
    return Path(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs ``python -m training``; returns its output, or the one line of an error."""
    monkeypatch.setenv("COLUMNS", "150")

    def run(*argv, code=0):
        assert command.main([str(argument) for argument in argv]) == code
        shown = capsys.readouterr()
        if code == 0:
            return shown.out
        assert not shown.out
        (line,) = shown.err.splitlines()
        assert line.startswith("training: ")
        return line

    return run


# -- In Python -------------------------------------------------------------------------


def test_a_run_is_loaded_with_what_it_needs(trained, network, dataset):
    assert network.config.model == "tiny"
    assert network.config.workdir == str(trained.path)
    assert network.image_shape == (8, 8, 1)
    assert network.label_names == tuple("0123456789")
    np.testing.assert_array_equal(network.mean, dataset.mean)
    np.testing.assert_array_equal(network.std, dataset.std)


def test_predictions_are_those_of_the_network(network, dataset):
    """Normalised by hand; more images than a batch."""
    images = dataset.test.images
    pixels = (images / 255.0 - network.mean) / network.std
    apply = jax.jit(functools.partial(network.module.apply, train=False))
    logits = apply(network.variables, pixels.astype(np.float32))
    exponentials = np.exp(np.asarray(logits, np.float64))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    found = network.predict(images)
    assert found.shape == (359, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(network.predict(images[:0]), np.zeros((0, 10)))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 1), np.float32),
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 9, 8, 1), np.uint8),
    ],
)
def test_other_images_are_refused(network, images):
    with pytest.raises(ValueError, match=r"must be uint8 \[n, 8, 8, 1\], got "):
        network.predict(images)


# -- Bad directories -------------------------------------------------------------------


def change(name, **fields):
    """Returns a function that changes fields of a run's file."""

    def damage(run):
        there = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(there | fields))

    return damage


def without_notes(run):
    """Takes from the best variables what they say of their run."""
    best = run / File.BEST
    write(best, Checkpoint(read(best).tree, {}))


CONFIG, DATASET = "config.json", "dataset.json"
DAMAGE = {
    "absent": (lambda run: shutil.rmtree(run), "holds no run"),
    "empty": (lambda run: [shutil.rmtree(run), run.mkdir()], "holds no run"),
    "no data set": (lambda run: (run / DATASET).unlink(), DATASET),
    "no best": (lambda run: (run / "best.msgpack").unlink(), "reached a checkpoint"),
    "damaged best": (
        lambda run: (run / "best.msgpack").write_bytes(b"x" * 99),
        "best.msgpack is damaged",
    ),
    "another width": (
        lambda run: [without_notes(run), change(CONFIG, width=3)(run)],
        "best.msgpack does not fit",
    ),
    "another seed": (change(CONFIG, seed=1), "best.msgpack is of another run than"),
    "unknown field": (change(CONFIG, x=1), "unknown fields: x"),
    "bad value": (change(CONFIG, width=0), "--width must be"),
    "text classes": (change(DATASET, num_classes="9"), "dataset.json is damaged"),
    "text mean": (change(DATASET, mean="x"), "dataset.json is damaged"),
    "long mean": (change(DATASET, mean=[1, 1, 1]), "dataset.json is damaged"),
    "std NaN": (change(DATASET, std=[float("nan")]), "dataset.json is damaged"),
    "another std": (change(DATASET, std=[0.4]), "is not what best.msgpack was"),
    "no shape": (change(DATASET, image_shape=8), "dataset.json is damaged"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_bad_directory_is_a_sentence(copy, run, how):
    damage, message = DAMAGE[how]
    damage(copy)
    with pytest.raises(UserError) as error:
        training.load(copy)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert run("evaluate", copy, code=2) == f"training: {error.value}"


# -- The command line ------------------------------------------------------------------


def test_evaluate_prints_the_recorded_result(trained, run):
    shown = run("evaluate", trained.path)
    result = trained.result
    assert shown == (
        f"359 test images of digits: loss {result['test_loss']:.4f}  "
        f"accuracy {result['test_accuracy']:.2%}  "
        f"top-5 error {result['test_top5_error']:.2%}\n"
    )


def test_evaluation_is_from_logits(network, dataset):
    """Where probabilities underflow: the twin is a log-softmax in float64."""
    params = jax.tree.map(np.array, network.variables["params"])
    params["head"] = jax.tree.map(lambda x: 1000 * x, params["head"])
    variables = network.variables | {"params": params}
    sharp = dataclasses.replace(network, variables=variables)
    pixels = (dataset.test.images / 255.0 - network.mean) / network.std
    apply = jax.jit(functools.partial(network.module.apply, train=False))
    logits = np.asarray(apply(variables, pixels.astype(np.float32)), np.float64)
    losses = scipy.special.logsumexp(logits, axis=1)
    losses -= logits[range(len(logits)), dataset.test.labels]
    found = sharp.evaluate(dataset.test)
    assert found.loss > 100
    assert found.loss == pytest.approx(losses.mean(), rel=1e-4)


def test_evaluation_of_nothing_is_refused(network, dataset):
    with pytest.raises(ValueError, match="no examples to evaluate"):
        network.evaluate(data.Examples(*(x[:0] for x in dataset.test)))


def test_evaluate_takes_another_set_of_the_same_classes(
    trained, run, dataset, network, tmp_path
):
    images, labels = dataset.validation
    np.savez(
        tmp_path / "mine.npz",
        images=images,
        labels=labels,
        test_images=images[:50],
        test_labels=labels[:50],
    )
    shown = run("evaluate", trained.path, "--dataset", tmp_path / "mine.npz")
    accuracy = (network.predict(images[:50]).argmax(axis=1) == labels[:50]).mean()
    assert shown.startswith("50 test images of ")
    assert f"accuracy {accuracy:.2%}" in shown


def test_evaluate_refuses_the_runs_set_if_it_changed(trained, run, monkeypatch):
    dataset = trained.prepared.dataset
    part = dataset.train._replace(labels=9 - dataset.train.labels)
    changed = dataclasses.replace(dataset, train=part)
    monkeypatch.setattr(command, "load_data", lambda config: changed)
    message = run("evaluate", trained.path, code=2)
    assert "the labels of digits changed since" in message
    assert run("evaluate", trained.path, "--dataset", "digits").startswith("359 ")


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [((8, 8), 3, "has other classes than the run (3, not 10"), ((9, 8), 10, "[20, 9")],
)
def test_evaluate_refuses_other_sets(trained, run, tmp_path, shape, classes, message):
    path = tmp_path / "mine.npz"
    images = np.zeros((20 * classes, *shape), np.uint8)
    np.savez(path, images=images, labels=np.arange(20 * classes) % classes,
             test_images=images[:20], test_labels=np.arange(20) % classes)  # fmt: skip
    assert message in run("evaluate", trained.path, "--dataset", path, code=2)
    assert "absent" in run("evaluate", trained.path, "--dataset", "./absent", code=2)


def test_predict_prints_the_five_most_probable_classes(
    trained, run, network, dataset, tmp_path
):
    images = dataset.test.images[:2]
    paths = [tmp_path / "a.png", tmp_path / "b.bmp"]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    lines = run("predict", trained.path, *paths).splitlines()
    assert [lines[0], lines[6]] == [str(path) for path in paths]
    for start, probabilities in zip((1, 7), network.predict(images), strict=True):
        order = np.argsort(-probabilities)[:5]
        assert [line.split() for line in lines[start : start + 5]] == [
            [f"{probabilities[label]:.2%}", str(label)] for label in order
        ]


def test_predict_converts_colours_and_sizes(trained, run, dataset, network, tmp_path):
    """Sizes as training does."""
    image = dataset.test.images[0]
    colour = Image.fromarray(np.tile(image, 3))
    large = np.random.default_rng(0).integers(0, 256, (30, 50, 1)).astype(np.uint8)
    pictures = {
        "colour.png": (colour, image),
        "alpha.png": (colour.convert("RGBA"), image),
        "large.png": (Image.fromarray(large[..., 0]), resize(large, 8)),
    }
    for name, (picture, _) in pictures.items():
        picture.save(tmp_path / name)
    shown = run("predict", trained.path, *(tmp_path / name for name in pictures))
    pixels = np.stack([expected for _, expected in pictures.values()])
    for line, expected in zip(
        shown.splitlines()[1::6], network.predict(pixels), strict=True
    ):
        assert line.split() == [f"{expected.max():.2%}", str(expected.argmax())]


def test_predict_refuses_what_is_no_image(trained, run, tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    for place in (path, tmp_path / "absent.png", tmp_path):
        assert f"{place} cannot be read" in run("predict", trained.path, place, code=2)
    assert "name at least one image" in run("predict", trained.path, code=2)


def test_predict_refuses_channels_that_files_lack(copy, run, tmp_path):
    """A run on arrays of two channels, as far as prediction reads it."""
    channels = 2
    config = training.load(copy).config
    network = networks.make_network(config, 10, axis_name=None)
    images = np.zeros((1, 8, 8, channels), np.float32)
    variables = network.init(jax.random.key(0), images, train=False)
    write(copy / "best.msgpack", Checkpoint(variables, {}))
    some = channels * [0.5]
    change(DATASET, mean=some, std=some, image_shape=[8, 8, channels])(copy)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    message = run("predict", copy, tmp_path / "a.png", code=2)
    assert f"{channels} channels, which image files do not have" in message


# -- Starting from a run ---------------------------------------------------------------


@pytest.fixture
def start(trained, tmp_path, monkeypatch):
    """Runs ``train.py --start-from``; returns the configuration and its first state."""
    monkeypatch.setattr(recipe, "build", recipe.assemble)  # nothing is compiled

    def start(place, *argv):
        argv = ["--model=tiny", "--width=2", "--batch-size=64", *argv]
        (made,) = parse([*argv, "--start-from", str(place), "--workdir", str(tmp_path)])
        prepared = recipe.prepare(made)
        return made, prepared.engine.initial_state(0, prepared.given).variables

    return start


def test_a_run_starts_from_the_best_the_last_or_the_average(trained, start):
    last = sorted((trained.path / File.CHECKPOINTS).iterdir())[-1]
    state = read(last).tree["state"]
    kept = {
        trained.path: training.load(trained.path).variables,
        trained.path / File.AVERAGE: training.load(
            trained.path, average=True
        ).variables,
        last: {name: state[name] for name in ("params", "batch_stats")},
    }
    for place, expected in kept.items():
        made, variables = start(place)
        chex.assert_trees_all_equal(variables, expected)
        assert identity(made)["start_from"] == str(place)
    best = hashlib.sha256((trained.path / File.BEST).read_bytes()[32:])
    assert start(trained.path)[0].start_from_sha256 == best.hexdigest()


def test_a_run_starts_on_other_classes_and_another_split(
    trained, start, network, dataset, tmp_path, capsys
):
    few = dataset.train.labels < 3
    images, labels = dataset.train.images[few], dataset.train.labels[few]
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    _, variables = start(trained.path, "--dataset", str(tmp_path / "few.npz"))
    shown = capsys.readouterr().out
    assert "its head has other sizes and starts at random" in shown
    assert "it was trained on other class names and pixels" in shown
    assert variables["params"]["head"]["kernel"].shape[1] == 3
    rest = [dict(v["params"]) for v in (variables, network.variables)]
    for params in rest:
        del params["head"]
    chex.assert_trees_all_equal(*rest)
    start(trained.path, "--split-seed", "1")
    assert "on images of the validation part" in capsys.readouterr().out
    start(trained.path)
    assert "starting from" in (shown := capsys.readouterr().out)
    assert "trained on" not in shown


def test_a_start_that_does_not_fit_is_a_sentence(trained, start, copy, tmp_path):
    def refusal(*argv):
        with pytest.raises(UserError) as error:
            start(*argv)
        assert str(error.value).startswith("--start-from")
        return str(error.value)

    assert "choose the network of its config.json" in refusal(trained.path, "--width=3")
    assert "are missing, such as" in refusal(trained.path, "--model=resnet18")
    assert "holds no run" in refusal(tmp_path / "absent")
    assert "cannot be read" in refusal("~no-one/x")
    assert "not a file of variables" in refusal(trained.path / File.CONFIG)
    assert "leave one" in refusal(trained.path, "--cascade=conv")
    with pytest.raises(UserError, match="is the work directory, which would"):
        parse(["--start-from", str(copy), "--workdir", f"{copy}/"])
    content = (copy / File.BEST).read_bytes()
    (copy / File.BEST).write_bytes(content[:-1])
    assert "best.msgpack is damaged" in refusal(copy)
    (copy / File.BEST).unlink()
    assert "holds no run that has recorded an epoch" in refusal(copy)
    digest = ["--start-from-sha256", "0" * 64]
    assert "restore those that were meant" in refusal(trained.path, *digest)


def test_a_run_whose_start_is_gone_is_read(trained, copy, tmp_path, run):
    """Its configuration has the digest, which nothing needs to compute again."""
    argv = [*trained.argv, "--start-from", str(copy), "--workdir"]
    assert train.main([*argv, str(tmp_path / "next")]) == 0
    shutil.rmtree(copy)
    assert "start_from=" in run("compare", tmp_path / "next")
    assert "359 test images" in run("evaluate", tmp_path / "next")


# -- Comparing -------------------------------------------------------------------------


@pytest.fixture
def make_run(tmp_path):
    """Writes the records that comparing needs."""

    def make(name, argv, **result):
        path = tmp_path / name
        path.mkdir()
        (config,) = parse(argv)
        fields = identity(config)
        (path / "config.json").write_text(json.dumps(fields))
        if result:
            (path / "result.json").write_text(json.dumps(result))
        return path

    return make


def test_compare_groups_seeds(make_run, run):
    losses, accuracies = [0.5, 0.25, 0.75], [0.5, 0.75, 0.625]
    paths = [
        make_run(f"a{seed}", ["--seed", str(seed)], test_loss=x, test_accuracy=y)
        for seed, (x, y) in enumerate(zip(losses, accuracies, strict=True))
    ]
    paths += [make_run("b", ["--width", "4"], test_loss=0.1, test_accuracy=0.9)]
    lines = run("compare", *paths).splitlines()
    (defaults,) = (line for line in lines if "defaults" in line)
    cells = [cell.strip() for cell in defaults.strip("│").split("│")]
    deviation = statistics.stdev(accuracies)
    assert cells == [
        "1",
        "defaults",
        "3",
        f"62.50 ± {100 * deviation:.2f} %",
        f"0.5000 ± {statistics.stdev(losses):.4f}",
    ]
    (narrow,) = (line for line in lines if "width=4" in line)
    cells = [cell.strip() for cell in narrow.strip("│").split("│")]
    assert cells == ["2", "width=4", "1", "90.00 %", "0.1000"]
    cells = [cell.strip() for cell in lines[-2].strip("│").split("│")]
    assert cells == ["2 minus 1", "1", "+40.00", "-0.4000"]


def test_compare_pairs_seeds(make_run, run, tmp_path, capsys):
    """The twin is SciPy; a seed that one of the two lacks has no part in it."""
    rng = np.random.default_rng(0)
    losses = {name: rng.normal(1, 0.1, 5) for name in ("", "4", "8")}
    paths = [
        make_run(f"w{width}-{seed}",
                 [f"--seed={seed}", *(width and [f"--width={width}"])],
                 test_loss=loss, test_accuracy=loss / 4)
        for width, values in losses.items()
        for seed, loss in enumerate(values)
        if (width, seed) not in {("", 1), ("8", 0), ("8", 2), ("8", 3)}
    ]  # fmt: skip
    twice = shutil.copytree(paths[0], tmp_path / "twice")
    assert command.main(["compare", *map(str, paths), str(twice)]) == 0
    shown = capsys.readouterr()
    assert shown.err == (
        f"{twice} repeats the configuration and the seed of another run: left out\n"
    )
    rows = [line.strip("│").split("│") for line in shown.out.splitlines()]
    found = {row[0].strip(): [x.strip() for x in row[1:]] for row in rows}
    test = scipy.stats.ttest_rel(*(np.delete(losses[x], 1) for x in ("4", "")))
    low, high = test.confidence_interval()
    mean = (low + high) / 2
    assert found["2 minus 1"] == [
        "4",
        f"{25 * mean:+.2f} [{25 * low:+.2f}, {25 * high:+.2f}]",
        f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]",
    ]
    assert found["3 minus 1"][::2] == ["1", f"{losses['8'][4] - losses[''][4]:+.4f}"]


def test_compare_takes_what_results_hold(make_run, run):
    """A loss that is not finite is null; other data have no difference."""
    diverged = make_run("a", ["--seed", "1"], test_loss=None, test_accuracy=0.1)
    runs = [
        make_run(name, [f"--dataset={name}"], test_loss=1.0, test_accuracy=0.1)
        for name in ("digits", "cifar100")
    ]
    lines = run("compare", diverged, *runs).splitlines()
    (line,) = (line for line in lines if "defaults" in line)
    assert "10.00 ± 0.00 %" in line
    assert " nan " in line
    assert not any("minus" in line for line in lines)
    damaged = make_run("damaged", [], test_loss=1.0)
    assert f"{damaged / 'result.json'} has no test_" in run("compare", damaged, code=2)


def test_compare_shows_settings_complete_and_as_they_are(make_run, run, monkeypatch):
    """Paths that are alike but for their end, in a narrow terminal; no markup."""
    monkeypatch.setenv("COLUMNS", "60")
    ends = ("[red]a", "[/]b")
    paths = [
        make_run(
            str(n),
            ["--dataset", f"./{'x' * 90}{end}.npz"],
            test_loss=0.5,
            test_accuracy=0.5,
        )
        for n, end in enumerate(ends)
    ]
    lines = run("compare", *paths).splitlines()
    assert max(map(len, lines)) <= 60
    cells = [line.split("\u2502")[2].strip() for line in lines if "\u2502" in line]
    for end in ends:
        assert f"{'x' * 90}{end}.npz" in "".join(cells)


def test_compare_leaves_out_what_has_not_finished(make_run, run, tmp_path, capsys):
    good = make_run("a", [], test_loss=0.5, test_accuracy=0.5)
    others = [make_run("b", []), tmp_path / "absent"]
    assert command.main(["compare", str(good), *map(str, others)]) == 0
    shown = capsys.readouterr()
    assert "50.00 %" in shown.out
    assert shown.err.splitlines() == [
        f"{path} holds no finished run: left out" for path in others
    ]
    assert command.main(["compare", *map(str, others)]) == 2
    shown = capsys.readouterr()
    assert shown.err.endswith("training: none of these holds a finished run\n")


# -- The program -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_reader_of_predictions_may_leave(trained, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "training", "predict", trained.path]
    argv.append(tmp_path / "a.png")
    done = subprocess.run(
        argv, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
