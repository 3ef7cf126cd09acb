"""The report of sequential learning: fits, units and errors along streams."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments import style, tables
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs, history
from experiments.sequential import arms, streams
from experiments.statistics import (
    BETTER,
    RULE,
    WORSE,
    PairedDifference,
    compare,
    corrected,
)

METRICS: tuple[Metric, ...] = ()  # of classifiers; a stream has its own, below
LMS, EKF = "ran-lms", "ran-ekf"
_METHOD = (
    "Each sample is seen once, in order. The test error is the mean squared error over "
    "50 test samples after the stream, divided by the variance of their targets: 1 is "
    "the error of the mean. The final error is its mean over the last tenth of the "
    "stream. Each arm has one number that was chosen from five values, by the final "
    "error on three other seeds. Fixed networks have as many units as RAN-EKF ends "
    "with on the same stream, at inputs of the stream drawn at random, half as wide as "
    "the median distance of inputs; they see these inputs early. Kernel ridge is "
    "fitted again to all samples seen, every 50 samples: it is a reference for what "
    "the data allow, and no sequential method."
)
_SETUPS = {
    "noisy": "*noisy*: noise of variance 0.004 on inputs and targets, and thresholds "
    "of growth above the noise.",
    "public": "*public*: the same noise, with the thresholds that are used without it "
    "(epsilon 0.05, delta down to 0.05).",
    "diabetes": "*diabetes*: the streams of different seeds are orders and splits of "
    "the same 442 patients, so that intervals say nothing about other patients.",
}


class _Metric(NamedTuple):
    """What is compared: arm and control, on the seeds of both.

    Attributes:
      title: Of its table.
      read: Maps a run and the control's run with the same seed to a value.
      comparisons: Arms and controls; None for all of the study.
      is_ratio: Whether logarithms are compared, and ratios shown.
      digits: Decimals of a difference.
      note: What a reader must know.
    """

    title: str
    read: Callable[[Record, Record], float]
    comparisons: Sequence[tuple[str, str]] | None
    is_ratio: bool
    digits: int
    note: str


def samples_to(record: Record, target: float) -> float:
    """Samples until the test error is first at most ``target``.

    A run that never gets there counts as if it did one point after its last.
    """
    samples, reached = (
        history(record, "samples"),
        history(record, "test_error") <= target,
    )
    step = samples[1] - samples[0]
    return float(samples[reached.argmax()] if reached.any() else samples[-1] + step)


_METRICS = (
    _Metric(
        "Final test error: arm / control (lower is better)",
        lambda run, control: float(np.log(run.result["test_error"])),
        None,
        True,
        0,
        "Geometric mean of the ratios over the seeds, and Student's interval of its "
        "logarithm.",
    ),
    _Metric(
        "Units at the end: arm minus control (fewer is better)",
        lambda run, control: float(run.result["units"]),
        [(EKF, LMS)],
        False,
        1,
        "",
    ),
    _Metric(
        "Samples to the control's final error: arm minus control (fewer is better)",
        lambda run, control: samples_to(run, control.result["test_error"]),
        [(EKF, LMS), ("fixed-ekf", "fixed-sgd"), ("fixed-ekf", "fixed-adam")],
        False,
        0,
        "Samples until the test error is first at most the control's final error with "
        "the same seed, to a resolution of 10 samples; one that never is counts as if "
        "it were 10 samples after the stream.",
    ),
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """How the error and the units develop, what they come to, and the comparisons."""
    del found  # of accuracies, which these records have not
    notes = [
        note for name, note in _SETUPS.items() if any(name in m for m in runs.models)
    ]
    return [
        "## How streams are learned",
        " ".join([_METHOD, *notes]),
        *(_growth(runs, model) for model in runs.models),
        *(_errors(runs, model) for model in runs.models),
        "## Errors, units, seconds",
        _results(runs),
        "## Differences",
        *(_compared(runs, metric) for metric in _METRICS),
        RULE,
        _tuning(runs),
    ]


# -- Pictures --------------------------------------------------------------------------


def _growth(runs: Runs, model: str) -> Picture | None:
    """What the two growing networks predict early and late, and their units."""
    both = {arm: runs.finished(model, arm) for arm in (LMS, EKF)}
    if not all(both.values()):
        return None
    figure = style.figure(f"A growing network learns {model}", 9.5, 5.6)
    (early, units), (late, error) = figure.subplots(2, 2, width_ratios=(3, 2))
    fits = {
        arm: records[0].measures["fit"]
        for arm, records in both.items()
        if "fit" in records[0].measures
    }
    targets = streams.load(arms.SETUPS[model].stream, 0).test_targets
    is_series = "mackey" in model
    order = np.arange(len(targets)) if is_series else np.argsort(targets)
    for ax, point in ((early, 0), (late, -1)):
        ax.plot(targets[order], "o", color="0.6", ms=4, label="truth (test)")
        after = next(iter(fits.values()))["samples"][point] if fits else 0
        for arm, fit in fits.items():
            ax.plot(
                np.asarray(fit["predictions"][point])[order],
                color=_color(arm),
                lw=1.4,
                label=runs.label(arm),
            )
        style.dress(
            ax,
            xlabel="test sample" if is_series else "test sample, by its target",
            ylabel="target",
            title=f"predictions after {after} samples",
        )
    for arm, records in both.items():
        x = history(records[0], "samples")
        for ax, name in ((units, "units"), (error, "test_error")):
            values = np.stack([history(record, name) for record in records])
            look = runs.looks[arm]._replace(color=_color(arm))
            style.mean_line(ax, x, values, look, runs.label(arm))
    style.dress(units, xlabel="samples seen", ylabel="units", title="units")
    style.dress(error, xlabel="samples seen", ylabel="test error", title="test error")
    style.logarithmic_if_wide(error)
    style.legend(figure)
    return Picture(
        f"growth-{model}",
        figure,
        "Left: targets of the test samples, and predictions for them early and late in "
        "the stream, with seed 0. Right: units and test error along the stream; lines "
        "are means over the seeds, bands reach from the lowest to the highest.",
    )


def _color(arm: str) -> str:
    return {LMS: style.VERMILION, EKF: style.BLUE}[arm]


def _errors(runs: Runs, model: str) -> Picture | None:
    names = [arm.name for arm in runs.study.arms if runs.finished(model, arm.name)]
    if not names:
        return None
    figure = style.figure(f"Test error by samples seen, {model}", 7.5, 4.2)
    ax = figure.subplots()
    for name in names:
        records = runs.finished(model, name)
        values = np.stack([history(record, "test_error") for record in records])
        x = history(records[0], "samples")
        # Errors spread over decades: the geometric mean.
        ax.plot(
            x,
            np.exp(np.log(values).mean(axis=0)),
            color=runs.looks[name].color,
            ls=runs.looks[name].linestyle,
            lw=1.6,
            label=runs.label(name),
        )
    style.dress(ax, xlabel="samples seen", ylabel="test error (1: the mean)")
    style.logarithmic_if_wide(ax)
    style.legend(figure)
    return Picture(f"errors-{model}", figure, "Geometric means over the finished runs.")


# -- Tables ----------------------------------------------------------------------------


def _results(runs: Runs) -> str:
    columns = ("test_error", "mean_error", "units", "refused", "seconds")
    rows = []
    for model in runs.models:
        for arm in runs.study.arms:
            if runs.of(model, arm.name):
                cells = [
                    _spread(runs.values(model, arm.name, name)) for name in columns
                ]
                rows.append([model, arm.label, runs.count(model, arm.name), *cells])
    return tables.markdown(
        "Results",
        [
            *("stream", "arm", "runs", "final test error", "mean test error"),
            *("units", "refused units", "seconds"),
        ],
        rows,
        note="Mean ± standard deviation over the finished runs. The mean error is that "
        "of the curve. Units of kernel ridge are its samples. Refused units: samples "
        "that would have allocated a unit after the capacity was used up. Seconds are "
        "for the stream, without compilation, at arrays of the size of the capacity; "
        "other work on the machine is in them.",
        left=2,
    )


def _spread(values: np.ndarray) -> str:
    """Mean ± standard deviation, to digits that fit values of all magnitudes."""
    if not values.size:
        return tables.NONE
    spread = f" ± {values.std(ddof=1):.2g}" if values.size > 1 else ""
    return f"{values.mean():.3g}{spread}"


def _compared(runs: Runs, metric: _Metric) -> str:
    found: list[tuple[str, str, str, PairedDifference]] = []
    for model in runs.models:
        for arm, control in metric.comparisons or runs.study.comparisons:
            pairs = [
                pair
                for pair in runs.pairs(model, arm, control)
                if not any(record.diverged for record in pair)
            ]
            if pairs:
                ours = [metric.read(run, other) for run, other in pairs]
                theirs = [metric.read(other, other) for _, other in pairs]
                difference = compare(ours, theirs, higher_is_better=False)
                found.append((model, arm, control, difference))
    differences = corrected([d for *_, d in found])
    rows = []
    for (model, arm, control, _), d in zip(found, differences, strict=True):
        verdict = f"**{d.verdict}**" if d.verdict in (BETTER, WORSE) else d.verdict
        rows.append(
            [
                *(model, runs.label(arm), runs.label(control), verdict, f"{d.n}"),
                *_difference(d, metric),
                f"{d.wins} / {d.ties} / {d.losses}",
                tables.number(d.corrected_p, 3),
            ]
        )
    return tables.markdown(
        metric.title,
        [
            *("stream", "arm", "control", "verdict", "pairs"),
            *("ratio" if metric.is_ratio else "difference", "95 % interval"),
            *("better / tied / worse", "corrected p"),
        ],
        rows,
        note=metric.note,
        left=4,
    )


def _difference(d: PairedDifference, metric: _Metric) -> tuple[str, str]:
    if not metric.is_ratio:
        return (
            tables.signed(d.mean, metric.digits),
            tables.interval(d.interval, metric.digits),
        )
    ends = tables.NONE
    if d.interval is not None:
        low, high = np.exp(d.interval)
        ends = f"[{low:.3g}, {high:.3g}]"
    return f"{np.exp(d.mean):.3g}", ends


def _tuning(runs: Runs) -> str:
    rows = []
    for model in runs.models:
        for arm in runs.study.arms:
            for record in runs.finished(model, arm.name)[:1]:
                scores = zip(
                    record.measures["candidates"],
                    record.measures["errors"],
                    strict=True,
                )
                listed = (
                    f"{value:g}: {'diverged' if error < 0 else f'{error:.3g}'}"
                    for value, error in scores
                )
                rows.append(
                    [
                        *(model, arm.label, arms.ALGORITHMS[arm.name].chosen),
                        *(f"{record.result['chosen']:g}", "; ".join(listed)),
                    ]
                )
    return tables.markdown(
        "The chosen numbers",
        ("stream", "arm", "number", "chosen", "candidates and their final errors"),
        rows,
        note=f"Mean final error over seeds {tables.join(map(str, arms.TUNING_SEEDS))}, "
        f"which are not among the reported ones. Where the lowest or the highest "
        f"candidate was chosen, another could do better.",
        left=5,
    )
