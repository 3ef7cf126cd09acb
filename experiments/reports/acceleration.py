"""The report of acceleration techniques: time, memory, and the published accuracies."""

import polars as pl

from experiments import figures
from experiments import table as tables
from experiments.figures import Picture
from experiments.reports import published
from experiments.studies.acceleration import NONE, PINNED
from experiments.table import (
    ACCURACY,
    LOSS,
    SECONDS_TO_TARGET,
    Metric,
    Table,
    markdown,
    spreads,
)

c = pl.col
_ARM = ["model", "arm"]
_TIMES = (
    "Times are of training alone, without compilation and evaluation. The arms of a "
    "seed are run one after the other, so that what else a machine does can favour an "
    "arm; the interval over the seeds shows how much."
)
_MEMORY = (
    "Images/s: mean ± standard deviation over the runs of each run's median epoch. "
    "Held and temporary: the compiled training function's arguments and results (the "
    "state, and the data set or a batch), and its scratch memory. Device peak: the "
    "most in use on the device, where it is reported and this run raised it."
)
_PUBLISHED = (
    "Review: accuracy (%) and hours with all techniques; of ResNet-50 the paper's "
    "accuracies, else those of its authors' repository, in whole percent. Its F1 is "
    'averaged "micro", which with one label an image is the accuracy; ours is the mean '
    "over the classes. Ours: accuracy (%) of the arm *all together*."
)


def _timed(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Without pinned memory on a CPU, which transfers no batches."""
    on_cpu = tables.select(
        table.runs, is_cpu=c("device").cast(pl.String).str.ends_with("(cpu)")
    )
    nothing = on_cpu.filter("is_cpu", c("arm") == PINNED)
    return frame.join(nothing, on=tables.KEYS, how="anti", maintain_order="left")


def _seconds_per_epoch(table: Table) -> pl.DataFrame:
    runs = tables.seconds_by_epoch(table).group_by(tables.KEYS, maintain_order=True)
    return _timed(table, runs.agg(value=c("seconds").median()))


_SECONDS = Metric(
    "seconds_per_epoch",
    "seconds an epoch",
    "s",
    3,
    _seconds_per_epoch,
    note="The median over a run's epochs.",
)
METRICS = (
    ACCURACY,
    LOSS,
    Metric(
        "macro_f1",
        "test macro-F1",
        "points",
        2,
        100 * c("test_macro_f1"),
        higher_is_better=True,
    ),
    _SECONDS,
    SECONDS_TO_TARGET._replace(
        value=lambda table: _timed(table, tables.seconds_to_target(table))
    ),
)


def sections(table: Table, found: pl.DataFrame) -> list[str | Picture | None]:
    """Time, memory, curves, and the review's table."""
    arms = [arm.name for arm in table.study.arms]
    first = ("all", "bfloat16", "all-plp", "all-amplify")
    return [
        "## Time and memory",
        _TIMES,
        figures.forest(table, found, _SECONDS),
        *_speeds(table),
        "## Curves",
        *(
            figures.curves(table, m, arms, NONE, "accuracy", first)
            for m in table.models
        ),
        "## The review's accuracies",
        _published(table),
    ]


def _speeds(table: Table) -> list[str]:
    memory = [
        {"model": r.model, "arm": r.arm, "device_peak": None, **memory}
        for r, memory in table.measured("memory")
    ]
    if not memory:
        return []
    epochs = tables.select(table.epochs, rate=c("images_per_second"))
    rates = epochs.group_by(tables.KEYS, maintain_order=True).agg(c("rate").median())
    megabytes = (
        pl.DataFrame(memory, infer_schema_length=None)
        .group_by(_ARM, maintain_order=True)
        .agg(c("held", "temporary").first() / 1e6, c("device_peak").max() / 1e6)
    )
    rows = megabytes.join(spreads(rates, _ARM, {"rate": 0}), on=_ARM, how="left")
    return [
        markdown(
            f"Speed and memory, {tables.join(table.datasets)}",
            table.named(rows),
            {
                **{"model": "network", "arm": "arm", "rate": "images/s"},
                "held": ("held (MB)", 2),
                "temporary": ("temporary (MB)", 2),
                "device_peak": ("device peak (MB)", 1),
            },
            note=_MEMORY,
            left=2,
        )
    ]


def _published(table: Table) -> str:
    paper = published("acceleration")
    ours = table.finished.filter(c("arm") == "all").with_columns(
        accuracy=100 * c("test_accuracy")
    )
    means = dict(spreads(ours, ["model"], {"accuracy": 2}).iter_rows())
    rows = {
        "network": list(table.models),
        "comparable?": [comparable(table, model) for model in table.models],
        **{
            heading: [paper[quantity].get(m, {}).get(dataset) for m in table.models]
            for heading, quantity, dataset in (
                ("review, cifar10", "test_accuracy", "cifar10"),
                ("hours, cifar10", "hours", "cifar10"),
                ("review, cifar100", "test_accuracy", "cifar100"),
                ("hours, cifar100", "hours", "cifar100"),
            )
        },
        f"ours, {tables.join(table.datasets)}": [means.get(m) for m in table.models],
    }
    frame = pl.DataFrame(rows, strict=False).with_columns(
        pl.selectors.numeric().cast(pl.String).str.strip_suffix(".0")
    )
    return markdown("The review's results", frame, note=_PUBLISHED, left=2)


def comparable(table: Table, model: str) -> str:
    """Whether a network's accuracy can be compared with the review's, or why not."""
    protocol = published("acceleration")["protocol"].get(model)
    if protocol is None:
        return "no: not one of the review's networks"
    if protocol["start"] != "scratch":
        return f"no: the review starts from {protocol['start']}"
    others = [d for d in table.datasets if d not in ("cifar10", "cifar100")]
    if others:
        return f"no: other images ({tables.join(others)})"
    study = table.study
    full = study.configure(study.scale("full").fields, model, study.arm(NONE))
    ours, theirs = table.configs[model, NONE], table.complete(full)
    sizes = ("width", "epochs", "train_fraction", "batch_size")
    return "yes" if all(ours[n] == theirs[n] for n in sizes) else "no: a reduced form"
