"""The stock CIFAR builders of tensorflow-datasets, without TensorFlow.

The stock builders need TensorFlow to unpack the archive and to encode the images.
These read the archive with the standard library and hand over encoded PNG. What they
write is the stock set, under the stock name and version, for anyone to read.
"""

import io
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from training import errors

_SHAPE = (3, 32, 32)  # One image in the archive: red plane, green plane, blue plane.


# The names belong to the stock builders in the registry of tensorflow-datasets.
_UNLISTED: dict[str, Any] = {"skip_registration": True}


class _WithoutTensorFlow(tfds.core.GeneratorBasedBuilder, **_UNLISTED):
    """Replaces the two methods of the stock builders that need TensorFlow.

    The archive must be among the manual downloads already.

    Attributes:
      url_infos: the official address of the one archive, with its registered checksum,
        size and file name. Looked up by the stock class: a subclass defined elsewhere
        does not find the checksums.
    """

    url_infos: dict[str, Any]

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        # It would find nothing, and leave an empty temporary directory.
        info.initialize_from_bucket = lambda: None
        return info

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        layout = self._cifar_info
        (url,) = self.url_infos
        # Only finds the archive; the bar for it would take bytes for MiB.
        tfds.disable_progress_bar()
        archive = pathlib.Path(dl_manager.download(url))
        tfds.enable_progress_bar()
        names = [*layout.label_files, *layout.train_files, *layout.test_files]
        files = _members(archive, layout.prefix, names)
        for key, name in zip(layout.label_keys, layout.label_files, strict=True):
            self.info.features[key].names = files[name].decode().split()
        return {
            part: self._generate_examples(f"{part}_", [files[name] for name in names])
            for part, names in (
                ("train", layout.train_files),
                ("test", layout.test_files),
            )
        }

    def _generate_examples(
        self, split_prefix: str, contents: list[bytes]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        keys = self._cifar_info.label_keys
        index = 0
        for content in contents:
            # One byte a label, then the pixels.
            rows = np.frombuffer(content, np.uint8)
            for row in rows.reshape(-1, len(keys) + np.prod(_SHAPE)):
                pixels = row[len(keys) :].reshape(_SHAPE).transpose(1, 2, 0)
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, "PNG")
                yield (
                    index,
                    {
                        "id": f"{split_prefix}{index:05d}",
                        "image": encoded.getvalue(),
                        **dict(zip(keys, row, strict=False)),
                    },
                )
                index += 1


class _Cifar10(_WithoutTensorFlow, cifar.Cifar10, **_UNLISTED):
    name = "cifar10"
    url_infos = cifar.Cifar10.url_infos


class _Cifar100(_WithoutTensorFlow, cifar.Cifar100, **_UNLISTED):
    name = "cifar100"
    url_infos = cifar.Cifar100.url_infos


BUILDERS = {"cifar10": _Cifar10, "cifar100": _Cifar100}


def _members(archive: pathlib.Path, prefix: str, names: list[str]) -> dict[str, bytes]:
    try:
        with tarfile.open(archive) as tar:
            files = {name: tar.extractfile(f"{prefix}{name}") for name in names}
            return {name: file.read() for name, file in files.items() if file}
    except (tarfile.TarError, EOFError, OSError, KeyError, zlib.error) as error:
        raise errors.DataError(
            f"The archive {archive} cannot be read ({error}): remove it to have it "
            "downloaded again."
        ) from error
