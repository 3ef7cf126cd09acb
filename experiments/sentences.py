"""Sentences of conclusion that follow from the numbers, and say no more."""

import itertools
import math
from collections.abc import Sequence

from experiments.pairing import Metric
from experiments.statistics import MIN_SEEDS, PairedDifference, TimeToTarget


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
    rate* if the interval of its difference from the matched rate holds 0 and lies
    within half of that gain on either side.

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
    sentence = f"{arm} {_joined(told)}"
    if matched is not None:
        source = _source(differences[0][1], dict(differences)[matched], metric)
        sentence += f": {source}" if source else ""
    counts = {arm: max(d.diverged[0] for _, d in differences)}
    counts |= {label: d.diverged[1] for label, d in differences}
    diverged = [f"{count} of {label}" for label, count in counts.items() if count]
    if diverged:
        sentence += f"; left out are runs that diverged: {', '.join(diverged)}"
    return f"{sentence}{_few(*(d for _, d in differences))}."


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
        f"{time.losses} of {time.n} seeds ({_p(time)} in a sign test){_few(time)}."
    )


_UNTOLD = "cannot be told apart"


def _joined(predicates: Sequence[str]) -> str:
    """``beats A, and cannot be told apart from B, nor from C``."""
    text = predicates[0]
    for last, predicate in itertools.pairwise(predicates):
        if last.startswith(_UNTOLD) and predicate.startswith(_UNTOLD):
            text += f", nor{predicate.removeprefix(_UNTOLD)}"
        else:
            text += f", and {predicate}"
    return text


def _few(*tested: PairedDifference | TimeToTarget) -> str:
    """What is to be added where no test could have found anything."""
    most = max(
        (t.wins + t.losses for t in tested if t.n > max(1, t.ties)),
        default=MIN_SEEDS,
    )
    return "" if most >= MIN_SEEDS else "; too few seeds to reach p = 0.05"


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
            f"{_UNTOLD} from {control}{where} (gain {mean} {unit} "
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
    most = max(-beyond[1], beyond[2])
    if most <= _gain(plain, plain.verdict)[0] / 2:
        told = _numbers(most)[0]
        return (
            f"its {noun} here is that of a higher rate, to within {told} {metric.unit}"
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
    return text
