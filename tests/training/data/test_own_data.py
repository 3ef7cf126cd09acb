"""Data sets of the user's own: .npz files, folders, and prepared sets by name."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.support.cifar_archives import (
    encode,
    image_features,
    labelled,
    rows,
    write_prepared,
)
from training import data, errors
from training.data import images


def _images(count=20, height=8, width=8, channels=3, seed=0):
    shape = (count, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def _examples(count=20, classes=2, **size):
    return data.Examples(
        _images(count, **size), np.arange(count, dtype=np.int32) % classes
    )


def _assert_refused(name, *words, **arguments):
    """Asserts that one line is the answer and that it has these words."""
    with pytest.raises(errors.DataError) as caught:
        data.load(str(name), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- Names and paths ----------------------------------------------------------------


def test_a_name_is_never_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "flowers"):
        _write_folder(tmp_path / name, _examples())
    assert len(data.load("digits").label_names) == 10
    _assert_refused("flowers", "./flowers", data_dir=tmp_path / "digits")
    for path in ("./flowers", "../" + tmp_path.name + "/flowers/"):
        assert data.load(path).label_names == ("a", "b")


def test_absent_paths_and_unknown_names(tmp_path):
    (tmp_path / "images.NPY").touch()
    _assert_refused(tmp_path / "images.NPY", "one array", "numpy.savez")
    for path in ("./absent", "absent.npz", "absent.NPZ", "~no-one/x", "./" + "x" * 300):
        _assert_refused(path, path)
    for name in ("mnits", "x" * 300, ""):
        _assert_refused(name, "digits, cifar10, cifar100", data_dir=tmp_path / "..")


# --- .npz files ---------------------------------------------------------------------


def _write_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_an_npz_file_without_test_part(tmp_path):
    images, labels = _examples(50, 5)
    path = _write_npz(tmp_path / "mine.npz", images=images, labels=labels)
    dataset = data.load(str(path), validation_fraction=0.2)
    assert (dataset.name, dataset.num_classes) == (str(path), 5)
    assert dataset.label_names == tuple("01234")
    parts = dataset.train, dataset.validation, dataset.test
    assert [len(part.labels) for part in parts] == [32, 8, 10]
    assert sorted(row for part in parts for row in rows(part)) == rows(
        data.Examples(images, labels)
    )
    of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part in parts:
        assert [of[image.tobytes()] for image in part.images] == list(part.labels)
    # Every class gives the same share, and the test part is fixed.
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [2] * 5)
    other = data.load(str(path), split_seed=1)
    np.testing.assert_array_equal(dataset.test.images, other.test.images)
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-5)


def test_an_npz_file_with_test_part(tmp_path):
    train, test = _examples(20), _examples(6, seed=1)
    path = _write_npz(
        tmp_path / "mine.npz",
        images=train.images[..., 0],  # [n, height, width]
        labels=train.labels.astype(np.uint8),
        test_images=test.images[..., :1],
        test_labels=test.labels.astype(np.int64),
    )
    dataset = data.load(str(path), validation_fraction=0)
    np.testing.assert_array_equal(dataset.train.images, train.images[..., :1])
    np.testing.assert_array_equal(dataset.test.images, test.images[..., :1])
    np.testing.assert_array_equal(dataset.test.labels, test.labels)
    assert dataset.train.labels.dtype == dataset.test.labels.dtype == np.int32


_LABELS = np.arange(20) % 2
BAD_NPZ = {
    "no-images": ({"images": None}, "no array 'images'"),
    "half-a-test-part": ({"test_labels": _LABELS}, "no array 'test_images'"),
    "float-images": ({"images": _images() / 255.0}, "float64"),
    "flat-images": ({"images": _images().reshape(20, -1)}, "(20, 192)"),
    "no-examples": ({"images": _images(0), "labels": _LABELS[:0]}, "(0, 8, 8, 3)"),
    "channels-first": ({"images": _images().transpose(0, 3, 1, 2)}, "(0, 2, 3, 1)"),
    "all-reversed": ({"images": _images().transpose()}, "(3, 1, 2, 0)"),
    "five-channels": ({"images": _images(channels=5)}, "with 1 to 4 channels"),
    "float-labels": ({"labels": _LABELS / 1.0}, "float64"),
    "too-few-labels": ({"labels": _LABELS[:19]}, "(19,)"),
    "labels-with-a-gap": ({"labels": _LABELS * 2}, "label 1"),
    "negative-labels": ({"labels": _LABELS - 1}, "from -1"),
    "huge-labels": ({"labels": _LABELS.astype(np.uint64) * 2**63}, "from 0"),
    "one-class": ({"labels": _LABELS * 0}, "two classes"),
    "other-test-size": (
        {"test_images": _images(20, height=9), "test_labels": _LABELS},
        "(9, 8, 3)",
    ),
    "unknown-test-class": (
        {"test_images": _images(20), "test_labels": _LABELS + 1},
        "reach to 2",
    ),
    "objects": ({"labels": np.array([{}] * 20)}, "cannot be read"),
    "too-small": ({"images": _images(2), "labels": _LABELS[:2]}, "too small"),
}


@pytest.mark.parametrize(("changes", "words"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_arrays(changes, words, tmp_path):
    arrays = {"images": _images(), "labels": _LABELS} | changes
    arrays = {name: array for name, array in arrays.items() if array is not None}
    path = _write_npz(tmp_path / "bad.npz", **arrays)
    _assert_refused(path, str(path), words)


def test_damaged_npz_files(tmp_path):
    path = _write_npz(tmp_path / "bad.npz", images=_images(), labels=_LABELS)
    good = path.read_bytes()
    middle = good.index(b"\x93NUMPY") + 1000
    flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    for content in (b"", b"no archive", good[: len(good) // 2], flipped):
        path.write_bytes(content)
        _assert_refused(path, f"{path} cannot be read")
    (tmp_path / "folder.npz").mkdir()
    _assert_refused(tmp_path / "folder.npz", "folder.npz cannot be read")


# --- Folders ------------------------------------------------------------------------


def _write_folder(path, examples, names="ab", suffix="png"):
    for index, (image, label) in enumerate(zip(*examples, strict=True)):
        file = path / names[label] / f"{index:03d}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(image, "JPEG" if suffix == "jpg" else "PNG"))
    return path


@pytest.fixture
def folder(tmp_path):
    return _write_folder(tmp_path / "set", _examples())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_classes(channels, tmp_path):
    examples = _examples(channels=channels)
    path = _write_folder(tmp_path / "set", examples, names=["b c", "a"])
    # Neither is an image.
    (path / "a" / "notes.txt").write_text("not an image")
    (path / ".hidden").mkdir()
    dataset = data.load(str(path), validation_fraction=0)
    assert dataset.label_names == ("a", "b c")
    assert dataset.train.images.shape == (16, 8, 8, channels)
    assert len(dataset.test.labels) == 4
    of = dict(zip(map(bytes, examples.images), examples.labels, strict=True))
    for part in (dataset.train, dataset.test):
        assert [1 - of[bytes(image)] for image in part.images] == list(part.labels)


def test_a_folder_that_mixes_kinds_of_images(folder):
    """Grey beside colour is colour; palettes are resolved; opaque alpha does nothing.

    What is transparent shows white, whatever colour is stored for it.
    """
    invisible = Image.new("RGBA", (8, 8), (1, 2, 3, 0))
    invisible.save(folder / "a" / "invisible.png")
    Image.new("LA", (8, 8), (40, 0)).save(folder / "a" / "invisible-grey.png")
    palette = Image.new("P", (8, 8))
    palette.putpalette([9, 9, 9])
    palette.save(folder / "a" / "invisible-palette.png", transparency=b"\0")
    colour = Image.fromarray(np.full((8, 8, 3), (255, 0, 0), np.uint8))
    colour.convert("P").save(folder / "a" / "palette.gif")
    colour.convert("RGBA").save(folder / "a" / "transparent.PNG")
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(folder / "a" / "grey.png")
    dataset = data.load(str(folder), validation_fraction=0, train_fraction=1)
    images = np.concatenate([dataset.train.images, dataset.test.images])
    flat = [tuple(image[0, 0]) for image in images if (image == image[0, 0]).all()]
    assert sorted(flat) == [
        (77, 77, 77),
        *2 * [(255, 0, 0)],
        *3 * [(255, 255, 255)],
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(orientation, tmp_path):
    """The twin: a camera that stores the scene in one of EXIF's eight ways."""
    scene = _images(1, height=4, width=6)[0]
    # Where the scene's first row and first column are stored (EXIF 2.32, 4.6.4).
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene),
        7: scene[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "image.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(file, exif=exif)
    with images.opened(file) as image:
        np.testing.assert_array_equal(images.decode(image, 3), scene)


def test_files_that_are_no_images_are_ignored_and_counted(folder):
    for name in ("a.pdf", "b.h5", "c.mpg", "d.heic", "e.heic", "README"):
        (folder / "a" / name).write_bytes(b"?")
    dataset = data.load(str(folder))
    assert dataset.notes == (
        "ignored 6 files that are no images (.h5, .heic, .mpg, .pdf, no suffix)",
    )
    assert len(dataset.train.labels) + len(dataset.validation.labels) == 16
    for file in (folder / "b").iterdir():
        file.rename(file.with_suffix(".heic"))
    _assert_refused(folder, "no image files, only .heic")


def test_images_of_different_sizes(folder):
    """The middle of a wide image, scaled to the height: black bars on its sides go."""
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, 16:48] = (200, 100, 50)
    (folder / "b" / "wide.png").write_bytes(encode(wide))
    _assert_refused(folder, "wide.png", "16x64", "8x8", "--image-size")
    dataset = data.load(str(folder), image_size=8, validation_fraction=0)
    images = np.concatenate([dataset.train.images, dataset.test.images])
    assert images.shape == (21, 8, 8, 3)
    assert rows(data.Examples(images, None)) == sorted(
        [*rows(_examples()), bytes((200, 100, 50) * 64)]
    )


