"""The handwritten digits that scikit-learn ships."""

import numpy as np
from sklearn import datasets

from training.data import _split
from training.data._types import Examples, Source

_TEST_FRACTION = 0.2
_TEST_SEED = 0  # Part of the definition of the test set: never change it.


def read() -> Source:
    """Reads the set: 1,797 images of 8x8 pixels and one channel, ten classes.

    The publisher names no test set, so a fixed, stratified fifth (359 examples) is
    one. Grey values 0..16 become 0..240, times 15.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998 (its test part, as scikit-learn ships it).
    """
    raw = datasets.load_digits()
    images = (raw.images[..., np.newaxis] * 15).astype(np.uint8)
    labels = raw.target.astype(np.int32)
    rest, test = _split.stratified_split(labels, _TEST_FRACTION, _TEST_SEED)
    return Source(
        train=Examples(images[rest], labels[rest]),
        test=Examples(images[test], labels[test]),
        label_names=tuple(str(name) for name in raw.target_names),
    )
