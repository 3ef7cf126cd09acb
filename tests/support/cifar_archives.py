"""Small data sets on disk: official CIFAR archives, and sets prepared by tfds."""

import hashlib
import io
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from training import data
from training.data import cifar

LAYOUTS = {
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


def write_archive(path, name, counts=(200, 100)):
    """Writes an archive in the official binary format and returns what is in it."""
    layout, generator = LAYOUTS[name], np.random.default_rng(7)
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {}
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:

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


def by_hand(root, name="cifar100"):
    return root / "downloads" / "manual" / LAYOUTS[name]["archive"]


def register(monkeypatch, root, name="cifar100", url=None):
    """Registers the archive under ``root`` in the place of the official one."""
    archive = by_hand(root, name)
    changed = cifar.ARCHIVES[name]._replace(
        # Nothing listens at port 9 of this machine.
        url=url or f"http://127.0.0.1:9/{archive.name}",
        size=archive.stat().st_size,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(cifar.ARCHIVES, name, changed)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def encode(image, kind="PNG"):
    """Returns the image file of uint8 ``[height, width, channels]``."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, kind)
    return file.getvalue()


def write_prepared(root, name, parts, features, file_format="array_record", **more):
    """Has tensorflow-datasets prepare a set, and returns its directory.

    Args:
      root: the data directory.
      name: of the set.
      parts: records of each split, as dictionaries.
      features: of the set.
      file_format: of its files.
      more: attributes of the builder, such as its version.
    """

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = more.pop("version", tfds.core.Version("3.0.2"))

        def _info(self):
            info = self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features)
            )
            info.initialize_from_bucket = lambda: None  # It would need TensorFlow.
            return info

        def _split_generators(self, _):
            return {part: enumerate(records) for part, records in parts.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder.name = name
    tfds.disable_progress_bar()
    builder = Builder(data_dir=root, file_format=file_format)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return root / name / str(builder.version)


def labelled(examples, part="train"):
    """Returns the records of a split with the features of ``image_features``."""
    return [
        {"id": f"{part}_{i:05d}", "image": encode(image), "label": int(label)}
        for i, (image, label) in enumerate(zip(*examples, strict=True))
    ]


def image_features(shape, names):
    return {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(names=names),
    }


def prepare(root, contents, name="cifar100"):
    """Prepares what an archive holds, as the stock builder does."""
    file, classes = LAYOUTS[name]["labels"][-1]
    return write_prepared(
        root,
        name,
        {part: labelled(contents[part], part) for part in ("train", "test")},
        image_features((32, 32, 3), [f"{file[0]}{i}" for i in range(classes)]),
    )


def prepared(root, name="cifar100"):
    return root / name / "3.0.2"


def rows(examples):
    """Returns the images as a sorted list of bytes, to compare as multisets."""
    return sorted(image.tobytes() for image in examples.images)


def assert_holds(dataset, contents):
    np.testing.assert_array_equal(dataset.train.images, contents["train"].images)
    np.testing.assert_array_equal(dataset.train.labels, contents["train"].labels)
    np.testing.assert_array_equal(dataset.test.images, contents["test"].images)
    np.testing.assert_array_equal(dataset.test.labels, contents["test"].labels)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A directory with a small CIFAR-100, prepared and as an archive; its contents."""
    root = tmp_path_factory.mktemp("original")
    contents = write_archive(by_hand(root), "cifar100")
    prepare(root, contents)
    return root, contents


@pytest.fixture
def with_archive(tmp_path, original, monkeypatch):
    """A data directory with a hand-placed archive, which counts as the official one."""
    by_hand(tmp_path).parent.mkdir(parents=True)
    shutil.copy(by_hand(original[0]), by_hand(tmp_path))
    register(monkeypatch, tmp_path)
    return tmp_path