def test_image_size_holds_for_named_sets():
    small = data.load("digits", image_size=4)
    assert small.train.images.shape == (1150, 4, 4, 1)
    # Smoothing changes no mean by much.
    np.testing.assert_allclose(small.mean, data.load("digits").mean, rtol=0.05)


def test_bad_folders(tmp_path):
    _assert_refused(tmp_path, str(tmp_path), "no sub-folders")
    (tmp_path / "a").mkdir()
    _assert_refused(tmp_path, str(tmp_path / "a"), "no image files")
    _write_folder(tmp_path, _examples(classes=1))
    _assert_refused(tmp_path, str(tmp_path), "two classes")
    (tmp_path / "file").write_text("precious")
    _assert_refused(tmp_path / "file", str(tmp_path / "file"))


@pytest.mark.parametrize("with_test", [True, False])
@pytest.mark.parametrize(
    ("kind", "name"), [("folder", "val"), ("npz", "valid"), ("prepared", "Validation")]
)
def test_a_validation_part_of_the_set(kind, with_test, name, tmp_path):
    """It chooses the best epoch; without a test part it is the test part."""
    named = {"train": _examples(), name: _examples(6, seed=1)}
    if with_test:
        named["test"] = _examples(4, seed=2)
    path = tmp_path / "set.npz"
    if kind == "folder":
        path = tmp_path
        for part, examples in named.items():
            _write_folder(path / part, examples)
    elif kind == "npz":
        arrays = {
            f"{part}_{kind}": array
            for part, examples in named.items()
            for kind, array in examples._asdict().items()
        }
        _write_npz(path, **arrays)
    else:
        parts = {part: labelled(own, part) for part, own in named.items()}
        path = write_prepared(tmp_path, "mine", parts, FEATURES)
    dataset = data.load(f"{path}/" if path.is_dir() else str(path))
    if with_test:
        assert rows(dataset.train) == rows(named["train"])
        assert rows(dataset.validation) == rows(named[name])
        assert rows(dataset.test) == rows(named["test"])
        assert not dataset.notes
        assert not len(data.load(str(path), validation_fraction=0).validation.labels)
    else:
        assert rows(dataset.test) == rows(named[name])
        assert len(dataset.train.labels) == 16
        assert f"{name} is the test part" in dataset.notes[0]


