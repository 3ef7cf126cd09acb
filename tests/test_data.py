"""The data room: sets, splits, augmentation, and every way of getting CIFAR."""

import contextlib
import dataclasses
import fcntl
import hashlib
import http.server
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from training import data, errors
from training.data import _cifar_builder, _download

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


def test_part_of_the_training_part(digits):
    part = data.load("digits", train_fraction=0.25)
    assert len(part.train.labels) == round(0.25 * len(digits.train.labels))
    assert set(_rows(part.train)) < set(_rows(digits.train))
    whole, quarter = (np.bincount(d.train.labels) for d in (digits, part))
    assert np.abs(quarter - whole / 4).max() < 1
    # What runs are chosen and judged by stays the same.
    np.testing.assert_array_equal(part.validation.images, digits.validation.images)
    np.testing.assert_array_equal(part.test.images, digits.test.images)
    pixels = part.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(part.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    other = data.load("digits", train_fraction=0.25, split_seed=1)
    assert _rows(other.train) != _rows(part.train)


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
        ({"name": "digits", "train_fraction": 0.0}, r"0\.0.*\(0, 1\]"),
        ({"name": "digits", "train_fraction": 1.5}, r"1\.5.*\(0, 1\]"),
        ({"name": "digits", "train_fraction": 1e-4}, "nothing of digits"),
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
    assert builder.info.download_size == _by_hand(original[0]).stat().st_size
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
    assert time.monotonic() - start < 8
    for part in (f"http://127.0.0.1:9/{place.name}", str(place), "--data-dir"):
        assert part in str(caught.value)
    assert not _prepared(with_archive).exists()
    assert not list(place.parent.iterdir())


def test_a_name_that_is_looked_up_for_ever_is_given_up(with_archive, monkeypatch):
    assert _download._PROBE_SECONDS < 8
    monkeypatch.setattr(_download, "_PROBE_SECONDS", 0.3)
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


class _Server(http.server.ThreadingHTTPServer):
    """Serves one body, and can be told to do it badly.

    Attributes:
      body: what is served under every path.
      status: of every answer.
      wait: seconds before every answer.
      ranges: whether a request for a range is understood.
      cut: bytes of the next body after which the connection ends, if not None.
      before_cut: called at that point.
      asked: the range asked for and the bytes sent, of each GET.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.status, self.wait = b"", 200, 0.0
        self.ranges, self.cut, self.before_cut = True, None, lambda: None
        self.asked = []
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/cifar-100-binary.tar.gz"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(headers_only=True)

    def do_GET(self):
        self._answer()

    def _answer(self, headers_only=False):
        server, asked = self.server, self.headers["Range"]
        time.sleep(server.wait)
        body, status, cut = server.body, server.status, None
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            body = body[start:]
        if not headers_only:
            cut, server.cut = server.cut, None
            server.asked.append((asked, len(body[:cut])))
        with contextlib.suppress(OSError):  # The other side has seen enough.
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            # What some servers say of every file called .gz.
            self.send_header("Content-Encoding", "x-gzip")
            self.end_headers()
            if not headers_only:
                self.wfile.write(body[:cut])
            if cut is not None:
                server.before_cut()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = _Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def to_download(with_archive, server, monkeypatch):
    """A data directory whose archive is served instead of lying there."""
    server.body = _by_hand(with_archive).read_bytes()
    _register(monkeypatch, with_archive, url=server.url)
    _by_hand(with_archive).unlink()
    return with_archive


def _part(root):
    return _by_hand(root).with_name("cifar-100-binary.tar.gz.part")


def _assert_arrives(root, contents):
    """Asserts that the set can be had now and that nothing unfinished is left."""
    dataset = data.load("cifar100", data_dir=root, validation_fraction=0)
    _assert_holds(dataset, contents)
    assert list(_by_hand(root).parent.iterdir()) == [_by_hand(root)]


def test_cifar_is_downloaded_once(to_download, original, server):
    _assert_arrives(to_download, original[1])
    assert server.asked == [(None, len(server.body))]
    shutil.rmtree(_prepared(to_download))
    _assert_arrives(to_download, original[1])
    assert len(server.asked) == 1
    # Nor is a download trusted for ever.
    shutil.rmtree(_prepared(to_download))
    _by_hand(to_download).write_bytes(b"damaged")
    with pytest.raises(errors.DataError, match="has the SHA-256") as caught:
        data.load("cifar100", data_dir=to_download)
    assert str(_by_hand(to_download)) in str(caught.value)


def test_a_slow_server_is_waited_for(to_download, original, server, monkeypatch):
    monkeypatch.setattr(_download, "_CONNECT_SECONDS", 0.1)
    server.wait = 0.5
    _assert_arrives(to_download, original[1])


def _assert_goes_on(root, contents, server):
    """Asserts that a part is there, and that only the rest of it is asked for."""
    kept = _part(root).stat().st_size
    assert 0 < kept < len(server.body)
    assert _part(root).read_bytes() == server.body[:kept]
    assert not _by_hand(root).exists()
    server.asked.clear()
    _assert_arrives(root, contents)
    assert server.asked == [(f"bytes={kept}-", len(server.body) - kept)]


def test_a_cut_download_goes_on_where_it_was(to_download, original, server):
    server.cut = len(server.body) // 2
    with pytest.raises(errors.DataError, match="goes on from there") as caught:
        data.load("cifar100", data_dir=to_download)
    for part in (server.url, "broke off", str(_by_hand(to_download)), "--data-dir"):
        assert part in str(caught.value)
    _assert_goes_on(to_download, original[1], server)


def test_a_stalled_download_is_given_up_and_goes_on(
    to_download, original, server, monkeypatch
):
    monkeypatch.setattr(_download, "_STALL_SECONDS", 0.3)
    server.cut = len(server.body) // 2
    told = threading.Event()
    server.before_cut = lambda: told.wait(20)
    start = time.monotonic()
    with pytest.raises(errors.DataError, match=r"nothing came for 0\.3 s.*goes on"):
        data.load("cifar100", data_dir=to_download)
    assert time.monotonic() - start < 5
    told.set()
    _assert_goes_on(to_download, original[1], server)


def test_one_interrupt_stops_a_download_and_keeps_it(to_download, original, server):
    server.cut = len(server.body) // 2
    told = threading.Event()
    sent = []

    def interrupt():
        time.sleep(0.1)  # For the other side to wait for more.
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        told.wait(20)

    server.before_cut = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar100", data_dir=to_download)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - sent[0] < 2
    told.set()
    _assert_goes_on(to_download, original[1], server)


def test_a_server_without_ranges_is_asked_for_all(to_download, original, server):
    _part(to_download).write_bytes(b"x" * 1000)
    server.ranges = False
    _assert_arrives(to_download, original[1])
    assert server.asked == [("bytes=1000-", len(server.body))]


def test_a_refused_range_starts_anew(to_download, original, server):
    size = len(server.body) + 1
    _part(to_download).write_bytes(b"x" * size)
    _assert_arrives(to_download, original[1])
    assert server.asked == [(f"bytes={size}-", 0), (None, len(server.body))]


def test_a_complete_part_is_only_verified(to_download, original, server):
    _part(to_download).write_bytes(server.body)
    _assert_arrives(to_download, original[1])
    assert server.asked == []


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("kept", [b"", b"begun"])
def test_a_server_without_the_archive_is_not_asked_again(
    status, kept, to_download, server
):
    if kept:
        _part(to_download).write_bytes(kept)
    server.status, server.ranges, server.body = status, False, b"No such page"
    with pytest.raises(errors.DataError, match=f"HTTP {status}") as caught:
        data.load("cifar100", data_dir=to_download)
    assert "--data-dir" in str(caught.value)
    assert len(server.asked) == 1
    left = {path: path.read_bytes() for path in _part(to_download).parent.iterdir()}
    assert left == ({_part(to_download): kept} if kept else {})


@pytest.mark.parametrize("begun", [False, True])
def test_a_wrong_download_is_removed(begun, to_download, original, server):
    official = server.body
    if begun:
        _part(to_download).write_bytes(b"Not how it begins")
    else:
        server.body = b"<html>Please log in</html>"
    with pytest.raises(errors.DataError, match=r"not the registered .* removed"):
        data.load("cifar100", data_dir=to_download)
    assert not list(_part(to_download).parent.iterdir())
    assert not _prepared(to_download).exists()
    server.body = official
    _assert_arrives(to_download, original[1])


_FULL = pathlib.Path("/dev/full")  # Linux's own full disk.


@pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(to_download):
    _part(to_download).symlink_to(_FULL)
    with pytest.raises(errors.DataError, match="No space left on device"):
        data.load("cifar100", data_dir=to_download)


def test_a_download_that_cannot_be_stored_is_told(to_download):
    shutil.rmtree(to_download / "downloads")
    (to_download / "downloads").touch()  # In the way of the directory.
    with pytest.raises(errors.DataError, match="part cannot be written"):
        data.load("cifar100", data_dir=to_download)


def test_two_processes_do_not_write_the_same_part(to_download, original, server):
    with _part(to_download).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(errors.DataError, match="another process"):
            data.load("cifar100", data_dir=to_download)
        assert _part(to_download).exists()
    assert server.asked == []
    _assert_arrives(to_download, original[1])


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_is_for_terminals(terminal, tmp_path, server, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))  # rich asks for it.
    monkeypatch.setenv("COLUMNS", "120")
    server.body = bytes(2_000_000)
    _part(tmp_path).parent.mkdir(parents=True)
    _part(tmp_path).write_bytes(server.body[:500_000])
    checksum = hashlib.sha256(server.body).hexdigest()
    _download.download(server.url, _by_hand(tmp_path), len(server.body), checksum)
    assert _by_hand(tmp_path).read_bytes() == server.body
    out, err = capsys.readouterr()
    if terminal:
        assert "cifar-100-binary.tar.gz" in out
        assert "2.0/2.0 MB" in out
    else:
        assert out == ""
    assert err == ""


def test_preparation_shows_and_leaves_no_nonsense(
    with_archive, tmp_path_factory, monkeypatch, capsys
):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    data.load("cifar100", data_dir=with_archive)
    assert not list(temporary.iterdir())
    shown = capsys.readouterr().err
    assert "Generating" in shown  # The bars of the work itself are not lost.
    assert "Dl " not in shown


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
