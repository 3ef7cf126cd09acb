"""The data room: sets, splits, augmentation, and every way of getting CIFAR."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from training import data, errors
from training.data import _cifar_builder, _cifar_prepare

# --- Splits -------------------------------------------------------------------------


def _rows(examples):
    """Returns the images as a sorted list of bytes, to compare as multisets."""
    return sorted(image.tobytes() for image in examples.images)


def test_stratified_split_is_exact_and_covers():
    labels = np.random.default_rng(0).integers(0, 7, 1001)
    kept, drawn = data.stratified_split(labels, 0.3, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, drawn])), range(1001))
    assert len(drawn) == 300
    counts = np.bincount(labels[drawn], minlength=7)
    np.testing.assert_array_less(np.abs(counts - 0.3 * np.bincount(labels)), 1)


def test_stratified_split_follows_its_seed_and_nothing_else():
    labels = np.repeat(np.arange(5), 20)
    np.random.seed(1)
    first = data.stratified_split(labels, 0.2, seed=0)[1]
    np.random.seed(2)
    np.testing.assert_array_equal(first, data.stratified_split(labels, 0.2, seed=0)[1])
    assert set(first) != set(data.stratified_split(labels, 0.2, seed=1)[1])
    # Drawn at random, not from one end of each class.
    assert 0 < np.mean(first % 20 < 10) < 1


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_stratified_split_at_its_ends(fraction):
    labels = np.repeat(np.arange(3), 4)
    kept, drawn = data.stratified_split(labels, fraction, seed=0)
    assert (len(kept), len(drawn)) == ((12, 0) if fraction == 0 else (0, 12))


# --- Digits, and what `load` makes of a set -----------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_facts(digits):
    assert (digits.name, digits.num_classes) == ("digits", 10)
    assert digits.label_names == tuple("0123456789")
    sizes = [len(p.labels) for p in (digits.train, digits.validation, digits.test)]
    assert sizes == [1150, 288, 359]
    assert sum(sizes) == 1797
    for part in (digits.train, digits.validation, digits.test):
        assert part.images.shape == (len(part.labels), 8, 8, 1)
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int32
        shares = np.bincount(part.labels) / len(part.labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)
    assert digits.train.images.max() == 240
    assert (digits.crop_padding, digits.flips) == (1, False)


def test_digits_test_set_never_moves(digits):
    # If this fails, results of different versions are on different test sets.
    digest = hashlib.sha256(digits.test.images.tobytes()).hexdigest()
    assert digest.startswith("e0e538334c50208b")
    np.testing.assert_array_equal(digits.test.labels[:8], [3, 7, 3, 9, 0, 8, 7, 0])


def test_parts_are_disjoint_and_cover(digits):
    whole = data.load("digits", validation_fraction=0)
    assert len(whole.validation.labels) == 0
    assert whole.validation.images.shape == (0, 8, 8, 1)
    assert _rows(whole.train) == sorted(_rows(digits.train) + _rows(digits.validation))
    assert not set(_rows(digits.train)) & set(_rows(digits.validation))
    assert not set(_rows(whole.train)) & set(_rows(digits.test))


def test_validation_follows_the_split_seed(digits):
    again = data.load("digits")
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    np.testing.assert_array_equal(again.validation.labels, digits.validation.labels)
    other = data.load("digits", split_seed=1)
    assert _rows(other.validation) != _rows(digits.validation)
    np.testing.assert_array_equal(other.test.images, digits.test.images)


def test_statistics_come_from_the_training_part_alone(digits):
    pixels = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(digits.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert digits.mean.dtype == digits.std.dtype == np.float32
    # Those of all that is not the test set differ by far more than the tolerance.
    whole = data.load("digits", validation_fraction=0)
    assert abs(whole.mean[0] / digits.mean[0] - 1) > 1e-5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "mnist"}, "digits, cifar10, cifar100"),
        ({"name": "digits", "validation_fraction": 1.0}, r"1\.0.*\[0, 1\)"),
        ({"name": "digits", "validation_fraction": float("nan")}, "nan"),
        ({"name": "digits", "validation_fraction": 0.9999}, "nothing of digits"),
        ({"name": "digits", "split_seed": -1}, "-1"),
    ],
)
def test_wrong_arguments_are_user_errors(arguments, words):
    with pytest.raises(errors.UserError, match=words):
        data.load(**arguments)


def test_importing_the_room_imports_no_data_library():
    heavy = ["sklearn", "tensorflow_datasets", "PIL", "requests", "tensorflow"]
    code = (
        "import sys; from training import data; "
        f"print([m for m in {heavy} if m in sys.modules]); "
        "data.load('digits'); "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == ["[]", "['sklearn']"]
    assert run.stderr == ""


# --- Normalisation and augmentation -------------------------------------------------


def _images(count=24, side=8, channels=3, seed=0):
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_is_the_formula(dtype):
    images = _images()
    mean, std = np.float32([0.1, 0.5, 0.9]), np.float32([0.2, 0.3, 0.4])
    out = jax.jit(data.normalize, static_argnums=3)(images, mean, std, dtype)
    assert out.dtype == dtype
    want = (images / 255.0 - mean) / std
    rtol = 1e-5 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(out, np.float64), want, rtol, atol=1e-6)


def test_normalized_training_part_has_mean_0_and_deviation_1(digits):
    out = np.asarray(data.normalize(digits.train.images, digits.mean, digits.std))
    np.testing.assert_allclose(out.mean(), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(), 1, atol=1e-4)


def _augment_literally(key, images, positions, crop_padding, flips):
    """The same, one image at a time in NumPy; only the draws come from JAX."""
    results = []
    for image, position in zip(images, positions, strict=True):
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
        edge = crop_padding
        padded = np.zeros(np.add(image.shape, (2 * edge, 2 * edge, 0)), image.dtype)
        height, width = image.shape[:2]
        padded[edge : edge + height, edge : edge + width] = image
        row, column = 0, 0
        if crop_padding:
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * edge + 1)
        image = padded[row : row + height, column : column + width]
        if flips and jax.random.bernoulli(flip_key):
            image = np.flip(image, axis=1)
        results.append(image)
    return np.stack(results)


@pytest.mark.parametrize("crop_padding", [0, 2])
@pytest.mark.parametrize("flips", [False, True])
def test_augment_equals_its_literal_twin(crop_padding, flips):
    key, images, positions = jax.random.key(5), _images(), np.arange(100, 124)
    options = {"crop_padding": crop_padding, "flips": flips}
    out = data.augment(key, images, positions, **options)
    assert out.dtype == np.uint8
    want = _augment_literally(key, images, positions, **options)
    np.testing.assert_array_equal(out, want)
    changed = bool(crop_padding or flips)
    assert np.any(want != images) == changed


def test_augment_does_not_depend_on_how_the_batch_is_cut():
    key, images, positions = jax.random.key(1), _images(), np.arange(24)

    def augment(images, positions):
        return data.augment(key, images, positions, crop_padding=1, flips=True)

    whole = augment(images, positions)
    halves = [augment(images[p], p) for p in np.split(positions, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    devices = 4
    mapped = jax.pmap(augment)(
        images.reshape(devices, -1, *images.shape[1:]), positions.reshape(devices, -1)
    )
    np.testing.assert_array_equal(whole, np.asarray(mapped).reshape(whole.shape))
    # Without their own positions, both halves would get the same draws.
    assert np.any(np.asarray(augment(images[12:], positions[:12])) != whole[12:])


def test_crops_reach_every_window_and_pad_with_black():
    image = np.arange(1, 17, dtype=np.uint8).reshape(1, 4, 4, 1)
    images = np.repeat(image, 500, axis=0)
    out = data.augment(
        jax.random.key(0), images, np.arange(500), crop_padding=1, flips=False
    )
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    windows = {
        padded[r : r + 4, c : c + 4].tobytes(): 0 for r in range(3) for c in range(3)
    }
    for crop in np.asarray(out):
        windows[crop.tobytes()] += 1  # A KeyError here is a crop that is no window.
    # Each has probability 1/9: 55.6 +- 7.0 of 500.
    assert min(windows.values()) > 25
    assert max(windows.values()) < 90


def test_half_of_the_images_are_mirrored_left_to_right():
    images = np.repeat(_images(1), 500, axis=0)
    out = np.asarray(
        data.augment(
            jax.random.key(0), images, np.arange(500), crop_padding=0, flips=True
        )
    )
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    untouched = (out == images).all((1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert 190 < mirrored.sum() < 310  # 250 +- 11


def test_another_key_augments_otherwise():
    images, positions = _images(), np.arange(24)
    one, two = (
        data.augment(jax.random.key(s), images, positions, crop_padding=1, flips=True)
        for s in (0, 1)
    )
    assert np.any(one != two)


# --- CIFAR, on small archives in the official format --------------------------------

_LAYOUTS = {
    "cifar10": {
        "folder": "cifar-10-batches-bin",
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
        "labels": [("batches.meta.txt", 10)],
        "archive": "cifar-10-binary.tar.gz",
    },
    "cifar100": {
        "folder": "cifar-100-binary",
        "train": ["train.bin"],
        "test": ["test.bin"],
        "labels": [("coarse_label_names.txt", 20), ("fine_label_names.txt", 100)],
        "archive": "cifar-100-binary.tar.gz",
    },
}


def _write_archive(path, name, counts=(200, 100)):
    """Writes an archive in the official binary format and returns what is in it."""
    layout, generator = _LAYOUTS[name], np.random.default_rng(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {}
    with tarfile.open(path, "w:gz") as tar:

        def add(file, text):
            member = tarfile.TarInfo(f"{layout['folder']}/{file}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))

        for file, classes in layout["labels"]:
            add(file, "".join(f"{file[0]}{i}\n" for i in range(classes)).encode())
        for part, count in zip(("train", "test"), counts, strict=True):
            images = generator.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
            labels = np.stack(
                [generator.integers(0, n, count) for _, n in layout["labels"]], 1
            ).astype(np.uint8)
            planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
            rows = np.concatenate([labels, planes], 1)
            for file, block in zip(
                layout[part], np.split(rows, len(layout[part])), strict=True
            ):
                add(file, block.tobytes())
            contents[part] = data.Examples(images, labels[:, -1].astype(np.int32))
    return contents


def _by_hand(root, name="cifar100"):
    return root / "downloads" / "manual" / _LAYOUTS[name]["archive"]


def _register(monkeypatch, root, name="cifar100", url=None):
    """Registers the archive under ``root`` in the place of the official one."""
    builder = _cifar_builder.BUILDERS[name]
    ((_, official),) = builder.url_infos.items()
    archive = _by_hand(root, name)
    info = dataclasses.replace(
        official,
        size=archive.stat().st_size,
        checksum=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    # Nothing listens at port 9 of this machine, and no proxy stands before it.
    url = url or f"http://127.0.0.1:9/{archive.name}"
    monkeypatch.setattr(builder, "url_infos", {url: info})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _prepared(root, name="cifar100"):
    return root / name / "3.0.2"


def _assert_holds(dataset, contents):
    np.testing.assert_array_equal(dataset.train.images, contents["train"].images)
    np.testing.assert_array_equal(dataset.train.labels, contents["train"].labels)
    np.testing.assert_array_equal(dataset.test.images, contents["test"].images)
    np.testing.assert_array_equal(dataset.test.labels, contents["test"].labels)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A directory with a small CIFAR-100 and its archive, and what is in them."""
    root = tmp_path_factory.mktemp("original")
    contents = _write_archive(_by_hand(root), "cifar100")
    with pytest.MonkeyPatch.context() as patch:
        _register(patch, root)
        data.load("cifar100", data_dir=root)
    return root, contents


