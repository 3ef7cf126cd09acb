"""The report of sequential learning: error and units along the stream."""

from collections.abc import Sequence

import numpy as np

from experiments import style
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs, history


def _metric(field: str, label: str, unit: str, digits: int) -> Metric:
    def read(record: Record, controls: Sequence[Record]) -> float | None:
        del controls
        return record.result.get(field)

    return Metric(field, label, unit, False, digits, read)


METRICS = (
    _metric("test_error", "test error", "normalised", 4),
    _metric("units", "units", "units", 1),
    _metric("mean_error", "mean error along the stream", "normalised", 4),
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Error and units over samples."""
    del found
    return ["## Along the stream", *(_stream(runs, model) for model in runs.models)]


def _stream(runs: Runs, model: str) -> Picture | None:
    finished = {arm.name: runs.finished(model, arm.name) for arm in runs.study.arms}
    finished = {arm: rs for arm, rs in finished.items() if rs and rs[0].history}
    if not finished:
        return None
    figure = style.figure(f"Sequential learning, {model}", 9, 3.8)
    error, units = figure.subplots(1, 2)
    for ax, name, label in (
        (error, "test_error", "normalised test error"),
        (units, "units", "units"),
    ):
        style.dress(ax, xlabel="samples", ylabel=label)
        for arm, records in finished.items():
            values = np.stack([history(record, name) for record in records])
            samples = history(records[0], "samples")
            label = runs.label(arm)
            style.mean_line(ax, samples, values, runs.looks[arm], label, has_band=False)
    style.logarithmic_if_wide(error)
    style.legend(figure)
    return Picture(
        f"stream-{model}",
        figure,
        "Mean squared error on the test part, divided by the variance of its targets, "
        "and the number of units. Means over the finished runs.",
    )
