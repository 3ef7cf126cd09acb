"""Splitting a labelled set in two with the same share of every class."""

import numpy as np


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ``fraction`` of the examples, the same share from every class.

    The drawn part has ``round(fraction * n)`` examples. Each class gives its share
    rounded down, and the classes that lost most by that give one more (the largest
    remainder; the lower class first among equals).

    Args:
      labels: integers ``[n]``.
      fraction: share of the drawn part, in [0, 1].
      seed: of a generator that only this split uses, in ``[0, 2**32)``.

    Returns:
      The positions that stay and the positions that are drawn, both ascending.
    """
    # The legacy generator, because NumPy promises that its stream never changes,
    # which it does not for `default_rng`. A test set must not move with an upgrade.
    generator = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    take = np.floor(shares).astype(int)
    missing = round(fraction * len(labels)) - take.sum()
    take[np.argsort(take - shares, kind="stable")[:missing]] += 1
    drawn = np.zeros(len(labels), bool)
    for label, number in zip(classes, take, strict=True):
        members = np.flatnonzero(labels == label)
        drawn[generator.permutation(members)[:number]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)
