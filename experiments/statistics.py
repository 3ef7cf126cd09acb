"""Paired comparisons of two arms over seeds, and the sentences that follow from them.

Intervals are for the mean difference, at 95 %. Where the truth is known, this part of
them holds it, in 2,000 draws of normal and (after the comma) exponential differences:

| seeds | plain BCa bootstrap | here | which is |
|---|---|---|---|
| 3 | 72 %, 67 % | 95 %, 88 % | Student's t |
| 5 | 84 %, 79 % | 96 %, 88 % | Student's t |
| 6 | 85 %, 83 % | 93 %, 90 % | BCa, adjusted |
| 10 | 90 %, 88 % | 94 %, 92 % | BCa, adjusted |
| 20 | 93 %, 91 % | 95 %, 93 % | BCa, adjusted |

(``test_coverage`` in tests/test_statistics.py.) With few values a bootstrap is too
narrow: it takes the spread of the sample for that of the population, and a normal
distribution's tails for Student's. So BCa is asked for the higher level at which it is
as wide as Student's interval if the differences look normal, and follows their skew if
they do not (Hesterberg, *What Teachers Should Know About the Bootstrap*, The American
Statistician 69:371, 2015, adjusts percentile intervals so). Below 6 values not even
that is enough.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import stats

from experiments.records import Record
from training.errors import RunError

LEVEL = 0.95
# Fewer differences than this get Student's interval; nor can the two-sided Wilcoxon
# test of fewer than 6, whose least p is 2**(1 - n), reach 0.05.
MIN_SEEDS = 6


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is compared: an entry of a run's result.

    Attributes:
      field: Its name there.
      label: As sentences call it.
      unit: Of its differences.
      higher_is_better: Whether a higher value is the better one.
      scale: What the entry is multiplied by to have that unit.
    """

    field: str
    label: str
    unit: str
    higher_is_better: bool = False
    scale: float = 1.0


TEST_ACCURACY = Metric("test_accuracy", "test accuracy", "points", True, 100.0)
TEST_TOP5_ERROR = Metric("test_top5_error", "test top-5 error", "points", scale=100.0)
VALIDATION_LOSS = Metric("validation_loss", "validation loss", "nats")
BEST_EPOCH = Metric("best_epoch", "best epoch", "epochs")


class Pairs(NamedTuple):
    """A metric's values of two arms, on the seeds that both ran and finished.

    Attributes:
      arm: Of the arm, in the metric's unit, by seed.
      control: Of the control, likewise.
      seeds: The seeds.
      diverged: How many runs of the arm and of the control diverged, of the seeds
        that both ran.
    """

    arm: tuple[float, ...]
    control: tuple[float, ...]
    seeds: tuple[int, ...]
    diverged: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """How much an arm differs from its control, seed by seed.

    Attributes:
      n: Seeds.
      mean: Mean of arm minus control; NaN without a seed.
      interval: Its 95 % confidence interval (:func:`interval`).
      p: Of the two-sided Wilcoxon signed-rank test; None without a seed.
      wins: Seeds on which the arm is better.
      ties: Seeds on which both are equal.
      losses: Seeds on which it is worse.
      higher_is_better: Which way better is.
      diverged: Runs of the arm and of the control that diverged and are left out.
      corrected_p: ``p`` after :func:`corrected`, if it went there.
    """

    n: int
    mean: float
    interval: tuple[float, float] | None
    p: float | None
    wins: int
    ties: int
    losses: int
    higher_is_better: bool = True
    diverged: tuple[int, int] = (0, 0)
    corrected_p: float | None = None

    @property
    def verdict(self) -> int:
        """1 or -1 if the interval lies on the better or worse side, else 0."""
        if self.interval is None:
            return 0
        side = (self.interval[0] > 0) - (self.interval[1] < 0)
        return side if self.higher_is_better else -side

    @property
    def is_confirmed(self) -> bool:
        """Whether the Wilcoxon test, corrected if it was, is significant at 0.05."""
        p = self.p if self.corrected_p is None else self.corrected_p
        return p is not None and p <= 1 - LEVEL


@dataclasses.dataclass(frozen=True)
class TimeToTarget:
    """Epochs that an arm and its control take to a target, on the seeds of both.

    A run that never gets there, because it ended or diverged before, counts as later
    than any that does, and as equal to another that never does. So a mean has no
    meaning, but medians and signs have.

    Attributes:
      target: Validation accuracy to reach, a fraction.
      n: Seeds.
      median: Median epochs of the arm and of the control; infinite where half of the
        runs or more never get there, NaN without a seed.
      reached: How many runs of each get there.
      wins: Seeds on which the arm gets there sooner.
      ties: Seeds on which both take equally long, or neither gets there.
      losses: Seeds on which it gets there later.
      p: Of the two-sided sign test; None without a seed.
      corrected_p: ``p`` after :func:`corrected`, if it went there.
    """

    target: float
    n: int
    median: tuple[float, float]
    reached: tuple[int, int]
    wins: int
    ties: int
    losses: int
    p: float | None
    corrected_p: float | None = None


