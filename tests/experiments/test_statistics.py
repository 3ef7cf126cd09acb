"""Paired statistics, on made-up differences whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.statistics import (
    BETTER,
    NOT_SHOWN,
    TOO_FEW,
    UNCORRECTED,
    compare,
    corrected,
    verdict,
)


def around(center, n, spread=0.3):
    """Differences with exactly this mean and standard deviation."""
    offsets = np.random.default_rng(n).normal(size=n)
    return center + spread * (offsets - offsets.mean()) / offsets.std(ddof=1)


def difference(center, n, *, spread=0.3):
    return compare(around(center, n, spread), np.zeros(n))


def judge(found, *, higher_is_better=True):
    """The verdict of a comparison that is corrected for no other."""
    return verdict(found, *corrected([found]), higher_is_better=higher_is_better)


# -- Interval and test -----------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_student_from_its_formulas(n):
    found = difference(0.2, n, spread=0.3)
    half = stats.t.ppf(0.975, n - 1) * 0.3 / math.sqrt(n)
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half))
    p = 2 * stats.t.sf(0.2 / (0.3 / math.sqrt(n)), n - 1)
    assert found.p == pytest.approx(p)


def bh_twin(p):
    """The smallest level at which the step-up procedure rejects each hypothesis."""
    order = sorted(p)
    return [
        min(1.0, min(q * len(p) / (k + 1) for k, q in enumerate(order) if q >= own))
        for own in p
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_correction_against_its_definition(p):
    tested = [difference(1, 5)._replace(p=x) for x in p]
    assert corrected(tested) == pytest.approx(bh_twin(p))


def test_correction_passes_over_what_is_not_tested():
    few, one, two = difference(1, 4), difference(1, 8), difference(0.1, 8)
    found = corrected([compare([], []), one, few, two])
    assert [p is None for p in found] == [True, False, True, False]
    assert found[1] == pytest.approx(min(2 * one.p, two.p))
    assert corrected([few]) == [None]


# -- Verdicts --------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(5))
def test_few_seeds_show_nothing_however_clear(n):
    assert judge(compare(np.linspace(1, 1.001, n), np.zeros(n))) == TOO_FEW


def test_the_corrected_p_decides():
    n, spread = 8, 1.0
    t = stats.t.ppf(1 - 0.04 / 2, n - 1)  # p = 0.04
    found = difference(t * spread / math.sqrt(n), n, spread=spread)
    assert found.low > 0
    assert judge(found) == BETTER
    null = difference(0.01, n)
    p, *_ = corrected([found, null, null, null, null])
    assert verdict(found, p, higher_is_better=True) == UNCORRECTED
    assert judge(null) == NOT_SHOWN


# 0.01 is the resolution of 10,000 test images, in points.
pairs = st.lists(
    st.tuples(
        st.integers(0, 9999).map(lambda x: x / 100),
        st.integers(0, 9999).map(lambda x: x / 100),
    ),
    min_size=1,
    max_size=12,
)


# -- Invariances -----------------------------------------------------------------------


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_counts_mean_and_swapped_arms(pairs):
    arm, control = map(list, zip(*pairs, strict=True))
    found, back = compare(arm, control), compare(control, arm)
    assert found.n == len(pairs) == found.up + found.tied + found.down
    assert found.up == sum(a > c for a, c in pairs) == back.down
    assert found.down == sum(a < c for a, c in pairs) == back.up
    mean = sum(a - c for a, c in pairs) / len(pairs)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert back.mean == -found.mean
    assert back.p == found.p
    if found.low is not None:
        assert found.low <= found.mean <= found.high
        assert (back.low, back.high) == (-found.high, -found.low)


# -- Degenerate cases: without a warning, which would be an error ----------------------


def test_no_seed():
    found = compare([], [])
    assert (found.n, found.low, found.p) == (0, None, None)
    assert judge(found) == TOO_FEW
    assert math.isnan(found.mean)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20])
def test_equal_differences_have_no_spread_and_the_sign_tests_p(n):
    control = np.arange(n) / 10
    found = compare(control + 0.3, control)  # equal up to rounding
    assert found.low is None
    assert found.mean == pytest.approx(0.3)
    # Two of 2**n combinations of signs are as extreme.
    assert found.p == pytest.approx(2 ** (1 - n))
    assert judge(found) == (BETTER if n > 5 else NOT_SHOWN if n == 5 else TOO_FEW)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_equal_arms(n):
    found = compare(np.arange(n), np.arange(n))
    assert (found.mean, found.p, found.tied, found.low) == (0, 1, n, None)
    assert judge(found) == (NOT_SHOWN if n > 5 else TOO_FEW)


@pytest.mark.parametrize("wrong", [([1.0, math.nan], [0, 0]), ([math.inf], [0])])
def test_values_must_be_finite(wrong):
    with pytest.raises(ValueError, match="finite"):
        compare(*wrong)


def test_values_must_be_paired():
    with pytest.raises(ValueError, match="shape"):
        compare([1.0, 2.0], [1.0])
