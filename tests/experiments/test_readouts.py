"""Read-outs of a run and its decays, against a literal loop; the choice of settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest

from experiments import table as tables
from experiments.readouts import courses
from experiments.readouts.tasks import ReadoutTask
from experiments.records import Header, Record
from experiments.reports import readouts as report
from experiments.studies.readouts import CHOICE_SEEDS, STUDY

STEPS, RATE, SEED = 160, 0.1, 3
TARGET = np.array([1.0, -2.0])


def noise(key):
    return jax.random.normal(key, (2,))


TASK = ReadoutTask(
    init=lambda key: {"params": jnp.zeros(2)},
    loss=lambda variables, batch: (
        ((variables["params"] - TARGET - batch) ** 2).sum() / 2
    ),
    sample=noise,
    evaluate=lambda variables: variables["params"] - TARGET,
    direction=optax.identity(),
    loops=True,
)


def by_hand(stop, part, shape, exponent=0):
    """Parameters after each step, whose rate decays over the last part."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED), 1), STEPS)
    w, path = np.zeros(2), []
    begin = stop - round(part * stop)
    for i in range(stop):
        warmup = (i + 1) / (STEPS / 40)
        rate = RATE * (warmup if warmup < 1 else warmup**-exponent)
        if i >= begin:
            rate *= shape((i - begin) / (stop - begin))
        w = w - rate * (w - TARGET - np.asarray(noise(keys[i]), np.float64))
        path.append(w)
    return np.stack(path)