def test_a_folder_inside_its_own_name(tmp_path):
    _write_folder(tmp_path / "flowers" / "flowers", _examples())
    inner = tmp_path / "flowers" / "flowers"
    _assert_refused(tmp_path / "flowers", f"or name {inner} as the data set")


def test_bad_parts_of_folders(tmp_path):
    _write_folder(tmp_path / "train", _examples())
    _write_folder(tmp_path / "extra", _examples())
    _assert_refused(tmp_path, "train and extra")
    (tmp_path / "extra").rename(tmp_path / "test")
    (tmp_path / "test" / "a").rename(tmp_path / "test" / "cat")
    _assert_refused(tmp_path, str(tmp_path / "test"), "cat")


BAD_FILES = {
    "text": lambda path: path.write_text("not an image"),
    "cut": lambda path: path.write_bytes(encode(_images(1)[0])[:100]),
    "empty": lambda path: path.touch(),
    "link": lambda path: path.symlink_to("nowhere"),
    "directory": lambda path: path.mkdir(),
    "16-bit": lambda path: Image.fromarray(np.zeros((8, 8), np.uint16)).save(path),
}


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_image_files(make, folder):
    make(folder / "a" / "bad.png")
    _assert_refused(folder, "bad.png")


# --- Sets prepared by tensorflow-datasets -------------------------------------------

