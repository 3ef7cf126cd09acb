"""Paired statistics, on made-up differences whose truth is known."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments import statistics
from experiments.statistics import BETTER, NOT_SHOWN, TOO_FEW, WORSE, compare


def around(center, n, spread=0.3):
    """Differences with exactly this mean and standard deviation."""
    offsets = np.random.default_rng(n).normal(size=n)
    return center + spread * (offsets - offsets.mean()) / offsets.std(ddof=1)


def difference(center, n, *, spread=0.3, **kwargs):
    return compare(around(center, n, spread), np.zeros(n), **kwargs)


# -- Interval and test -----------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_student_from_its_formulas(n):
    found = difference(0.2, n, spread=0.3)
    half = stats.t.ppf(0.975, n - 1) * 0.3 / math.sqrt(n)
    assert found.mean == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half))
    p = 2 * stats.t.sf(0.2 / (0.3 / math.sqrt(n)), n - 1)
    assert found.p == pytest.approx(p)


@pytest.mark.parametrize(
    ("draw", "mean", "least", "most"),
    [
        (np.random.Generator.normal, 0, 0.92, 0.98),
        (np.random.Generator.exponential, 1, 0.84, 0.94),
    ],
    ids=["normal", "exponential"],
)
@pytest.mark.parametrize("n", [3, 10])
def test_coverage(draw, mean, least, most, n):
    # The module's table has 20,000 draws.
    samples = draw(np.random.default_rng(n), size=(600, n))
    bounds = np.array([compare(d, np.zeros(n)).interval for d in samples])
    covers = np.mean((bounds[:, 0] <= mean) & (mean <= bounds[:, 1]))
    assert least < covers < most


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
    tested = [dataclasses.replace(difference(1, 5), p=x) for x in p]
    found = [d.corrected_p for d in statistics.corrected(tested)]
    assert found == pytest.approx(bh_twin(p))


def test_correction_passes_over_what_is_not_tested():
    few, one, two = difference(1, 4), difference(1, 8), difference(0.1, 8)
    found = statistics.corrected([compare([], []), one, few, two])
    assert [d.corrected_p is None for d in found] == [True, False, True, False]
    assert found[1].corrected_p == pytest.approx(min(2 * one.p, two.p))
    assert statistics.corrected([few]) == [few]


# -- Verdicts --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 6, 10])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_verdicts_have_the_metrics_direction(n, higher_is_better):
    up = difference(1, n, higher_is_better=higher_is_better)
    down = difference(-1, n, higher_is_better=higher_is_better)
    assert up.mean > 0 > down.mean
    expected = (BETTER, WORSE) if higher_is_better else (WORSE, BETTER)
    assert (up.verdict, down.verdict) == expected
    assert (up.wins, up.losses) == ((n, 0) if higher_is_better else (0, n))


@pytest.mark.parametrize("n", range(5))
def test_few_seeds_show_nothing_however_clear(n):
    found = compare(np.linspace(1, 1.001, n), np.zeros(n))
    assert found.verdict == TOO_FEW
    assert statistics.corrected([found])[0].verdict == TOO_FEW


def test_the_corrected_p_decides():
    n, spread = 8, 1.0
    t = stats.t.ppf(1 - 0.04 / 2, n - 1)  # p = 0.04
    found = difference(t * spread / math.sqrt(n), n, spread=spread)
    assert found.verdict == BETTER
    assert found.interval[0] > 0
    null = difference(0.01, n)
    alone, among = (statistics.corrected([found, *[null] * k])[0] for k in (0, 4))
    assert (alone.verdict, among.verdict) == (BETTER, NOT_SHOWN)


# 0.01 is the resolution of 10,000 test images, in points.
pairs = st.lists(
    st.tuples(
        st.integers(0, 9999).map(lambda x: x / 100),
        st.integers(0, 9999).map(lambda x: x / 100),
    ),
    min_size=1,
    max_size=12,
)


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_a_verdict_agrees_with_interval_and_sign(pairs):
    for higher_is_better in (True, False):
        d = compare(*zip(*pairs, strict=True), higher_is_better=higher_is_better)
        if d.verdict in (BETTER, WORSE):
            gain = d.mean if higher_is_better else -d.mean
            assert (gain > 0) == (d.verdict == BETTER)
            assert d.interval is None or d.interval[0] * d.interval[1] > 0


# -- Invariances -----------------------------------------------------------------------


@given(pairs)
@settings(deadline=None, max_examples=60)
def test_counts_mean_and_swapped_arms(pairs):
    arm, control = map(list, zip(*pairs, strict=True))
    found, back = compare(arm, control), compare(control, arm)
    assert found.n == len(pairs) == found.wins + found.ties + found.losses
    assert found.wins == sum(a > c for a, c in pairs) == back.losses
    assert found.losses == sum(a < c for a, c in pairs) == back.wins
    mean = sum(a - c for a, c in pairs) / len(pairs)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert back.mean == -found.mean
    assert back.p == found.p
    if found.interval:
        low, high = found.interval
        assert low <= found.mean <= high
        assert back.interval == (-high, -low)


@pytest.mark.parametrize("n", [3, 8])
def test_what_a_seed_adds_to_both_arms_changes_nothing(n):
    rng = np.random.default_rng(n)
    arm, control = rng.normal(50, 1, (2, n))
    of_seed = rng.normal(0, 10, n)
    before, after = compare(arm, control), compare(arm + of_seed, control + of_seed)
    assert after.interval == pytest.approx(before.interval)
    assert after.p == pytest.approx(before.p)


# -- Degenerate cases: without a warning, which would be an error ----------------------


def test_no_seed():
    found = compare([], [])
    assert (found.n, found.interval, found.p, found.verdict) == (0, None, None, TOO_FEW)
    assert math.isnan(found.mean)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 20])
def test_equal_differences_have_no_spread_and_the_sign_tests_p(n):
    control = np.arange(n) / 10
    found = compare(control + 0.3, control)  # equal up to rounding
    assert found.interval is None
    assert found.mean == pytest.approx(0.3)
    # Two of 2**n combinations of signs are as extreme.
    assert found.p == pytest.approx(2 ** (1 - n))
    assert found.verdict == (BETTER if n > 5 else NOT_SHOWN if n == 5 else TOO_FEW)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_equal_arms(n):
    found = compare(np.arange(n), np.arange(n))
    assert (found.mean, found.p, found.ties, found.interval) == (0, 1, n, None)
    assert found.verdict == (NOT_SHOWN if n > 5 else TOO_FEW)


@pytest.mark.parametrize("wrong", [([1.0, math.nan], [0, 0]), ([math.inf], [0])])
def test_values_must_be_finite(wrong):
    with pytest.raises(ValueError, match="finite"):
        compare(*wrong)


def test_values_must_be_paired():
    with pytest.raises(ValueError, match="shape"):
        compare([1.0, 2.0], [1.0])
