"""The handwritten digits that scikit-learn ships."""

import importlib.metadata
import os

import numpy as np

from training.data.dataset import Examples, Source


def read(data_dir: str | os.PathLike[str] | None) -> Source:
    """Reads 1,797 images of 8x8 pixels and one channel, in ten classes.

    Grey values 0..16 become 0..240, times 15. The set names no test part.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998 (its test part, as scikit-learn ships it).

    Args:
      data_dir: Not used; the set is embedded.
    """
    del data_dir
    # The file itself, since to import scikit-learn takes more than a second.
    package = importlib.metadata.distribution("scikit-learn")
    path = package.locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",")  # 64 pixels and the class
    images = (table[:, :-1].reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
    return Source(
        train=Examples(images, table[:, -1].astype(np.int32)),
        test=None,
        label_names=tuple("0123456789"),
        flips=False,  # A mirrored 2 is not a 2.
    )
