"""Differences between lengths in steps, on a curve whose inverse is known."""

import numpy as np
import pytest
from polars import col

from experiments import lengths
from experiments import table as tables
from experiments.records import Header, Record
from experiments.study import Arm, Comparison, Scale, Study
from experiments.table import Metric

LOSS = Metric("loss", "loss", "nats", 4, col("loss"))
LENGTHS = (100, 200, 400)


def made(curve, *, ahead):
    """Runs of an arm with this loss by length, and of controls as if ``ahead`` times
    as long."""
    setups = [f"words, {length} steps" for length in LENGTHS]
    controls = tuple(f"by-{by}" for by in ahead)
    study = Study(
        "made",
        "?",
        "?",
        arms=tuple(Arm(name, name, {}) for name in ("one", *controls)),
        scales=(Scale("quick", models=tuple(setups), seeds=5, fields={}),),
        extra_comparisons=tuple(Comparison("one", name) for name in controls),
        execute=lambda config, tick: None,
    )
    noise = np.random.default_rng(0).normal(scale=0.01, size=(1 + len(ahead), 5))
    noise -= noise.mean(axis=1, keepdims=True)
    records = [
        Record(name, setup, seed, {}, {"loss": curve(length * by) + e})
        for setup, length in zip(setups, LENGTHS, strict=True)
        for name, by, errors in zip(("one", *controls), (1, *ahead), noise, strict=True)
        for seed, e in enumerate(errors)
    ]
    table = tables.make(study, Header("made", "quick", setups, {}), records)
    return table, tables.compare(table, [LOSS])


@pytest.mark.parametrize("ahead", [0.75, 1.25])
def test_a_loss_that_falls_with_the_logarithm_is_inverted_exactly(ahead):
    table, found = made(lambda length: 3 - 0.2 * np.log2(length), ahead=[ahead])
    entries = lengths.saved(table, found, "one")
    assert [entry.model for entry in entries] == list(found["model"])
    for entry, length in zip(entries, LENGTHS, strict=True):
        assert entry.mean == pytest.approx(length * (1 - ahead))
        assert entry.low < entry.mean < entry.high
    (text,) = lengths.write(table, entries)
    assert f"| words | 200 steps | by-{ahead} | {200 - 200 * ahead:+.0f} |" in text


def test_a_loss_that_rises_has_no_lengths():
    table, found = made(lambda length: length / 100, ahead=[0.5])
    assert lengths.saved(table, found, "one") == []
    assert lengths.write(table, []) == []


def test_a_bent_curve_is_followed_piece_by_piece():
    """Losses 2, 1 and 0.6: between 100 and 200 steps, above 200, and beyond 400."""
    losses = dict(zip(LENGTHS, (2.0, 1.0, 0.6), strict=True))
    table, found = made(losses.get, ahead=[1])
    given = {"words, 100 steps": 0.5, "words, 200 steps": -0.4, "words, 400 steps": 0.1}
    moved = found.with_columns(
        mean=col("model").replace_strict(given), low=-0.2, high=0.3
    )
    entries = {entry.model: entry for entry in lengths.saved(table, moved, "one")}
    # Losses to reach: 1.5, 1.4 and 0.5.
    expected = [100 * 2**0.5, 100 * 2**0.6, 400 * 2**0.25]
    for (model, entry), length, at in zip(
        entries.items(), LENGTHS, expected, strict=True
    ):
        assert entry.mean == pytest.approx(length - at), model
    at_200 = entries["words, 200 steps"]
    assert at_200.low == pytest.approx(200 - 200 * 2 ** (0.3 / 0.4))
    assert at_200.high == pytest.approx(200 - 100 * 2**0.8)