@pytest.fixture
def with_archive(tmp_path, original, monkeypatch):
    """A data directory with a hand-placed archive, which counts as the official one."""
    _by_hand(tmp_path).parent.mkdir(parents=True)
    shutil.copy(_by_hand(original[0]), _by_hand(tmp_path))
    _register(monkeypatch, tmp_path)
    return tmp_path


def test_official_archives_are_the_registered_ones():
    found = {
        name: next(iter(builder.url_infos.items()))
        for name, builder in _cifar_builder.BUILDERS.items()
    }
    for name, (url, info) in found.items():
        archive = _LAYOUTS[name]["archive"]
        assert url == f"https://www.cs.toronto.edu/~kriz/{archive}"
        assert info.filename == archive
    assert found["cifar10"][1].checksum.startswith("c4a38c50a1bc5f3a1c5537f2155ab9d6")
    assert found["cifar100"][1].checksum.startswith("58a81ae192c23a4be8b1804d68e518ed")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_a_hand_placed_archive(name, tmp_path, monkeypatch):
    contents = _write_archive(_by_hand(tmp_path, name), name)
    _register(monkeypatch, tmp_path, name)
    first = data.load(name, data_dir=tmp_path, validation_fraction=0)
    _assert_holds(first, contents)
    assert (first.crop_padding, first.flips) == (4, True)
    classes = _LAYOUTS[name]["labels"][-1][1]
    assert first.num_classes == len(first.label_names) == classes
    letter = _LAYOUTS[name]["labels"][-1][0][0]
    assert first.label_names[3] == f"{letter}3"
    # From here on the archive is not needed.
    _by_hand(tmp_path, name).unlink()
    _assert_holds(data.load(name, data_dir=tmp_path, validation_fraction=0), contents)


