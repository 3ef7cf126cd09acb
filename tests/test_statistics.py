"""Paired statistics, on made-up runs whose truth is known."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments import statistics
from experiments.records import Record
from experiments.statistics import PairedDifference, compare, conclusion
from training.errors import RunError

ACCURACY, LOSS = statistics.TEST_ACCURACY, statistics.VALIDATION_LOSS


def made_up(arm, seed, *, curve=(0.5,), model="resnet18", **result):
    """A run that attains these validation accuracies, epoch by epoch."""
    history = [
        {"epoch": e, "validation_accuracy": a, "validation_loss": 1.0}
        for e, a in enumerate(curve, start=1)
    ]
    return Record(arm, model, seed, config={}, result=result, history=history)


def runs(arm, accuracies):
    return [
        made_up(arm, seed, test_accuracy=accuracy)
        for seed, accuracy in enumerate(accuracies)
    ]


def around(center, n, spread=0.3):
    """Differences with exactly this mean, and their own sign each."""
    offsets = np.random.default_rng(n).normal(size=n)
    offsets = (offsets - offsets.mean()) / offsets.std()
    return center + spread * offsets


def difference(center, n, *, spread=0.3, **kwargs):
    return compare(around(center, n, spread), np.zeros(n), **kwargs)


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


# -- From records --------------------------------------------------------------------


def test_pairs_are_of_shared_seeds_that_finished():
    records = [
        made_up("plp", 8, test_accuracy=0.53),
        made_up("plp", 1, test_accuracy=0.51),
        made_up("plp", 2, diverged="loss is nan"),
        made_up("plp", 5, test_accuracy=0.55),  # the control was not run
        made_up("sgd", 1, test_accuracy=0.41),
        made_up("sgd", 2, test_accuracy=0.42),
        made_up("sgd", 8, test_accuracy=0.43),
        made_up("plp", 4, test_accuracy=0.54),
        made_up("sgd", 4, diverged="loss is nan"),
        made_up("sgd", 6, diverged="loss is nan"),  # nor here the arm
        made_up("sgd", 1, test_accuracy=0.1, model="vgg16"),
    ]
    found = statistics.paired(records, ACCURACY, "plp", "sgd", "resnet18")
    assert found.seeds == (1, 8)
    assert found.arm == pytest.approx((51, 53))
    assert found.control == pytest.approx((41, 43))
    assert found.diverged == (1, 1)
    compared = statistics.difference(records, ACCURACY, "plp", "sgd", "resnet18")
    assert compared.mean == pytest.approx(10)
    assert (compared.n, compared.diverged, compared.wins) == (2, (1, 1), 2)
    assert not statistics.paired(records, ACCURACY, "plp", "sgd", "googlenet").seeds


@pytest.mark.parametrize(
    ("metric", "entry", "better", "worse", "mean"),
    [
        (ACCURACY, "test_accuracy", 0.6, 0.5, 10),
        (statistics.TEST_TOP5_ERROR, "test_top5_error", 0.1, 0.2, -10),
        (LOSS, "validation_loss", 1.0, 1.5, -0.5),
        (statistics.BEST_EPOCH, "best_epoch", 7, 9, -2),
    ],
)
def test_metrics_know_their_unit_and_direction(metric, entry, better, worse, mean):
    records = [
        made_up("plp", 0, **{entry: better}),
        made_up("sgd", 0, **{entry: worse}),
    ]
    found = statistics.difference(records, metric, "plp", "sgd", "resnet18")
    assert found.wins == 1
    assert found.mean == pytest.approx(mean)


def test_a_run_without_the_metric_is_an_error():
    records = [made_up("plp", 4, validation_loss=None), made_up("sgd", 4)]
    with pytest.raises(RunError, match=r"plp with seed 4 has no validation_loss"):
        statistics.paired(records, LOSS, "plp", "sgd", "resnet18")


def test_a_seed_that_ran_twice_is_an_error():
    records = [*runs("plp", [0.5, 0.6]), *runs("plp", [0.7]), *runs("sgd", [0.5])]
    with pytest.raises(RunError, match="two resnet18 runs of plp with seed 0"):
        statistics.paired(records, ACCURACY, "plp", "sgd", "resnet18")


# -- Epochs to a target --------------------------------------------------------------


def test_the_first_epoch_that_reaches_the_target():
    history = made_up("sgd", 0, curve=(0.1, None, 0.5, 0.4, 0.6)).history
    assert statistics.epochs_to_target(history, 0.5) == 3
    assert statistics.epochs_to_target(history, 0.1) == 1
    assert statistics.epochs_to_target(history, 0.55) == 5
    assert statistics.epochs_to_target(history, 0.7) is None
    assert statistics.epochs_to_target([], 0.7) is None
    assert statistics.epochs_to_target(history, 0.1, "train_accuracy") is None


def test_the_target_is_the_controls():
    records = [
        made_up("sgd", 0, curve=(0.2, 0.6, 0.5)),
        made_up("sgd", 1, curve=(0.2, 0.4)),
        made_up("sgd", 2, curve=(0.9,), diverged="loss is nan"),
        made_up("plp", 0, curve=(0.9,)),
    ]
    assert statistics.target_accuracy(records, "sgd", "resnet18", 0.9) == (
        pytest.approx(0.45)
    )
    assert statistics.target_accuracy(records, "sgd", "vgg16") is None


def test_time_to_target_with_runs_that_never_reach_it():
    arm = [(0.5,), (0.1, 0.5), (0.1, 0.1), (0.1, 0.1), (0.1, 0.5)]
    control = [(0.1, 0.5), (0.1, 0.1), (0.5, 0.1), (0.1, 0.1), (0.1, 0.5)]
    records = [made_up("plp", s, curve=c) for s, c in enumerate(arm)]
    records += [made_up("sgd", s, curve=c) for s, c in enumerate(control)]
    found = statistics.time_to_target(records, "plp", "sgd", "resnet18", 0.5)
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)
    assert found.reached == (3, 3)
    assert found.median == (2, 2)
    assert found.p == 1  # two of three heads
    higher = statistics.time_to_target(records, "plp", "sgd", "resnet18", 0.6)
    assert (higher.reached, higher.ties, higher.p) == ((0, 0), 5, 1)
    assert higher.median == (math.inf, math.inf)
    nobody = statistics.time_to_target(records, "plp", "sgd", "vgg16", 0.5)
    assert (nobody.n, nobody.p) == (0, None)


def test_a_run_that_diverged_never_reaches_the_target():
    records = [made_up("sgd", s, curve=(0.1, 0.5)) for s in range(7)]
    records += [made_up("plp", s, curve=(0.3,), diverged="nan") for s in range(7)]
    found = statistics.time_to_target(records, "plp", "sgd", "resnet18", 0.5)
    assert (found.wins, found.losses, found.reached) == (0, 7, (0, 7))
    assert found.p == pytest.approx(2 / 2**7)
    told = statistics.target_conclusion("PLP", "SGD", found)
    assert "by PLP never (0 of 7 runs) and by SGD after 2 epochs (7 of 7 runs)" in told
    assert "later on 7 of 7 seeds (p = 0.016 in a sign test)" in told


# -- Sentences -----------------------------------------------------------------------


def told(plain, matched=None, metric=ACCURACY):
    against = [("SGD", plain)] + ([("SGD x 9/8", matched)] if matched else [])
    return conclusion("PLP", against, metric, matched="SGD x 9/8" if matched else None)


CLEAR, NONE = 0.8, 0.0


@pytest.mark.parametrize(
    ("plain", "matched", "says"),
    [
        (CLEAR, NONE, "its gain here is that of a higher rate, to within"),
        (CLEAR, CLEAR, "its gain here goes beyond that of a higher rate"),
        (CLEAR, -CLEAR, "a higher rate alone gains more"),
        (-CLEAR, NONE, "its loss here is that of a higher rate, to within"),
        (-CLEAR, -CLEAR, "its loss here goes beyond that of a higher rate"),
        (-CLEAR, CLEAR, "a higher rate alone loses more"),
        (NONE, CLEAR, "it does better than a higher rate, but not than none"),
        (NONE, -CLEAR, "a higher rate alone does better"),
    ],
)
@pytest.mark.parametrize("n", [4, 10])
@pytest.mark.parametrize("metric", [ACCURACY, LOSS])
def test_where_a_difference_comes_from(plain, matched, says, n, metric):
    sign = 1 if metric.higher_is_better else -1
    plain, matched = (
        difference(sign * x, n, spread=0.1, higher_is_better=metric.higher_is_better)
        for x in (plain, matched)
    )
    assert f": {says}" in told(plain, matched, metric)


def test_nothing_is_said_of_a_source_where_nothing_was_found():
    assert "higher rate" not in told(difference(0, 10), difference(0, 10))
    assert "higher rate" not in told(difference(1, 10), compare([], []))


def test_a_wide_interval_does_not_say_that_a_gain_is_the_rates():
    sentence = told(difference(CLEAR, 10, spread=0.1), difference(0, 10, spread=1))
    assert "whether its gain is more than that of a higher rate cannot be" in sentence


@pytest.mark.parametrize(
    ("n", "center", "start"),
    [
        (10, CLEAR, "PLP beats SGD by 0.8"),
        (10, -CLEAR, "PLP loses to SGD by 0.8"),
        (3, CLEAR, "PLP is ahead of SGD by 0.8"),
        (3, -CLEAR, "PLP is behind SGD by 0.8"),
        (10, NONE, "PLP cannot be told apart from SGD in test accuracy (gain 0.0"),
        (3, NONE, "PLP cannot be told apart from SGD in test accuracy (gain 0.0"),
    ],
)
def test_verbs_follow_from_the_numbers(n, center, start):
    sentence = told(difference(center, n, spread=0.2))
    assert sentence.startswith(start)
    assert ("too few seeds to reach 0.05" in sentence) == (n < 6)


def test_the_sentence_tells_the_numbers():
    plain = PairedDifference(10, 0.8, (0.3, 1.2), 0.0098, 9, 0, 1)
    matched = PairedDifference(10, 0.0, (-0.4, 0.4), 0.92, 4, 1, 5)
    assert told(plain, matched) == (
        "PLP beats SGD by 0.8 points in test accuracy [0.3, 1.2] (better on 9 of 10 "
        "seeds; p = 0.0098), and cannot be told apart from SGD x 9/8 "
        "(gain 0.0 points [-0.4, 0.4]; better on 4 of 10 seeds, 1 tied; p = 0.92): its "
        "gain here is that of a higher rate, to within 0.4 points."
    )


@pytest.mark.parametrize(
    ("gain", "interval", "verb", "numbers"),
    [
        (-0.041, (-0.043, -0.039), "beats", "0.041 nats"),
        (0.041, (0.039, 0.043), "loses to", "0.041 nats"),
    ],
)
def test_a_lower_loss_is_told_as_a_gain(gain, interval, verb, numbers):
    found = PairedDifference(9, gain, interval, 0.004, 9, 0, 0, higher_is_better=False)
    sentence = told(found, metric=LOSS)
    assert f"{verb} SGD by {numbers} in validation loss [0.039, 0.043]" in sentence


@given(
    mean=st.floats(-100, 100),
    below=st.floats(1e-4, 100),
    above=st.floats(1e-4, 100),
)
def test_what_is_printed_agrees_with_the_verdict(mean, below, above):
    interval = mean - below, mean + above
    sentence = told(PairedDifference(9, mean, interval, 0.004, 9, 0, 0))
    low, high = map(float, sentence[sentence.index("[") + 1 :].split("]")[0].split(","))
    leaves_out_zero = low > 0 or high < 0
    assert leaves_out_zero == (sentence.startswith(("PLP beats", "PLP loses")))
    assert "-0.0 " not in sentence
    assert abs((high - low) - (above + below)) <= (above + below) / 2


def test_an_end_that_is_not_zero_is_not_printed_as_zero():
    assert "[0.004, 0.996]" in told(
        PairedDifference(9, 0.5, (0.004, 0.996), 0.01, 8, 0, 1)
    )


def test_correction_turns_a_win_into_a_lead():
    found = difference(CLEAR, 7, spread=0.1)
    assert told(found).startswith("PLP beats SGD")
    many = [found, *(difference(0, 7) for _ in range(20))]
    after = statistics.corrected(many)[0]
    assert told(after).startswith("PLP is ahead of SGD")
    assert "p = 0.016, corrected 0.33" in told(after)


def test_sentences_of_degenerate_cases():
    assert told(compare([], [])) == "PLP has no finished seed in common with SGD."
    assert told(compare([51.5], [51])) == (
        "PLP has a gain of 0.5 points in test accuracy over SGD on one seed, which "
        "tells nothing."
    )
    assert told(compare([1, 2], [1, 2])) == (
        "PLP equals SGD in test accuracy on all 2 seeds."
    )


def test_sentences_tell_of_runs_that_diverged():
    plain = dataclasses.replace(difference(CLEAR, 8), diverged=(2, 0))
    matched = dataclasses.replace(difference(CLEAR, 7), diverged=(2, 3))
    sentence = told(plain, matched)
    assert sentence.endswith(
        "left out are runs that diverged: 2 of PLP, 3 of SGD x 9/8."
    )
    assert "diverged" not in told(difference(CLEAR, 8))


@pytest.mark.parametrize("truth", [0.0, 0.01])
def test_from_records_to_the_sentence(truth):
    """Ten seeds whose spread, 2 points, hides what pairing shows."""
    rng = np.random.default_rng(4)
    of_seed, noise = rng.normal(0.6, 0.02, 10), rng.normal(0, 0.003, (3, 10))
    records = [
        *runs("sgd", of_seed + noise[0]),
        *runs("plp", of_seed + noise[1] + truth),
        *runs("matched", of_seed + noise[2] + truth),
    ]
    plain, matched = statistics.corrected(
        [
            statistics.difference(records, ACCURACY, "plp", control, "resnet18")
            for control in ("sgd", "matched")
        ]
    )
    assert plain.interval[0] < 100 * truth < plain.interval[1]
    sentence = told(plain, matched)
    if truth:
        assert sentence.startswith("PLP beats SGD by")
        assert "its gain here is that of a higher rate" in sentence
    else:
        assert sentence.startswith("PLP cannot be told apart from SGD")
        assert "higher rate" not in sentence