def test_read_outs_and_decays():
    found = {
        (r.step, r.readout): np.array([r.choice, r.loss])
        for r in courses.run(TASK, rate=RATE, seed=SEED, steps=STEPS, parts=(0.5,))
    }
    # Each shape has a decay and a blend.
    assert len(found) == len(courses.HORIZONS) * (courses.CONSTANT + 2 * 3)
    for stop in (20, 160):
        path = by_hand(stop, 0, None)
        power = path[0]
        for n in range(2, stop + 1):
            power = power + 17 / (n + 16) * (path[n - 1] - power)
        ema = np.zeros(2)
        for t, w in enumerate(path, 1):
            ema = ema + (10 + t) ** -0.5 * (w - ema)
        decayed = by_hand(stop, 0.5, lambda x: 1 - x)[-1]
        expected = {
            "last": path[-1],
            "power-16": power,
            "bema-0.4": ema + (10 + stop) ** -0.4 * path[-1],  # from 0
            "merge-linear-0.2": path[-stop // 5 :].mean(axis=0),
            "decay-linear-0.5": decayed,
            "decay-cosine-0.5": by_hand(
                stop, 0.5, lambda x: (1 + np.cos(np.pi * x)) / 2
            )[-1],
        }
        for name, w in expected.items():
            np.testing.assert_allclose(found[stop, name], w - TARGET, atol=2e-6)
    raw = by_hand(160, 0, None)[1::2][-16:].mean(axis=0)  # blocks of two steps
    np.testing.assert_allclose(found[160, "raw-linear-0.2"], raw - TARGET, atol=2e-6)


def test_a_rate_that_falls_as_one_over_the_root_of_the_step():
    given = {"rate": RATE, "seed": SEED, "steps": STEPS, "shapes": (), "parts": ()}
    found = {
        (r.step, r.readout): np.array([r.choice, r.loss])
        for r in courses.run(TASK, exponent=0.5, **given)
    }
    assert len(found) == len(courses.HORIZONS) * courses.CONSTANT
    for stop in (20, 160):
        last = by_hand(stop, 0, None, exponent=0.5)[-1]
        np.testing.assert_allclose(found[stop, "last"], last - TARGET, atol=2e-6)


def record(arm, seed, losses):
    rows = [
        {"step": 20, "readout": name, "choice": choice, "loss": loss}
        for name, (choice, loss) in losses.items()
    ]
    config = STUDY.configure(
        STUDY.scale("quick").fields, "characters", STUDY.arm(arm)
    ) | ({"seed": seed} if seed else {})
    return Record(arm, "characters", seed, config, {"loss": 1.0, "steps": 20}, rows)


def test_rates_are_listed_with_what_ran():
    """Two rates of three, one of them with a seed less, and a rate that falls."""
    rows = {"last": (3.0, 9.0), "power-16": (1.0, 9.0), "power-8": (0.5, 9.0)}
    rows |= {"decay-linear-0.1": (2.0, 9.0), "decay-linear-0.2": (1.5, 9.0)}
    records = [record("adamw-0.0056", seed, rows) for seed in CHOICE_SEEDS]
    records += [record("adamw-0.01", seed, rows) for seed in CHOICE_SEEDS[1:]]
    falling = [record("adamw-0.01-0.5-falling", 0, rows)]
    header = Header("readouts", "quick", ["characters"], STUDY.scale("quick").fields)
    (text,) = report.rates(tables.make(STUDY, header, records + falling))
    assert "| rate 0.0056 | 3.0000 | 1.0000 | 1.5000 |" in text
    assert "| rate 0.01 | (3.0000) | (1.0000) | (1.5000) |" in text
    assert "falling" not in text
    assert report.rates(tables.make(STUDY, header, falling)) == []


def test_settings_are_chosen_on_other_seeds_and_other_data():
    """Rate 0.0056 has the lower choosing loss, and the higher one elsewhere."""
    chosen = {
        "decay-linear-0.1": (1.0, 9.0),
        "power-16": (0.5, 9.0),
        "last": (3.0, 9.0),
        "bema-0.4": (2.0, 9.0),
    }
    others = {n: (c + 1, 0.0) for n, (c, _) in chosen.items()}
    records = [
        record(arm, seed, losses)
        for seed in CHOICE_SEEDS
        for arm, losses in (
            ("adamw-0.0056", chosen),
            ("adamw-0.0032", others),
            ("adamw-0.018-0.5-falling", {"power-16": (0.4, 9.0), "last": (0.0, 9.0)}),
            ("adamw-0.032-0.5-falling", {"power-16": (0.6, 9.0), "last": (0.0, 9.0)}),
        )
    ]
    # The lowest loss of all, on one choosing seed only.
    lucky = dict.fromkeys(chosen, (-9.0, 90.0))
    records.append(record("adamw-0.01", CHOICE_SEEDS[0], lucky))
    rng = np.random.default_rng(0)
    for seed in range(3, 9):
        records.append(record("adamw-0.01", seed, lucky))
        end = rng.normal()
        reported = {
            "decay-linear-0.1": (0.0, end),
            "power-16": (0.0, end - 1),
            "last": (0.0, end + 2),
            "bema-0.4": (0.0, end + 3),
        }
        records.append(record("adamw-0.0056", seed, reported))
        records.append(record("adamw-0.0032", seed, {"power-16": (0.0, -50.0)}))
        for arm, difference in (("0.018", -4), ("0.032", -60)):
            falls = {"power-16": (0.0, end + difference), "last": (0.0, -90.0)}
            records.append(record(f"adamw-{arm}-0.5-falling", seed, falls))
    header = Header("readouts", "quick", ["characters"], STUDY.scale("quick").fields)
    own = report.compared(tables.make(STUDY, header, records))
    assert own.models == ("characters, 20 steps",)
    found = tables.compare(own, report.METRICS)
    means = {
        (arm, control): mean
        for arm, control, mean in found.select("arm", "control", "mean").iter_rows()
    }
    assert means["power", "decay"] == pytest.approx(-1)
    assert means["one", "last"] == pytest.approx(-3)
    assert means["one", "own"] == pytest.approx(-1)
    assert means["bema", "decay"] == pytest.approx(3)
    assert means["falling", "decay"] == pytest.approx(-4)
    assert means["falling", "one"] == pytest.approx(-3)
    assert ("bema", "ema") not in means  # no EMA was read out
    assert means["last", "decay"] == pytest.approx(2)
    assert found.filter(pl.col("n") != 6).is_empty()