# -- From records ------------------------------------------------------------------


def paired(
    records: Sequence[Record], metric: Metric, arm: str, control: str, model: str
) -> Pairs:
    """Values of two arms on the seeds that both ran, without runs that diverged.

    Args:
      records: Of one study at one scale.
      metric: What to take.
      arm: Name of an arm.
      control: Name of the arm that it is compared with.
      model: The network.

    Raises:
      RunError: If an arm ran a seed more than once, or a run lacks the metric.
    """
    runs = _shared(records, arm, control, model)
    finished = {s: r for s, r in runs.items() if not (r[0].diverged or r[1].diverged)}
    return Pairs(
        arm=tuple(_value(run, metric) for run, _ in finished.values()),
        control=tuple(_value(run, metric) for _, run in finished.values()),
        seeds=tuple(finished),
        diverged=(
            sum(run.diverged for run, _ in runs.values()),
            sum(run.diverged for _, run in runs.values()),
        ),
    )


def difference(
    records: Sequence[Record], metric: Metric, arm: str, control: str, model: str
) -> PairedDifference:
    """:func:`compare` of what :func:`paired`, with the same arguments, gives."""
    pairs = paired(records, metric, arm, control, model)
    found = compare(pairs.arm, pairs.control, higher_is_better=metric.higher_is_better)
    return dataclasses.replace(found, diverged=pairs.diverged)


def target_accuracy(
    records: Sequence[Record], control: str, model: str, fraction: float = 0.95
) -> float | None:
    """Validation accuracy to reach: a fraction of the control's mean best one.

    It is set by the control alone, so that no arm can be flattered by its choice, and
    below the control's best, so that nearly all runs of a working control reach it.

    Args:
      records: Of one study at one scale.
      control: Name of the arm that sets the target.
      model: The network.
      fraction: Of the mean over seeds of the best validation accuracy.

    Returns:
      The target, a fraction; None if the control has no run with such an accuracy.
    """
    best = []
    for run in _by_seed(records, control, model).values():
        accuracies = _accuracies(run.history, "validation_accuracy")
        if accuracies and not run.diverged:
            best.append(max(accuracies.values()))
    return fraction * float(np.mean(best)) if best else None


def epochs_to_target(
    history: Sequence[Mapping[str, Any]],
    target: float,
    metric: str = "validation_accuracy",
) -> int | None:
    """The first epoch in which an accuracy reaches a target; None if none does."""
    accuracies = _accuracies(history, metric)
    return next((e for e, value in accuracies.items() if value >= target), None)


def time_to_target(
    records: Sequence[Record], arm: str, control: str, model: str, target: float
) -> TimeToTarget:
    """Compares how soon two arms reach a target (:func:`target_accuracy`).

    Args:
      records: Of one study at one scale.
      arm: Name of an arm.
      control: Name of the arm that it is compared with.
      model: The network.
      target: Validation accuracy, a fraction.

    Raises:
      RunError: If an arm ran a seed more than once.
    """
    runs = _shared(records, arm, control, model).values()
    epochs = np.array(
        [
            [epochs_to_target(r.history, target) or math.inf for r in pair]
            for pair in runs
        ]
    ).reshape(-1, 2)
    wins = int((epochs[:, 0] < epochs[:, 1]).sum())
    losses = int((epochs[:, 0] > epochs[:, 1]).sum())
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    n = len(epochs)
    medians = np.median(epochs, axis=0) if n else (math.nan, math.nan)
    reached = np.isfinite(epochs).sum(axis=0)
    return TimeToTarget(
        target=target,
        n=n,
        median=(float(medians[0]), float(medians[1])),
        reached=(int(reached[0]), int(reached[1])),
        wins=wins,
        ties=n - wins - losses,
        losses=losses,
        p=float(p) if n else None,
    )


def _value(run: Record, metric: Metric) -> float:
    value = run.result.get(metric.field)
    if value is None:
        raise RunError(
            f"the {run.model} run of {run.arm} with seed {run.seed} has no "
            f"{metric.field}: run it anew with a validation and a test part"
        )
    return metric.scale * value


