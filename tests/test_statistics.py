"""Paired statistics, on made-up differences whose truth is known."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments import statistics
from experiments.statistics import PairedDifference, compare
from tests.made_up import difference

# -- Independent twins ---------------------------------------------------------------


def wilcoxon_twin(differences):
    """Two-sided p by going through all signs."""
    d = np.array([x for x in differences if x != 0])
    ranks = np.array(
        [(abs(d) < abs(x)).sum() + ((abs(d) == abs(x)).sum() + 1) / 2 for x in d]
    )
    statistic = abs(ranks @ np.sign(d))
    signs = np.array(list(itertools.product([-1, 1], repeat=len(d))))
    return np.mean(abs(signs @ ranks) >= statistic - 1e-9)


def bh_twin(p):
    """The smallest level at which the step-up procedure rejects each hypothesis."""
    p = np.asarray(p)
    order = sorted(p)
    return [
        min(1.0, min(q * len(p) / (k + 1) for k, q in enumerate(order) if q >= own))
        for own in p
    ]


def bca_twin(d, level, resamples=200_000):
    """Efron's BCa interval of the mean, from its formulas."""
    n = len(d)
    means = np.random.default_rng(1).choice(d, (resamples, n)).mean(1)
    z0 = stats.norm.ppf(np.mean(means < d.mean()) + np.mean(means == d.mean()) / 2)
    u = d - d.mean()  # proportional to the jackknife's deviations
    a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z = z0 + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(means, stats.norm.cdf(z0 + z / (1 - a * z)))


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9, 12])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_wilcoxon_against_all_signs(n, is_rounded):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    if is_rounded:  # ties and zeros
        d = np.round(d)
        d[0] = 2
    assert compare(d, np.zeros(n)).p == pytest.approx(wilcoxon_twin(d))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
def test_correction_against_its_definition(p):
    tested = [dataclasses.replace(difference(1, 3), p=x) for x in p]
    found = [d.corrected_p for d in statistics.corrected(tested)]
    assert found == pytest.approx(bh_twin(p))


def test_correction_passes_over_what_was_not_tested():
    nothing = compare([], [])
    one, two = difference(1, 8), difference(0, 8)
    found = statistics.corrected([nothing, one, nothing, two])
    assert [d.corrected_p is None for d in found] == [True, False, True, False]
    assert found[1].corrected_p == pytest.approx(min(2 * one.p, two.p))
    assert statistics.corrected([nothing]) == [nothing]


# In standard deviations; percentile intervals lie at least twice as far off.
@pytest.mark.parametrize(("n", "tolerance"), [(6, 0.08), (10, 0.05), (25, 0.015)])
def test_bootstrap_against_its_formulas(n, tolerance):
    d = np.random.default_rng(n).exponential(size=n)
    t = stats.t.ppf(0.975, n - 1)
    level = 1 - 2 * stats.norm.cdf(-t * math.sqrt(n / (n - 1)))
    twin = bca_twin(d, level)
    assert statistics.interval(d) == pytest.approx(twin, abs=tolerance * d.std())


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_seeds_get_the_interval_of_student(n):
    d = np.random.default_rng(n).normal(size=n)
    twin = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert compare(d, np.zeros(n)).interval == pytest.approx(tuple(twin))


@pytest.mark.parametrize(
    ("draw", "mean", "least"),
    [(np.random.Generator.normal, 0, 0.89), (np.random.Generator.exponential, 1, 0.82)],
    ids=["normal", "exponential"],
)
@pytest.mark.parametrize("n", [3, 5, 6, 10, 20])
def test_coverage(draw, mean, least, n):
    # The module's table has 2,000 trials.
    samples = draw(np.random.default_rng(n), size=(250, n))
    plain = [
        stats.bootstrap(
            (d,), np.mean, method="BCa", n_resamples=2000, rng=np.random.default_rng(0)
        ).confidence_interval
        for d in samples
    ]
    ours = np.array([statistics.interval(d) for d in samples])
    covers, plain_covers = (
        np.mean((bounds[:, 0] <= mean) & (mean <= bounds[:, 1]))
        for bounds in (ours, np.array(plain))
    )
    assert least < covers < 0.99
    assert covers >= plain_covers
    if n < statistics.MIN_SEEDS:
        assert covers > plain_covers + 0.05


# -- Invariances ---------------------------------------------------------------------

values = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=12
)


