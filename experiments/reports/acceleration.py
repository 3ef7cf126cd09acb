"""The report of acceleration techniques: time, memory, and the published accuracies."""

from collections.abc import Sequence

import numpy as np

from experiments import comparisons, figures, plan, tables
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs, history
from experiments.studies.acceleration import NONE, PINNED

_NO_PINNING = "means nothing on a CPU"
_TIMES = (
    "Times are of training alone, without compilation and evaluation. The arms of a "
    "seed are run one after the other, so that what else a machine does can favour an "
    "arm; the interval over the seeds shows how much."
)
_MEMORY = (
    "Images/s: mean ± standard deviation over the runs of each run's median epoch. "
    "Held and temporary: the compiled training function's arguments and results (the "
    "state, and the data set or a batch), and what it needs besides. Device peak: the "
    "most in use on the device, where it is reported and this run raised it."
)
_PUBLISHED = (
    "Review: accuracy (%) and hours with all techniques; of ResNet-50 the paper's "
    "accuracies, else those of its authors' repository, in whole percent. Its F1 is "
    'averaged "micro", which with one label an image is the accuracy; ours is the mean '
    "over the classes. Ours: accuracy (%) of the arm *all together*."
)


def _f1(record: Record, controls: Sequence[Record]) -> float | None:
    score: float | None = record.result.get("test_macro_f1")
    return None if score is None else 100 * score


def _seconds_per_epoch(record: Record, controls: Sequence[Record]) -> float | None:
    seconds = comparisons.seconds_by_epoch(record)
    if seconds is None or _means_nothing(record):
        return None
    return float(np.median(seconds))


def _seconds_to_target(record: Record, controls: Sequence[Record]) -> float | None:
    if _means_nothing(record):
        return None
    return comparisons.SECONDS_TO_TARGET.read(record, controls)


_SECONDS = Metric(
    "seconds_per_epoch",
    "seconds an epoch",
    "s",
    False,
    3,
    _seconds_per_epoch,
    "The median over a run's epochs.",
)
METRICS = (
    *comparisons.METRICS[:2],  # accuracy and loss
    Metric("macro_f1", "test macro-F1", "points", True, 2, _f1),
    _SECONDS,
    comparisons.SECONDS_TO_TARGET._replace(read=_seconds_to_target),
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Time, memory, curves, and the review's table."""
    main = [arm.name for arm in runs.study.arms]
    return [
        "## Time and memory",
        _TIMES,
        figures.differences(runs, found, _SECONDS),
        *_speeds(runs),
        "## Curves",
        *(figures.curves(runs, m, main, main[0], "accuracy") for m in runs.models),
        "## The review's accuracies",
        _published(runs),
    ]


def _means_nothing(record: Record) -> bool:
    """Whether the run has pinned memory where batches are not transferred."""
    return record.arm == PINNED and _on_cpu(record)


def _on_cpu(record: Record) -> bool:
    device: str = record.result.get("device", "")  # none if it diverged
    return device.endswith("(cpu)")


def _speeds(runs: Runs) -> list[str]:
    rows = []
    for model in runs.models:
        for arm in runs.study.arms:
            finished = runs.finished(model, arm.name)
            if arm.name == PINNED and any(map(_on_cpu, runs.records)):
                rows.append([model, arm.label, _NO_PINNING, *3 * [tables.NONE]])
            elif any("memory" in r.measures for r in finished):
                rows.append([model, arm.label, *_speed(finished)])
    if not rows:
        return []
    header = ["images/s", "held (MB)", "temporary (MB)", "device peak (MB)"]
    return [
        tables.markdown(
            f"Speed and memory, {tables.join(runs.datasets)}",
            ["network", "arm", *header],
            rows,
            note=_MEMORY,
            left=2,
        )
    ]


def _speed(finished: Sequence[Record]) -> list[str]:
    rates = [np.median(history(r, "images_per_second")) for r in finished]
    memory = [r.measures["memory"] for r in finished]
    # A record leaves out what is None.
    peaks = [m["device_peak"] for m in memory if m.get("device_peak") is not None]
    return [
        tables.spread(np.array(rates), 0),
        *(tables.number(memory[0][n] / 1e6, 2) for n in ("held", "temporary")),
        tables.number(max(peaks) / 1e6, 1) if peaks else tables.NONE,
    ]


def _published(runs: Runs) -> str:
    paper = tables.published("acceleration")
    rows = []
    for model in runs.models:
        ours = tables.spread(100 * runs.values(model, "all", "test_accuracy"), 2)
        row = [model, _comparable(runs, model)]
        for name in ("cifar10", "cifar100"):
            accuracy = paper["test_accuracy"].get(model, {}).get(name)
            hours = paper["hours"].get(model, {}).get(name)
            row += [_printed(accuracy), _printed(hours)]
        rows.append([*row, ours])
    return tables.markdown(
        "The review's results",
        [
            *("network", "comparable?"),
            *("review, cifar10", "hours", "review, cifar100", "hours"),
            f"ours, {tables.join(runs.datasets)}",
        ],
        rows,
        note=_PUBLISHED,
        left=2,
    )


def _printed(value: float | None) -> str:
    """A published number, with the digits that are published."""
    return tables.NONE if value is None else f"{value:g}"


def _comparable(runs: Runs, model: str) -> str:
    protocol = tables.published("acceleration")["protocol"].get(model)
    if protocol is None:
        return "no: not one of the review's networks"
    if protocol["start"] != "scratch":
        return f"no: the review starts from {protocol['start']}"
    others = [d for d in runs.datasets if d not in ("cifar10", "cifar100")]
    if others:
        return f"no: other images ({tables.join(others)})"
    study = runs.study
    full = plan.configure(study, study.scale("full").fields, model, study.arm(NONE))
    ours, theirs = runs.config(runs.of(model, NONE)[0]), runs.complete(full)
    sizes = ("width", "epochs", "train_fraction", "batch_size")
    return "yes" if all(ours[n] == theirs[n] for n in sizes) else "no: a reduced form"