def _accuracies(history: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """An accuracy by epoch, without the epochs in which it was not finite."""
    return {e["epoch"]: e[metric] for e in history if e.get(metric) is not None}


def _by_seed(records: Sequence[Record], arm: str, model: str) -> dict[int, Record]:
    runs: dict[int, Record] = {}
    for record in records:
        if (record.arm, record.model) == (arm, model):
            if record.seed in runs:
                raise RunError(
                    f"there are two {model} runs of {arm} with seed {record.seed}: "
                    f"report on one scale at a time"
                )
            runs[record.seed] = record
    return runs


def _shared(
    records: Sequence[Record], arm: str, control: str, model: str
) -> dict[int, tuple[Record, Record]]:
    arms = _by_seed(records, arm, model)
    controls = _by_seed(records, control, model)
    return {s: (arms[s], controls[s]) for s in sorted(arms.keys() & controls.keys())}


# -- Numbers -----------------------------------------------------------------------


def compare(
    arm_values: Sequence[float],
    control_values: Sequence[float],
    *,
    higher_is_better: bool = True,
) -> PairedDifference:
    """Compares two arms whose values are paired by seed.

    Args:
      arm_values: Of the arm, in any unit.
      control_values: Of the control, in the same order of seeds.
      higher_is_better: Whether the higher value wins.

    Returns:
      The difference, in the values' unit.

    Raises:
      ValueError: If the values are not finite, or not as many on both sides.
    """
    values = np.array([arm_values, control_values], np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, got {values.tolist()}")
    # Equal differences of rounded numbers must stay equal: they are ties.
    unit = 1e-12 * np.abs(values).max(initial=0.0) or 1.0
    differences = np.round((values[0] - values[1]) / unit) * unit
    n = len(differences)
    nonzero = differences[differences != 0]
    p = float(stats.wilcoxon(nonzero).pvalue) if nonzero.size else 1.0
    wins = int((nonzero > 0).sum())
    if not higher_is_better:
        wins = nonzero.size - wins
    return PairedDifference(
        n=n,
        mean=float(differences.mean()) if n else math.nan,
        interval=interval(differences),
        p=p if n else None,
        wins=wins,
        ties=n - nonzero.size,
        losses=nonzero.size - wins,
        higher_is_better=higher_is_better,
    )


def interval(differences: np.ndarray) -> tuple[float, float] | None:
    """95 % confidence interval of the mean, the same in every call.

    Args:
      differences: One a seed; exactly equal ones have their value as the interval.

    Returns:
      Student's interval below 6 differences, else the BCa bootstrap's at the level
      that this module's head explains; None for fewer than two.
    """
    n = len(differences)
    if n < 2:
        return None
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return mean, mean
    t = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    if n < MIN_SEEDS:
        half = t * float(differences.std(ddof=1)) / math.sqrt(n)
        return mean - half, mean + half
    tail = float(stats.norm.cdf(-t * math.sqrt(n / (n - 1))))
    low, high = stats.bootstrap(
        (differences,),
        np.mean,
        method="BCa",
        vectorized=True,
        confidence_level=1 - 2 * tail,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(low), float(high)


_Tested = TypeVar("_Tested", bound=PairedDifference | TimeToTarget)


def corrected(comparisons: Sequence[_Tested]) -> list[_Tested]:
    """Fills in ``corrected_p``: Benjamini-Hochberg over all that are given.

    Args:
      comparisons: All that a report tests; those without a ``p`` do not count.
    """
    tested = [c.p for c in comparisons if c.p is not None]
    adjusted = iter(stats.false_discovery_control(tested) if tested else ())
    return [
        c if c.p is None else dataclasses.replace(c, corrected_p=float(next(adjusted)))
        for c in comparisons
    ]


# -- Sentences ---------------------------------------------------------------------


def conclusion(
    arm: str,
    differences: Sequence[tuple[str, PairedDifference]],
    metric: Metric,
    matched: str | None = None,
) -> str:
    """One sentence that says what follows from the numbers, and no more.

    An arm *beats* or *loses to* a control if the interval leaves out 0 and the
    Wilcoxon test (corrected, if it was) agrees; it *is ahead of* or *behind* it if
    only the interval does, as with fewer than 6 seeds. Its gain is *that of a higher
    rate* if the interval of its difference from the matched rate holds 0 and leaves
    out half of that gain.

    Args:
      arm: The arm's label.
      differences: Labels of controls and differences from them, the plain one first.
      metric: What was compared. Numbers are told as gains: positive is better.
      matched: The label, among those, of the control whose learning rate is raised as
        much as the arm raises its own.
    """
    told = [
        _predicate(label, d, metric.unit, "" if i else f" in {metric.label}")
        for i, (label, d) in enumerate(differences)
    ]
    sentence = f"{arm} {', and '.join(told)}"
    if matched is not None:
        source = _source(differences[0][1], dict(differences)[matched], metric)
        sentence += f": {source}" if source else ""
    counts = {arm: max(d.diverged[0] for _, d in differences)}
    counts |= {label: d.diverged[1] for label, d in differences}
    diverged = [f"{count} of {label}" for label, count in counts.items() if count]
    if diverged:
        sentence += f"; left out are runs that diverged: {', '.join(diverged)}"
    return f"{sentence}."


def target_conclusion(arm: str, control: str, time: TimeToTarget) -> str:
    """One sentence on how soon an arm and its control reach a target.

    Args:
      arm: The arm's label.
      control: The control's.
      time: What :func:`time_to_target` found.
    """
    if not time.n:
        return f"{arm} and {control} have no seed in common."
    told = [
        f"by {label} {f'after {median:g} epochs' if median < math.inf else 'never'} "
        f"({reached} of {time.n} runs)"
        for label, median, reached in zip(
            (arm, control), time.median, time.reached, strict=True
        )
    ]
    return (
        f"A validation accuracy of {100 * time.target:.1f} % is reached, at the "
        f"median, {' and '.join(told)}; {arm} is sooner on {time.wins} and later on "
        f"{time.losses} of {time.n} seeds ({_p(time)} in a sign test)."
    )


def _predicate(control: str, d: PairedDifference, unit: str, where: str) -> str:
    """What is said of an arm and one control."""
    if not d.n:
        return f"has no finished seed in common with {control}"
    if d.interval is None:
        mean = _numbers(d.mean if d.higher_is_better else -d.mean)[0]
        return (
            f"has a gain of {mean} {unit}{where} over {control} on one seed, which "
            f"tells nothing"
        )
    if d.ties == d.n:
        return f"equals {control}{where} on all {d.n} seeds"
    mean, low, high = _numbers(*_gain(d, d.verdict or 1))
    seeds = f"worse on {d.losses}" if d.verdict < 0 else f"better on {d.wins}"
    tied = f", {d.ties} tied" if d.ties else ""
    tests = f"{seeds} of {d.n} seeds{tied}; {_p(d)}"
    if not d.verdict:
        return (
            f"cannot be told apart from {control}{where} (gain {mean} {unit} "
            f"[{low}, {high}]; {tests})"
        )
    if d.is_confirmed:
        verb = "beats" if d.verdict > 0 else "loses to"
    else:
        verb = "is ahead of" if d.verdict > 0 else "is behind"
    return f"{verb} {control} by {mean} {unit}{where} [{low}, {high}] ({tests})"


def _source(
    plain: PairedDifference, matched: PairedDifference, metric: Metric
) -> str | None:
    """Whether a difference from the plain control is the learning rate's."""
    if plain.interval is None or matched.interval is None:
        return None
    if not plain.verdict:
        return {
            1: "it does better than a higher rate, but not than none",
            -1: "a higher rate alone does better",
            0: None,
        }[matched.verdict]
    noun, verb = ("gain", "gains") if plain.verdict > 0 else ("loss", "loses")
    if matched.verdict == plain.verdict:
        return f"its {noun} here goes beyond that of a higher rate"
    if matched.verdict == -plain.verdict:
        return f"a higher rate alone {verb} more"
    beyond = _gain(matched, plain.verdict)
    if beyond[2] <= _gain(plain, plain.verdict)[0] / 2:
        most = _numbers(*beyond)[2]
        return (
            f"its {noun} here is that of a higher rate, to within {most} {metric.unit}"
        )
    return f"whether its {noun} is more than that of a higher rate cannot be told"


def _gain(d: PairedDifference, sign: int) -> tuple[float, float, float]:
    """Mean and interval as gains, or with sign -1 as losses."""
    assert d.interval is not None
    if (sign > 0) == d.higher_is_better:
        return d.mean, *d.interval
    return -d.mean, -d.interval[1], -d.interval[0]


def _numbers(mean: float, low: float = 0.0, high: float = 0.0) -> list[str]:
    """With the decimals that a third of the interval's width warrants."""
    sizes = [(high - low or abs(mean) or 1.0) / 3]
    if low * high > 0:  # leaves out 0, and must do so in print
        sizes.append(min(abs(low), abs(high)))
    decimals = max(0, -math.floor(math.log10(min(sizes))))
    return [f"{x:z.{decimals}f}" for x in (mean, low, high)]


def _p(tested: PairedDifference | TimeToTarget) -> str:
    assert tested.p is not None
    text = "p < 0.001" if tested.p < 0.001 else f"p = {tested.p:.2g}"
    if tested.corrected_p is not None:
        text += f", corrected {tested.corrected_p:.2g}"
    if tested.wins + tested.losses < MIN_SEEDS:
        text += ", too few seeds to reach 0.05"
    return text
