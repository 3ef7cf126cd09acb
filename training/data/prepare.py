"""Prepares CIFAR for tensorflow-datasets, from the official archive.

The stock builders read and encode with TensorFlow; here their sets are written without.
"""

import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar as stock

from training import errors
from training.data import cifar, prepared

_STOCK = {"cifar10": stock.Cifar10, "cifar100": stock.Cifar100}


def prepare(name: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    """Writes ``<data_dir>/<name>/<version>`` in the form ``array_record``.

    ``tfds.data_source(name, data_dir=data_dir)`` reads it, and so does training.

    Args:
      name: "cifar10" or "cifar100".
      data_dir: Directory of prepared sets, which must exist; None for that of
        tensorflow-datasets. The archive is in ``downloads/manual`` there, and is
        downloaded if it is not.

    Returns:
      The directory of the set.

    Raises:
      DataError: If the set is prepared already, or the archive cannot be obtained.
    """
    root = prepared.root(data_dir)
    if (root / name).exists():
        raise errors.DataError(
            f"{root / name} exists: remove it to have the set prepared again"
        )
    contents = cifar.read_archive(name, root)

    def records(part: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = contents.parts[part]
        for index, (image, classes) in enumerate(zip(images, labels, strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            labels_of = dict(zip(contents.names, map(int, classes), strict=True))
            name_of = f"{part}_{index:05d}"
            yield index, {"id": name_of, "image": file.getvalue(), **labels_of}

    kind: Any = _STOCK[name]

    class Builder(kind, skip_registration=True):  # type: ignore[call-arg]
        def _info(self) -> Any:
            info = super()._info()
            info.initialize_from_bucket = lambda: None  # which needs TensorFlow
            return info

        def _split_generators(self, manager: Any) -> Any:
            for label, names in contents.names.items():
                self.info.features[label].names = names
            return {part: records(part) for part in contents.parts}

    Builder.name = name
    try:
        builder = Builder(data_dir=root, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    except OSError as error:
        raise errors.DataError(
            f"{root} cannot be written ({error}): name another --data-dir"
        ) from error
    return pathlib.Path(builder.data_path)
