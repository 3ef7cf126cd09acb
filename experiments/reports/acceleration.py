"""The report of acceleration techniques: time and memory."""

import polars as pl

from experiments import markdown
from experiments import table as tables
from experiments.reports import Report, ReportBlock, published
from experiments.studies.acceleration import ALL, NONE
from experiments.table import ACCURACY, ARM, LOSS, SECONDS_TO_TARGET, Metric, Table

c = pl.col
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
# The review's networks, and ours below them.
_NETWORKS = (
    *("ResNet50", "resnet50"),
    *("ViT", "vit-tiny"),
    *("EfficientNet", "efficientnet-b0"),
)
_PAPER = (
    "With: accumulation, mixed precision and pinned memory; ours also clips, and is "
    "the mean over the runs of a small form of the network. The review's ratio is its "
    "one claim. Where it contradicts itself: its text has 1.41 and 1.42 hours for "
    "EfficientNet without, its table 1.80 and 1.70; F1 equals accuracy in every row; "
    "losses are printed as percentages."
)


def _seconds_per_epoch(table: Table) -> pl.DataFrame:
    runs = tables.seconds_by_epoch(table).group_by(tables.KEYS, maintain_order=True)
    return runs.agg(value=c("seconds").median())


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
    SECONDS_TO_TARGET,
)


def _sections(table: Table) -> list[ReportBlock]:
    """Time and memory."""
    return ["## Time and memory", _TIMES, *_speeds(table), _paper(table)]


def _paper(table: Table) -> str:
    """The review's Table I, with and without its techniques, and ours below it."""
    review = published("acceleration")
    printed = pl.DataFrame(
        review["table"], review["columns"], orient="row", infer_schema_length=None
    ).select(
        "network",
        source=pl.format("paper ({})", "dataset"),
        unit=pl.lit("h"),
        tuning="tuning",
        time="hours",
        accuracy="accuracy_percent",
    )
    ours = (
        _seconds_per_epoch(table)
        .join(ACCURACY.values(table), on=tables.KEYS, suffix="_accuracy")
        .filter(c("arm").is_in([NONE, ALL]))
        .group_by(
            network="model",
            source=pl.lit(f"ours ({markdown.join(table.datasets)})"),
            unit=pl.lit("s an epoch"),
            tuning=c("arm").replace({NONE: "without", ALL: "with"}),
        )
        .agg(time=c("value").mean(), accuracy=c("value_accuracy").mean())
    )
    both = pl.concat([printed, ours]).with_columns(
        c("network").cast(pl.Enum(_NETWORKS), strict=False)
    )
    return markdown.write(
        "Times with all techniques together, and without (the review's Table I)",
        both.pivot(
            "tuning", index=["network", "source", "unit"], values=["time", "accuracy"]
        )
        .with_columns(ratio=c("time_with") / c("time_without"))
        .drop_nulls()
        .sort("network", maintain_order=True),
        {
            **{"network": "network", "source": "source"},
            "accuracy_without": ("accuracy without (%)", 2),
            "accuracy_with": ("accuracy with (%)", 2),
            "time_without": ("time without", "{:.3g}".format),
            "time_with": ("time with", "{:.3g}".format),
            **{"unit": "unit", "ratio": ("with / without", 2)},
        },
        note=_PAPER,
        left=2,
    )


def _speeds(table: Table) -> list[str]:
    sizes = dict.fromkeys(("held", "temporary", "device_peak"), pl.Float64)
    memory = table.long(memory=pl.Struct(sizes)).unnest("memory")
    if memory.is_empty():
        return []
    epochs = tables.select(table.epochs, rate=c("images_per_second"))
    rates = epochs.group_by(tables.KEYS, maintain_order=True).agg(c("rate").median())
    megabytes = memory.group_by(ARM, maintain_order=True).agg(
        c("held", "temporary").first() / 1e6, c("device_peak").max() / 1e6
    )
    rows = megabytes.join(markdown.spreads(rates, ARM, {"rate": 0}), on=ARM, how="left")
    return [
        markdown.write(
            f"Speed and memory, {markdown.join(table.datasets)}",
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


REPORT = Report(_sections, METRICS)