def test_validation_part_of_cifar(original):
    root, contents = original
    dataset = data.load("cifar100", data_dir=str(root))
    assert len(dataset.train.labels) == 160
    both = _rows(dataset.train) + _rows(dataset.validation)
    assert sorted(both) == _rows(contents["train"])
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-5)


def test_prepared_set_is_the_stock_one(original):
    builder = tfds.builder("cifar100", data_dir=original[0], file_format="array_record")
    assert builder.is_prepared()
    assert builder.info.full_name == "cifar100/3.0.2"
    record = builder.as_data_source("test")[0]
    assert sorted(record) == ["coarse_label", "id", "image", "label"]
    position = int(record["id"].removeprefix(b"test_"))
    np.testing.assert_array_equal(record["image"], original[1]["test"].images[position])


def test_default_directory_is_created(tmp_path, original, monkeypatch):
    root = tmp_path / "new"
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(root))
    _register(monkeypatch, original[0])
    with pytest.raises(errors.DataError, match="cannot be reached"):
        data.load("cifar100")
    shutil.copytree(_prepared(original[0]), _prepared(root))
    assert len(data.load("cifar100").test.labels) == 100


def test_wrong_checksum_names_both(tmp_path):
    # Nothing is registered here: this is not the official archive.
    _write_archive(_by_hand(tmp_path), "cifar100", (5, 5))
    found = hashlib.sha256(_by_hand(tmp_path).read_bytes()).hexdigest()
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=tmp_path)
    for part in (str(_by_hand(tmp_path)), found, "58a81ae192c23a4be8b1804d68e518ed"):
        assert part in str(caught.value)
    assert "put the archive" not in str(caught.value)  # It has been put there.
    assert not _prepared(tmp_path).exists()


