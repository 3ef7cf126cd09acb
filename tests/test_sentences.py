"""Sentences of conclusion, on made-up numbers whose truth is known."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import pairing, statistics
from experiments.pairing import TEST_ACCURACY as ACCURACY
from experiments.pairing import VALIDATION_LOSS as LOSS
from experiments.sentences import conclusion
from experiments.statistics import PairedDifference, compare
from tests.made_up import difference, runs


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
    assert ("too few seeds to reach p = 0.05" in sentence) == (n < 6)


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


@pytest.mark.parametrize("center", [-0.3, 0.3])
def test_a_gain_is_the_rates_only_within_both_ends(center):
    # Of the matched rate's interval the far end counts, on whichever side it lies.
    plain, matched = difference(1, 10, spread=0.1), difference(center, 10, spread=0.6)
    far = max(-matched.interval[0], matched.interval[1])
    assert matched.verdict == 0
    assert far > 0.5
    assert "cannot be told." in told(plain, matched)
    near = difference(center / 3, 10, spread=0.2)
    far = max(-near.interval[0], near.interval[1])
    assert far < 0.5
    assert f"to within {far:.1f}" in told(plain, near)


def test_a_test_that_could_find_something_is_not_called_too_small():
    clear, tied = difference(1, 6, spread=0.1), compare([0, *range(5)], [0] * 6)
    assert "too few" not in conclusion("PLP", [("A", clear), ("B", tied)], ACCURACY)
    assert "too few" in conclusion("PLP", [("B", tied)], ACCURACY)


def test_what_is_alike_is_said_once():
    unclear = [(label, difference(0, 4)) for label in ("A", "B")]
    clear = [(label, difference(3, 4)) for label in ("C", "D")]
    sentence = conclusion("PLP", [*unclear, *clear, *unclear], ACCURACY)
    shape = re.sub(r" \([^)]*\)| by [^(]*\]", "", sentence)
    assert shape == (
        "PLP cannot be told apart from A in test accuracy, nor from B, and is ahead of "
        "C, and is ahead of D, and cannot be told apart from A, nor from B; too few "
        "seeds to reach p = 0.05."
    )


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
            pairing.difference(records, ACCURACY, "plp", control, "resnet18")
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
