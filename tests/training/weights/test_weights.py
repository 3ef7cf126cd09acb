"""Files of weights: what is read, what may differ, what is refused.

That the arrays reach the right places is shown by test_torch_parity.
"""

import dataclasses
import functools
import zipfile

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import models
from models import vit
from tests.models.test_torch_parity import by_reference
from tests.support.bad_inputs import assert_refused, contents
from tests.support.programs import DATASET
from training import recipe
from training.errors import ConfigError
from training.run.workdir import WorkDirectory
from training.settings import config
from training.start import initial_variables
from training.weights import files, fitting


@functools.cache
def shapes_of(model, classes=10, side=8, channels=1, **options):
    network = models.create(model, classes, **{"width": 2, **options})
    images = np.zeros((1, side, side, channels), np.float32)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), images, train=False)
    )
    return traverse_util.flatten_dict(shapes, sep="/")


@functools.cache
def state_of(model, **options):
    """A state as torchvision would save it; variances are positive."""
    rng = np.random.default_rng(0)
    shapes = shapes_of(model, **options)
    drawn = {path: rng.uniform(0.1, 1, like.shape) for path, like in shapes.items()}
    return by_reference(model, drawn)


def save(path, state):
    with zipfile.ZipFile(path, "w") as file:  # not savez, which is slower
        for name, array in state.items():
            with file.open(f"{name}.npy", "w") as entry:
                np.save(entry, np.asarray(array))
    return str(path)


def refuse(match, state, model="resnet18", **options):
    with pytest.raises(ValueError, match=match):
        fitting.convert(state, model, shapes_of(model, **options))


def refuse_file(match, path):
    with pytest.raises(ConfigError, match=match):
        files.read(str(path), files.digest(str(path)))


# -- Converting ------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "vit-tiny"])
def test_every_variable_has_an_array(model):
    values, notes = fitting.convert(state_of(model), model, shapes_of(model))
    assert notes == ()
    shapes = shapes_of(model)
    assert {p: (v.shape, v.dtype) for p, v in values.items()} == {
        p: (s.shape, s.dtype) for p, s in shapes.items()
    }


def test_projections_are_thirds_of_the_rows():
    values, _ = fitting.convert(state_of("vit-tiny"), "vit-tiny", shapes_of("vit-tiny"))
    layer = state_of("vit-tiny")
    whole = layer["encoder.layers.encoder_layer_3.self_attention.in_proj_weight"]
    at = "params/block3/attention"
    np.testing.assert_allclose(values[f"{at}/query/kernel"], whole[:6].T, rtol=1e-6)
    np.testing.assert_allclose(values[f"{at}/value/kernel"], whole[12:].T, rtol=1e-6)


def test_old_names_of_vision_transformers():
    state = state_of("vit-tiny")
    old = {
        name.replace(".mlp.0.", ".mlp.linear_1.").replace(
            ".mlp.3.", ".mlp.linear_2."
        ): x
        for name, x in state.items()
    }
    assert old.keys() != state.keys()
    shapes = shapes_of("vit-tiny")
    a, b = (fitting.convert(s, "vit-tiny", shapes).values for s in (old, state))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("model", "saved", "here", "left_out"),
    [
        ("resnet18", {"classes": 7}, {}, {"params/head/kernel", "params/head/bias"}),
        ("efficientnet-b0", {"channels": 3}, {}, {"params/stem/conv/kernel"}),
        ("vit-tiny", {"side": 16}, {}, set()),
        (
            "vit-tiny",
            {"stem": "imagenet", "side": 32},
            {},
            {"params/stem/patches/kernel"},
        ),
    ],
)
def test_what_may_differ(model, saved, here, left_out):
    shapes = shapes_of(model, **here)
    values, notes = fitting.convert(state_of(model, **saved), model, shapes)
    assert shapes.keys() - values.keys() == left_out
    names = {fitting.torch_name(model, path) for path in left_out}
    random = {n.split()[0] for n in notes if n.endswith("starts at random")}
    assert random == names
    assert all(values[path].shape == shapes[path].shape for path in values)