@pytest.mark.parametrize("content", [b"not an archive", None])
def test_unreadable_archive(content, with_archive, monkeypatch):
    archive = _by_hand(with_archive)
    archive.write_bytes(archive.read_bytes()[:50_000] if content is None else content)
    _register(monkeypatch, with_archive)
    with pytest.raises(errors.DataError, match=f"{archive.name} cannot be read"):
        data.load("cifar100", data_dir=with_archive)
    assert not _prepared(with_archive).exists()


# --- CIFAR and the network, all of it on this machine ---------------------------------


def test_no_network_is_told_at_once(with_archive):
    place = _by_hand(with_archive)
    place.unlink()
    start = time.monotonic()
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=with_archive)
    assert time.monotonic() - start < 10
    for part in (f"http://127.0.0.1:9/{place.name}", str(place), "--data-dir"):
        assert part in str(caught.value)
    assert not _prepared(with_archive).exists()


def test_a_name_that_is_looked_up_for_ever_is_given_up(with_archive, monkeypatch):
    assert _cifar_prepare._PROBE_SECONDS < 9
    monkeypatch.setattr(_cifar_prepare, "_PROBE_SECONDS", 0.3)
    done = threading.Event()

    def hang(*_, **__):
        done.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    _by_hand(with_archive).unlink()
    start = time.monotonic()
    with pytest.raises(errors.DataError, match=r"no answer in 0\.3 s"):
        data.load("cifar100", data_dir=with_archive)
    assert time.monotonic() - start < 5
    done.set()


