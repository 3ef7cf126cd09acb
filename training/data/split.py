"""Splitting a labelled set in two with the same share of every class."""

import numpy as np

from training.data.dataset import Examples

_TEST_FRACTION = 0.2
_TEST_SEED = 0  # Part of the definition of the test sets: never change it.


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, *, keep: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws ``fraction`` of the examples, the same share from every class.

    ``round(fraction * n)`` examples are drawn, less those that ``keep`` holds. Each
    class gives its share rounded down. The classes with the largest remainders give one
    more, the lower class first among equals.

    Args:
      labels: Integers ``[n]``.
      fraction: Share to draw, in [0, 1].
      seed: Seed of a generator that only this split uses, in ``[0, 2**32)``.
      keep: How many examples of each class stay at least, if it has as many.

    Returns:
      The positions that stay and the positions that are drawn, both ascending.
    """
    # The legacy generator, because NumPy promises that its stream never changes,
    # which it does not for `default_rng`. A test set must not change with an upgrade.
    generator = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    take = np.floor(shares).astype(int)
    missing = round(fraction * len(labels)) - take.sum()
    take[np.argsort(take - shares, kind="stable")[:missing]] += 1
    take = np.minimum(take, np.maximum(counts - keep, 0))
    drawn = np.zeros(len(labels), bool)
    for label, number in zip(classes, take, strict=True):
        members = np.flatnonzero(labels == label)
        drawn[generator.permutation(members)[:number]] = True
    return np.flatnonzero(~drawn), np.flatnonzero(drawn)


def split_off_test(examples: Examples) -> tuple[Examples, Examples]:
    """Splits off a stratified fifth as the test part of a set that names none.

    A class keeps one example at least. Which examples it holds depends on the labels
    and their order, and on nothing else.
    """
    rest, test = stratified_split(examples.labels, _TEST_FRACTION, _TEST_SEED, keep=1)
    return examples.take(rest), examples.take(test)