FEATURES = image_features((8, 8, 3), ["a", "b"])


def test_a_prepared_set_by_name(tmp_path):
    train, test = _examples(), _examples(6, seed=1)
    parts = {"train": labelled(train), "test": labelled(test, "test")}
    directory = write_prepared(tmp_path, "mine", parts, FEATURES)
    for name in ("mine", f"{directory}/"):
        dataset = data.load(name, data_dir=tmp_path, validation_fraction=0)
        np.testing.assert_array_equal(dataset.train.images, train.images)
        np.testing.assert_array_equal(dataset.train.labels, train.labels)
        np.testing.assert_array_equal(dataset.test.images, test.images)
        assert dataset.label_names == ("a", "b")


@pytest.mark.parametrize("shape", [(None, None, 3), (8, 8, 1)])
def test_a_prepared_set_of_other_images(shape, tmp_path):
    """JPEG or grey; no ids; no names; only a training part, with a fifth for tests."""
    examples = _examples(channels=shape[-1])
    kind = "PNG" if shape[-1] == 1 else "JPEG"
    features = {
        "image": tfds.features.Image(shape=shape, encoding_format=kind.lower()),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    records = [
        {"image": encode(image, kind), "label": int(label)}
        for image, label in zip(*examples, strict=True)
    ]
    write_prepared(tmp_path, "mine", {"train": records}, features)
    dataset = data.load("mine", data_dir=tmp_path, validation_fraction=0)
    assert dataset.train.images.shape == (16, 8, 8, shape[-1])
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [2, 2])
    assert dataset.label_names == ("0", "1")
    if kind == "PNG":
        both = rows(dataset.train) + rows(dataset.test)
        assert sorted(both) == rows(examples)


def test_a_set_that_is_prepared_twice(tmp_path):
    parts = {"train": labelled(_examples())}
    found = [
        write_prepared(tmp_path, "mine", parts, FEATURES, version=version)
        for version in ("1.0.0", "2.0.0")
    ]
    _assert_refused("mine", *map(str, found), data_dir=tmp_path)
    assert data.load(str(found[0])).num_classes == 2


def test_unsuitable_prepared_sets(tmp_path):
    """Sizes that differ, unlabelled images, unknown splits, other features."""
    ragged = image_features((None, None, 3), ["a", "b"])
    large = _examples(4, height=9)
    records = [*labelled(_examples()), *labelled(large, "large")]
    write_prepared(tmp_path, "ragged", {"train": records}, ragged)
    _assert_refused("ragged", "--image-size", "8x8", "9x8", data_dir=tmp_path)
    dataset = data.load("ragged", data_dir=tmp_path, image_size=8)
    assert dataset.train.images.shape[1:] == (8, 8, 3)

    parts = {"train": labelled(_examples()), "test": labelled(large, "test")}
    write_prepared(tmp_path, "larger", parts, ragged)
    _assert_refused("larger", "test", "--image-size", data_dir=tmp_path)
    assert data.load("larger", data_dir=tmp_path, image_size=8).num_classes == 2

    unlabelled = data.Examples(_images(6), np.full(6, -1))
    parts = {"train": labelled(_examples()), "test": labelled(unlabelled, "test")}
    write_prepared(tmp_path, "unlabelled", parts, FEATURES)
    _assert_refused("unlabelled", "without a label", data_dir=tmp_path)

    parts = {"train": labelled(_examples()), "extra": labelled(_examples(), "extra")}
    write_prepared(tmp_path, "splits", parts, FEATURES)
    _assert_refused("splits", "train, extra", data_dir=tmp_path)

    text = {"text": tfds.features.Text()}
    write_prepared(tmp_path, "text", {"train": [{"text": "a"}] * 9}, text)
    _assert_refused("text", "features text", data_dir=tmp_path)