@pytest.fixture
def serve():
    """Serves one answer to every request: a status, a body, and a wait before both."""
    servers = []

    def serve(body, status=200, wait=0.0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(wait)
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # The other side has seen enough.

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        return f"http://127.0.0.1:{server.server_port}/cifar-100-binary.tar.gz"

    def stop():
        while servers:
            server = servers.pop()
            server.shutdown()
            server.server_close()

    serve.stop = stop
    yield serve
    stop()


@pytest.fixture
def to_download(with_archive, serve, monkeypatch):
    """Serves the archive instead of having it by hand."""

    def to_download(body=None, **answer):
        official = _by_hand(with_archive).read_bytes()
        url = serve(official if body is None else body, **answer)
        _register(monkeypatch, with_archive, url=url)
        _by_hand(with_archive).unlink()
        return with_archive

    return to_download


def test_cifar_is_downloaded_once(to_download, original, serve):
    root = to_download()
    dataset = data.load("cifar100", data_dir=root, validation_fraction=0)
    _assert_holds(dataset, original[1])
    serve.stop()
    shutil.rmtree(_prepared(root))
    _assert_holds(
        data.load("cifar100", data_dir=root, validation_fraction=0), original[1]
    )
    # Nor is a download trusted for ever.
    shutil.rmtree(_prepared(root))
    (downloaded,) = (root / "downloads" / "cifar100").glob("*.tar.gz")
    downloaded.write_bytes(b"damaged")
    with pytest.raises(errors.DataError, match="has the SHA-256") as caught:
        data.load("cifar100", data_dir=root)
    assert str(downloaded) in str(caught.value)


def test_a_slow_server_is_waited_for(to_download, original, monkeypatch):
    monkeypatch.setattr(_cifar_prepare, "_CONNECT_SECONDS", 0.1)
    root = to_download(wait=0.5)
    dataset = data.load("cifar100", data_dir=root, validation_fraction=0)
    _assert_holds(dataset, original[1])


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_without_the_archive_is_not_asked_again(status, to_download):
    root = to_download(b"", status=status)
    start = time.monotonic()
    with pytest.raises(errors.DataError, match=f"HTTP {status}"):
        data.load("cifar100", data_dir=root)
    assert time.monotonic() - start < 10


def test_a_wrong_download_is_refused(to_download):
    root = to_download(b"<html>Please log in</html>")
    with pytest.raises(errors.DataError, match="not the registered archive"):
        data.load("cifar100", data_dir=root)
    assert not _prepared(root).exists()


# --- CIFAR, interrupted and damaged ---------------------------------------------------


def _breaking_off(how):
    whole = _cifar_builder.BUILDERS["cifar100"]._generate_examples

    def generate(*arguments):
        for index, example in whole(*arguments):
            if index == 50:
                how()
            yield index, example

    return generate


def test_interrupted_preparation_leaves_nothing(with_archive, original, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    builder = _cifar_builder.BUILDERS["cifar100"]
    with monkeypatch.context() as patch:
        patch.setattr(builder, "_generate_examples", _breaking_off(interrupt))
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar100", data_dir=with_archive)
    assert not _prepared(with_archive).exists()
    dataset = data.load("cifar100", data_dir=with_archive, validation_fraction=0)
    _assert_holds(dataset, original[1])


def test_killed_preparation_leaves_no_set(with_archive, original):
    code = (
        "import os, pathlib, sys; from tests import test_data as t; import pytest; "
        "root = pathlib.Path(sys.argv[1]); patch = pytest.MonkeyPatch(); "
        "t._register(patch, root); builder = t._cifar_builder.BUILDERS['cifar100']; "
        "builder._generate_examples = t._breaking_off(lambda: os._exit(9)); "
        "t.data.load('cifar100', data_dir=root)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(with_archive)],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 9
    assert list((with_archive / "cifar100").iterdir())  # It had begun,
    assert not _prepared(with_archive).exists()  # under another name.
    dataset = data.load("cifar100", data_dir=with_archive, validation_fraction=0)
    _assert_holds(dataset, original[1])


def test_another_process_may_finish_first(with_archive, original, monkeypatch):
    def finish():
        if not _prepared(with_archive).exists():
            shutil.copytree(_prepared(original[0]), _prepared(with_archive))

    builder = _cifar_builder.BUILDERS["cifar100"]
    monkeypatch.setattr(builder, "_generate_examples", _breaking_off(finish))
    dataset = data.load("cifar100", data_dir=with_archive, validation_fraction=0)
    _assert_holds(dataset, original[1])


def _shard(directory, part="train"):
    (shard,) = directory.glob(f"cifar100-{part}*")
    return shard


def _truncate(directory):
    shard = _shard(directory)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def _flip_bits(directory):
    shard = _shard(directory, "test")
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0xFF
    shard.write_bytes(content)


def _edit_info(edit):
    def damage(directory):
        path = directory / "dataset_info.json"
        info = json.loads(path.read_text())
        edit(info)
        path.write_text(json.dumps(info))

    return damage


def _forget_records(info):
    # All records can be read, but ten of the set are left out.
    info["splits"][0]["shardLengths"] = [
        str(int(info["splits"][0]["shardLengths"][0]) - 10)
    ]


def _repeat_records(directory):
    # Two shards in name, each the first half of the same file.
    shard = _shard(directory)
    for half in ("00000-of-00002", "00001-of-00002"):
        shutil.copy(shard, str(shard).replace("00000-of-00001", half))

    def edit(info):
        (part,) = (part for part in info["splits"] if part["name"] == "train")
        part["shardLengths"] = ["100", "100"]

    _edit_info(edit)(directory)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip_bits,
        lambda directory: _shard(directory, "test").unlink(),
        lambda directory: (directory / "dataset_info.json").unlink(),
        lambda directory: (directory / "dataset_info.json").write_text('{"name": "c'),
        lambda directory: (directory / "features.json").write_text("[]"),
        _edit_info(_forget_records),
        _repeat_records,
        _edit_info(lambda info: info.update(fileFormat="tfrecord")),
    ],
    ids=[
        "truncated",
        "flipped",
        "no-shard",
        "no-info",
        "half-info",
        "features",
        "too-few",
        "repeated",
        "tfrecord",
    ],
)
def test_damaged_set_is_named(damage, tmp_path, original):
    directory = _prepared(tmp_path)
    shutil.copytree(_prepared(original[0]), directory)
    assert len(data.load("cifar100", data_dir=tmp_path).test.labels) == 100
    damage(directory)
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=tmp_path)
    assert f"The prepared set in {directory} cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unusable_data_directories(tmp_path, with_archive, monkeypatch):
    with pytest.raises(errors.DataError, match="absent does not exist"):
        data.load("cifar100", data_dir=tmp_path / "absent")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(errors.DataError, match="file is not a directory"):
        data.load("cifar100", data_dir=file)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(errors.DataError, match="cannot be written"):
        data.load("cifar100", data_dir=with_archive)


def test_failure_to_write_is_told(with_archive):
    (with_archive / "cifar100").touch()  # In the way of the directory.
    with pytest.raises(errors.DataError, match="cannot be prepared in"):
        data.load("cifar100", data_dir=with_archive)