@given(values)
@settings(deadline=None, max_examples=40)
def test_swapping_the_arms_turns_signs_over(pairs):
    arm, control = np.array(pairs).T
    there, back = compare(arm, control), compare(control, arm)
    assert (there.wins, there.ties, there.losses) == (
        back.losses,
        back.ties,
        back.wins,
    )
    assert there.mean == pytest.approx(-back.mean)
    assert there.p == pytest.approx(back.p)
    assert there.verdict == -back.verdict
    if there.interval:
        low, high = back.interval
        assert there.interval == pytest.approx((-high, -low), abs=1e-9)


@given(values)
@settings(deadline=None, max_examples=40)
def test_counts_and_mean_against_python(pairs):
    # A hundredth of a point is the resolution of 10,000 test images.
    pairs = [(round(a, 2), round(c, 2)) for a, c in pairs]
    found = compare(*zip(*pairs, strict=True))
    assert found.n == len(pairs) == found.wins + found.ties + found.losses
    assert found.wins == sum(a > c for a, c in pairs)
    assert found.losses == sum(a < c for a, c in pairs)
    assert found.mean == pytest.approx(sum(a - c for a, c in pairs) / len(pairs))
    if found.interval:
        slack = 1e-9
        assert found.interval[0] - slack <= found.mean <= found.interval[1] + slack


@pytest.mark.parametrize("n", [3, 8])
def test_what_a_seed_adds_to_both_arms_changes_nothing(n):
    rng = np.random.default_rng(n)
    arm, control = np.round(rng.normal(50, 1, (2, n)), 2)
    of_seed = np.round(rng.normal(0, 10, n), 2)
    before, after = compare(arm, control), compare(arm + of_seed, control + of_seed)
    # Rounding decides on which side resampled means that equal the mean count.
    assert after.interval == pytest.approx(before.interval, abs=0.01)
    assert dataclasses.replace(after, mean=0, interval=None) == dataclasses.replace(
        before, mean=0, interval=None
    )


def test_lower_is_better_turns_wins_over_and_not_the_mean():
    high, low = difference(1, 8), difference(1, 8, higher_is_better=False)
    assert (high.wins, high.losses) == (low.losses, low.wins)
    assert (high.mean, high.interval, high.p) == (low.mean, low.interval, low.p)
    assert high.verdict == 1
    assert low.verdict == -1


# -- Degenerate cases: without a warning, which would be an error ---------------------


def test_no_seed():
    found = compare([], [])
    assert (found.n, found.interval, found.p, found.verdict) == (0, None, None, 0)
    assert math.isnan(found.mean)
    assert not found.is_confirmed


def test_one_seed():
    found = compare([2.0], [1.0])
    assert found == PairedDifference(1, 1.0, None, 1.0, wins=1, ties=0, losses=0)


@pytest.mark.parametrize("n", [2, 5, 6, 20])
def test_equal_differences(n):
    control = np.arange(n) / 10
    found = compare(control + 0.3, control)  # equal but for rounding
    assert found.interval == pytest.approx((0.3, 0.3))
    assert found.interval[0] == found.interval[1]
    # The fewer half of 2**n signs are as extreme: all of one sign.
    if n < 13:
        assert found.p == pytest.approx(2 ** (1 - n))


@pytest.mark.parametrize("n", [1, 2, 6, 20])
def test_equal_arms(n):
    found = compare(np.arange(n), np.arange(n))
    assert (found.mean, found.p, found.ties, found.verdict) == (0, 1, n, 0)
    assert found.interval == ((0, 0) if n > 1 else None)


@pytest.mark.parametrize("n", [6, 7, 12, 40])
def test_one_seed_that_differs_from_all_others(n):
    low, high = compare([1.0] + [0.0] * (n - 1), [0.0] * n).interval
    assert 0 <= low < 1 / n < high <= 1


@pytest.mark.parametrize("wrong", [([1.0, math.nan], [0, 0]), ([math.inf], [0])])
def test_values_must_be_finite(wrong):
    with pytest.raises(ValueError, match="finite"):
        compare(*wrong)


def test_values_must_be_paired():
    with pytest.raises(ValueError, match="shape"):
        compare([1.0, 2.0], [1.0])


@pytest.mark.parametrize("n", range(1, 9))
def test_the_least_p_decides_how_many_seeds_are_few(n):
    found = compare(np.arange(1, n + 1), np.zeros(n))  # as clear as can be
    assert found.is_confirmed == (n >= statistics.MIN_SEEDS)