def test_positions_are_interpolated():
    """As Pillow does it; the class token's stays."""
    old, new = 4, 2
    state = dict(state_of("vit-tiny", side=4 * old))
    values, notes = fitting.convert(
        state, "vit-tiny", shapes_of("vit-tiny", side=4 * new)
    )
    before, after = (
        state["encoder.pos_embedding"][0],
        values["params/stem/positions"][0],
    )
    assert "is interpolated" in notes[0]
    np.testing.assert_allclose(after[0], before[0], rtol=1e-6)
    for c in range(6):
        grid = Image.fromarray(before[1:, c].reshape(old, old).astype(np.float32))
        grid = np.asarray(grid.resize((new, new), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(after[1:, c].reshape(new, new), grid, atol=1e-5)


def test_other_networks_are_refused():
    # Eight more blocks, of two kernels and two norms with four arrays each.
    refuse("80 arrays are unknown, such as layer1.2", state_of("resnet34"))
    refuse("missing, such as layer1.2", state_of("resnet18"), "resnet34")
    refuse("missing, .* and .* unknown", state_of("resnet18"), "vit-tiny")
    wide = state_of("resnet18", width=3)
    refuse(r"bn1.running_mean is \[3\] in the file and \[2\] here", wide)
    flat = state_of("resnet18") | {"layer2.0.conv1.weight": np.zeros((4, 18))}
    refuse(r"layer2.0.conv1.weight is \[4, 18\] in .* and \[4, 2, 3, 3\] here", flat)
    heads = state_of("resnet18") | {"fc.weight": np.zeros((10, 15))}
    refuse(r"fc.weight is \[10, 15\] in", heads)
    bent = state_of("vit-tiny") | {"encoder.pos_embedding": np.zeros((1, 8, 6))}
    refuse("do not form a square", bent, "vit-tiny")


# -- Reading ---------------------------------------------------------------------------


def test_safetensors_are_read_as_npz_is(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    state = state_of("resnet18") | {"bn1.num_batches_tracked": np.array(3)}
    paths = save(tmp_path / "a.npz", state), str(tmp_path / "a.safetensors")
    safetensors.save_file(
        {n: np.ascontiguousarray(x) for n, x in state.items()}, paths[1]
    )
    a, b = (files.read(path, files.digest(path)) for path in paths)
    assert a.keys() == b.keys() == state_of("resnet18").keys()
    jax.tree.map(np.testing.assert_array_equal, a, b)
    content = (tmp_path / "a.safetensors").read_bytes()
    for text in (b"", b"\0" * 99, content[:-1], content[8:], content[:300]):
        (tmp_path / "b.safetensors").write_bytes(text)
        refuse_file("is damaged or of another format", tmp_path / "b.safetensors")


def test_damaged_files_are_refused(tmp_path):
    good = save(tmp_path / "good.npz", {"a": np.ones(50)})
    content = (tmp_path / "good.npz").read_bytes()
    objects = save(tmp_path / "objects.npz", {"a": np.array([{}, None])})
    for number, text in enumerate(
        [b"", b"PK", content[:-30], content[:60], b"\0" * 99]
    ):
        (tmp_path / f"{number}.npz").write_bytes(text)
        refuse_file("is damaged or of another format", tmp_path / f"{number}.npz")
    refuse_file("allow_pickle=False", objects)
    with pytest.raises(ConfigError, match="SHA-256 digest"):
        files.read(good, "0" * 64)
    for array, match in (
        (np.arange(3), "a is of type int"),
        (np.array(["b"]), "a is of type <U1"),
        (np.array([1, np.nan]), "a is not finite"),
        (np.array([[np.inf]]), "a is not finite"),
    ):
        bad = save(tmp_path / "bad.npz", {"a": array})
        refuse_file(match, bad)


# -- The program -----------------------------------------------------------------------

VIT = ["--model=vit-tiny", "--width=2", "--method=sgd", "--batch-size=512"]


def test_a_run_starts_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shallow = (vit.ViT, {"num_heads": 3, "depth": 1})
    monkeypatch.setitem(vit.VARIANTS, "vit-tiny", shallow)
    state = state_of("vit-tiny", classes=3)
    save("first.npz", state)
    argv = [*VIT, "--initial-weights=first.npz", "--epochs=1", "--workdir=run"]
    (parsed,) = config.parse(argv)
    monkeypatch.setattr(recipe, "build", recipe.assemble)  # nothing is compiled
    prepared = recipe.prepare(parsed)
    assert "heads.head.bias is [3] in the file and [10] here" in capsys.readouterr().out
    for _ in range(2):  # although each step donates its state
        start = prepared.engine.initial_state(0, prepared.given)
        np.testing.assert_array_equal(
            start.params["norm"]["scale"], state["encoder.ln.weight"].astype(np.float32)
        )
        drawn = start.params["head"]["kernel"]
        assert drawn.shape == (6, 10)
        assert np.abs(drawn).max() <= 6**-0.5
        jax.block_until_ready(jax.jit(lambda s: s, donate_argnums=0)(start))
    with WorkDirectory(parsed) as directory:
        directory.start(prepared.dataset)

    # The same file is needed to go on, also as the configuration of another run.
    save("first.npz", state | {"encoder.ln.bias": np.zeros(6)})
    assert_refused(argv, ["initial_weights_sha256 is"])
    again = ["--config=run/config.json", "--seed=1"]
    assert_refused(again, ["has the SHA-256 digest"])
    (other,) = config.parse([*again, "--initial-weights=first.npz"])
    assert other.initial_weights_sha256 == files.digest("first.npz")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent.npz", "cannot be read (No such file or directory)"),
        ("weights.pth", "must end in .npz or .safetensors"),
        ("resnet18.npz", "does not fit --model vit-tiny --width 2"),
    ],
)
def test_bad_files_are_refused(name, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("resnet18.npz", state_of("resnet18"))
    assert contents(".")
    assert_refused([*VIT, f"--initial-weights={name}"], [sentence])


def test_images_that_are_not_square(tmp_path):
    path = save(tmp_path / "a.npz", state_of("vit-tiny"))
    (parsed,) = config.parse([*VIT, f"--initial-weights={path}"])
    wide = DATASET.train._replace(images=np.zeros((64, 4, 16, 1), np.uint8))
    with pytest.raises(ConfigError, match="these 4 x 16"):
        initial_variables(parsed, dataclasses.replace(DATASET, train=wide))
