"""Splits, digits, what `load` makes of a set, normalisation and augmentation."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from tests.support.cifar_archives import rows
from training import data, errors
from training.data.pixels import augment, normalize

# --- Splits -------------------------------------------------------------------------


def test_stratified_split_is_exact_and_covers():
    labels = np.random.default_rng(0).integers(0, 7, 1001)
    kept, drawn = data.stratified_split(labels, 0.3, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, drawn])), range(1001))
    assert len(drawn) == 300
    counts = np.bincount(labels[drawn], minlength=7)
    np.testing.assert_array_less(np.abs(counts - 0.3 * np.bincount(labels)), 1)
    ends = [data.stratified_split(labels, f, seed=0) for f in (0.0, 1.0)]
    assert [list(map(len, end)) for end in ends] == [[1001, 0], [0, 1001]]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.999])
def test_every_class_keeps_an_example(fraction):
    labels = np.repeat(np.arange(6), [20, 20, 20, 1, 1, 1])
    stay, drawn = data.stratified_split(labels, fraction, 0, keep=1)
    assert set(labels[stay]) == set(range(6))
    assert sorted([*stay, *drawn]) == [*range(63)]


def test_stratified_split_follows_its_seed_and_nothing_else():
    labels = np.repeat(np.arange(5), 20)
    np.random.seed(1)
    first = data.stratified_split(labels, 0.2, seed=0)[1]
    np.random.seed(2)
    np.testing.assert_array_equal(first, data.stratified_split(labels, 0.2, seed=0)[1])
    assert set(first) != set(data.stratified_split(labels, 0.2, seed=1)[1])
    # Drawn at random, not from one end of each class.
    assert 0 < np.mean(first % 20 < 10) < 1


# --- Digits, and what `load` makes of a set -----------------------------------------


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_facts(digits):
    assert (digits.name, digits.num_classes) == ("digits", 10)
    assert digits.label_names == tuple("0123456789")
    sizes = [len(p.labels) for p in (digits.train, digits.validation, digits.test)]
    assert sizes == [1150, 288, 359]
    assert sum(sizes) == 1797
    for part in (digits.train, digits.validation, digits.test):
        assert part.images.shape == (len(part.labels), 8, 8, 1)
        assert part.images.dtype == np.uint8
        assert part.labels.dtype == np.int32
        shares = np.bincount(part.labels) / len(part.labels)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)
    assert digits.train.images.max() == 240
    assert (digits.crop_padding, digits.flips) == (1, False)


def test_digits_are_those_of_scikit_learn():
    """Read from its file, without its code."""
    raw = datasets.load_digits()
    read = data.load("digits", validation_fraction=0)
    # The set is split; in any order the images are the same.
    images = np.concatenate([read.train.images, read.test.images])
    labels = np.concatenate([read.train.labels, read.test.labels])
    found = np.column_stack([images.reshape(-1, 64) / 15, labels])
    expected = np.column_stack([raw.data, raw.target])
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))


def test_digits_test_set_never_moves(digits):
    # If this fails, results of different versions are on different test sets.
    digest = hashlib.sha256(digits.test.images.tobytes()).hexdigest()
    assert digest.startswith("e0e538334c50208b")
    np.testing.assert_array_equal(digits.test.labels[:8], [3, 7, 3, 9, 0, 8, 7, 0])


def test_parts_are_disjoint_and_cover(digits):
    whole = data.load("digits", validation_fraction=0)
    assert len(whole.validation.labels) == 0
    assert whole.validation.images.shape == (0, 8, 8, 1)
    assert rows(whole.train) == sorted(rows(digits.train) + rows(digits.validation))
    assert not set(rows(digits.train)) & set(rows(digits.validation))
    assert not set(rows(whole.train)) & set(rows(digits.test))


def test_part_of_the_training_part(digits):
    part = data.load("digits", train_fraction=0.25)
    assert len(part.train.labels) == round(0.25 * len(digits.train.labels))
    assert set(rows(part.train)) < set(rows(digits.train))
    whole, quarter = (np.bincount(d.train.labels) for d in (digits, part))
    assert np.abs(quarter - whole / 4).max() < 1
    # What runs are chosen and judged by stays the same.
    np.testing.assert_array_equal(part.validation.images, digits.validation.images)
    np.testing.assert_array_equal(part.test.images, digits.test.images)
    again, other = (
        data.load("digits", train_fraction=0.25, split_seed=seed) for seed in (0, 1)
    )
    for name in ("train", "validation"):
        assert rows(getattr(again, name)) == rows(getattr(part, name))
        assert rows(getattr(other, name)) != rows(getattr(part, name))
    np.testing.assert_array_equal(other.test.images, digits.test.images)


def test_statistics_come_from_the_training_part_alone(digits):
    pixels = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(digits.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert digits.mean.dtype == digits.std.dtype == np.float32
    # Those of all that is not the test set differ by far more than the tolerance.
    whole = data.load("digits", validation_fraction=0)
    assert abs(whole.mean[0] / digits.mean[0] - 1) > 1e-5


@pytest.mark.parametrize(
    ("fraction", "words"),
    [(1e-4, "leave nothing of digits"), (0.004, "no image of the class")],
)
def test_too_small_parts_are_refused(fraction, words):
    with pytest.raises(errors.UserError, match=words):
        data.load("digits", train_fraction=fraction)


# --- Normalisation and augmentation -------------------------------------------------


augment = jax.jit(augment, static_argnames=("crop_padding", "flips"))


def _images(count=24, side=8, channels=3, seed=0):
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(1, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalize_is_the_formula(dtype):
    images = _images()
    mean, std = np.float32([0.1, 0.5, 0.9]), np.float32([0.2, 0.3, 0.4])
    out = jax.jit(normalize, static_argnums=3)(images, mean, std, dtype)
    assert out.dtype == dtype
    want = (images / 255.0 - mean) / std
    rtol = 1e-5 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.asarray(out, np.float64), want, rtol, atol=1e-6)
    # Of one image, with statistics as JSON keeps them.
    one = normalize(images[3], mean.tolist(), std.tolist(), dtype)
    np.testing.assert_allclose(np.asarray(one, np.float64), want[3], rtol, atol=1e-6)
    with pytest.raises(TypeError, match="float64: give uint8"):
        normalize(images / 255, mean, std)


def _augment_literally(key, images, positions, crop_padding, flips):
    """The same, one image at a time in NumPy; only the draws come from JAX."""
    results = []
    for image, position in zip(images, positions, strict=True):
        crop_key, flip_key = jax.random.split(jax.random.fold_in(key, position))
        edge = crop_padding
        padded = np.zeros(np.add(image.shape, (2 * edge, 2 * edge, 0)), image.dtype)
        height, width = image.shape[:2]
        padded[edge : edge + height, edge : edge + width] = image
        row, column = 0, 0
        if crop_padding:
            row, column = jax.random.randint(crop_key, (2,), 0, 2 * edge + 1)
        image = padded[row : row + height, column : column + width]
        if flips and jax.random.bernoulli(flip_key):
            image = np.flip(image, axis=1)
        results.append(image)
    return np.stack(results)


@pytest.mark.parametrize("crop_padding", [0, 2])
@pytest.mark.parametrize("flips", [False, True])
def test_augment_equals_its_literal_twin(crop_padding, flips):
    key, images, positions = jax.random.key(5), _images(12), np.arange(100, 112)
    options = {"crop_padding": crop_padding, "flips": flips}
    out = augment(key, images, positions, **options)
    assert out.dtype == np.uint8
    want = _augment_literally(key, images, positions, **options)
    np.testing.assert_array_equal(out, want)
    changed = bool(crop_padding or flips)
    assert np.any(want != images) == changed
