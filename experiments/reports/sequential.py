"""The report of sequential learning: errors, units and samples."""

import functools

import polars as pl

from experiments import markdown
from experiments import table as tables
from experiments.reports import Report
from experiments.sequential import arms
from experiments.table import Metric, Table

c = pl.col
LMS, EKF = "ran-lms", "ran-ekf"
_NUMBERS = {name: arm.chosen for name, arm in arms.ALGORITHMS.items()}
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
_NOISY = (
    " *noisy*: noise of variance 0.004 on inputs and targets, and thresholds of growth "
    "above the noise."
)


def _samples(table: Table) -> pl.DataFrame:
    """Samples until the control's final error with the same seed, for each control."""
    controls = table.finished.select(
        "model", "seed", control="arm", target="test_error"
    )
    reached = c("samples").filter(c("test_error") <= c("target")).first()
    step = c("samples").get(1) - c("samples").first()
    return (
        table.epochs.filter(~c("diverged"))
        .join(controls, on=["model", "seed"], maintain_order="left")
        .group_by(*tables.KEYS, "control", maintain_order=True)
        .agg(value=pl.coalesce(reached, c("samples").last() + step))
    )


METRICS = (
    Metric(
        "test_error",
        "final test error",
        "ratio",
        0,
        c("test_error").log(),
        note="Geometric mean of the ratios over the seeds, and Student's interval of "
        "its logarithm.",
        is_ratio=True,
    ),
    Metric(
        "units",
        "units at the end",
        "units",
        1,
        c("units"),
        comparisons=[(EKF, LMS)],
    ),
    Metric(
        "samples",
        "samples to the control's final error",
        "samples",
        0,
        _samples,
        note="Samples until the test error is first at most the control's final error "
        "with the same seed, to a resolution of 10 samples; one that never is counts "
        "as if it were 10 samples after the stream.",
        comparisons=[
            (EKF, LMS),
            ("fixed-ekf", "fixed-sgd"),
            ("fixed-ekf", "fixed-adam"),
        ],
    ),
)


def _sections(table: Table) -> list[str]:
    """How streams are learned, and the chosen numbers."""
    return [
        "## How streams are learned",
        _METHOD + _NOISY * any("noisy" in model for model in table.models),
        _tuning(table),
    ]


def _results(table: Table) -> list[str]:
    """Errors and units; they have all magnitudes."""
    columns = {
        "test_error": "final test error",
        "mean_error": "mean test error",
        "units": "units",
        "refused": "refused units",
    }
    cells = table.finished.group_by(tables.ARM, maintain_order=True).agg(*columns)
    spread = functools.partial(markdown.spread, mean=".3g", deviation=".2g")
    written = cells.with_columns(markdown.texts(name, spread) for name in columns)
    rows = markdown.counts(table).join(
        written, on=tables.ARM, how="left", maintain_order="left"
    )
    text = markdown.write(
        "Results",
        table.named(rows).rename({"model": "stream", **columns}),
        note="Mean ± standard deviation over the finished runs. The mean error is that "
        "of the curve. Units of kernel ridge are its samples. Refused units: samples "
        "that would have allocated a unit after the capacity was used up.",
        left=2,
    )
    return [text]


def _tuning(table: Table) -> str:
    tried = table.long(candidates=pl.Float64, errors=pl.Float64).with_columns(
        candidate=markdown.texts("candidates", "{:g}".format),
        error=markdown.texts(
            "errors", lambda error: "diverged" if error < 0 else f"{error:.3g}"
        ),
    )
    chosen = tables.select(table.finished, chosen=c("chosen"))
    rows = (
        tried.filter(tables.is_first_seed())
        .group_by(tables.KEYS, maintain_order=True)
        .agg(listed=pl.format("{}: {}", "candidate", "error").str.join("; "))
        .join(chosen, on=tables.KEYS, maintain_order="left")
        .with_columns(number=c("arm").replace_strict(_NUMBERS))
    )
    return markdown.write(
        "The chosen numbers",
        table.named(rows),
        {
            **{"model": "stream", "arm": "arm", "number": "number"},
            "chosen": ("chosen", "{:g}".format),
            "listed": "candidates and their final errors",
        },
        note=f"Mean final error over seeds "
        f"{markdown.join(map(str, arms.TUNING_SEEDS))}, "
        f"which are not among the reported ones. Where the lowest or the highest "
        f"candidate was chosen, another could do better.",
        left=5,
    )


REPORT = Report(_sections, METRICS, _results)
