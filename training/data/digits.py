"""The handwritten digits that scikit-learn ships."""

import os

import numpy as np
from sklearn import datasets

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
    raw = datasets.load_digits()
    images = (raw.images[..., np.newaxis] * 15).astype(np.uint8)
    return Source(
        train=Examples(images, raw.target.astype(np.int32)),
        test=None,
        label_names=tuple(str(name) for name in raw.target_names),
        flips=False,  # A mirrored 2 is not a 2.
    )
