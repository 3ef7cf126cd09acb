"""The distance between the paths of arms, from short sketches of them."""

import itertools

import numpy as np

from experiments import paths


def trees(count, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        {"a": scale * rng.normal(size=(40, 50)), "b": scale * rng.normal(size=321)}
        for _ in range(count)
    ]


def norm(tree):
    return np.sqrt(sum((x**2).sum() for x in tree.values()))


def test_sketches_keep_distances():
    ratios = []
    for one, two in itertools.pairwise(trees(101)):
        apart = {name: one[name] - two[name] for name in one}
        found = np.linalg.norm(paths.sketch(one) - paths.sketch(two))
        ratios.append(found / norm(apart))
    # Of relative error 1/sqrt(2 * 256) = 0.044 each.
    assert abs(np.mean(ratios) - 1) < 0.02
    assert 0.03 < np.std(ratios) < 0.06


def test_sketches_are_linear():
    one, two = trees(2)
    both = {name: 2 * one[name] - 3 * two[name] for name in one}
    np.testing.assert_allclose(
        paths.sketch(both), 2 * paths.sketch(one) - 3 * paths.sketch(two), atol=1e-3
    )


def test_few_parameters_are_kept_as_they_are():
    tree = {"a": np.arange(200.0).reshape(10, 20), "b": np.array([-7.5])}
    np.testing.assert_array_equal(paths.sketch(tree), [*np.arange(200.0), -7.5])


def test_distance_is_relative_to_the_distance_that_the_first_has_covered():
    one = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    two = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 3.0]])
    np.testing.assert_array_equal(paths.distance(one, two), [np.nan, 0, 0.5])
