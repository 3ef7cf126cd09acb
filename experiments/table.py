"""A study's records as tables, and what is compared in them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from experiments import studies
from experiments.records import Header, Record, RecordFile
from experiments.statistics import compare as compare_pairs
from experiments.statistics import corrected, verdict
from experiments.study import Study
from training.settings.config import fields, resolve

# What tables are joined by: runs of one arm, and a run.
ARM = ("model", "arm")
KEYS = (*ARM, "seed")
# The target of metrics that ask when it is reached, as a part of the control's mean
# best accuracy. The control alone sets it, so that no arm is favoured by its choice.
TARGET = 0.95

c = pl.col
_KEY = {
    **{"model": pl.String, "arm": pl.String, "seed": pl.Int64},
    "diverged": pl.Boolean,
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A study and its runs at one scale.

    Attributes:
      study: The study, with the arms of sweeps that were run.
      records: All runs, with what is not a table: configurations and measures.
      runs: A row a run: ``model``, ``arm``, ``seed``, ``diverged``, and the numbers of
        its result.
      epochs: A row an epoch: ``model``, ``arm``, ``seed``, ``diverged``, and its
        history.
      models: The networks that were trained, in the order of the scale.
      outdated: How many records are left out, as their arms are declared differently.
    """

    study: Study
    records: tuple[Record, ...]
    runs: pl.DataFrame
    epochs: pl.DataFrame
    models: tuple[str, ...]
    outdated: int = 0

    @property
    def kind(self) -> str:
        """The heading of ``models``: networks, or a study's own setups."""
        return "network" if self.study.execute is None else "setup"

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """The labels of arms, by name."""
        return {arm.name: arm.label for arm in self.study.arms}

    @functools.cached_property
    def configs(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The complete configuration of each network and arm, of its first seed."""
        first: dict[tuple[str, str], dict[str, Any]] = {}
        for record in self.records:
            first.setdefault((record.model, record.arm), record.config)
        return {key: self.complete(config) for key, config in first.items()}

    def complete(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A recorded configuration with the defaults that it leaves out."""
        own = self.study.execute is not None  # of its own kind, and complete
        return dict(config) if own else fields(resolve(config))

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that were trained on."""
        found = (config.get("dataset") for config in self.configs.values())
        return tuple(dict.fromkeys(filter(None, found)))

    @property
    def in_order(self) -> pl.Expr:
        """The networks as an expression to sort by, in the order of the scale."""
        return c("model").cast(pl.Enum(self.models))

    def place(self, model: str) -> str:
        """The network and the data set, for titles: ``resnet18 on digits``."""
        return " on ".join(filter(None, (model, ", ".join(self.datasets))))

    @property
    def finished(self) -> pl.DataFrame:
        """The runs that did not diverge."""
        return self.runs.filter(~c("diverged"))

    def long(
        self, *, finished: bool = True, **entries: pl.DataType | type[pl.DataType]
    ) -> pl.DataFrame:
        """Measures in long form: the keys of runs, ``diverged``, a column a measure.

        Args:
          finished: Whether to leave out runs that diverged.
          entries: Names of measures, and the types of a row's entries. The measures of
            a run are lists of equal length, or single values.
        """

        def listed(value: Any) -> list[Any]:
            return value if isinstance(value, list) else [value]

        rows = [
            _key(record) | {name: listed(record.measures[name]) for name in entries}
            for record in self.records
            if all(record.measures.get(name) for name in entries)
            and not (finished and record.diverged)
        ]
        schema = _KEY | {name: pl.List(kind) for name, kind in entries.items()}
        return pl.DataFrame(rows, schema, strict=False).explode(list(entries))

    def named(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Arms and controls by their labels, for readers."""
        arms = [name for name in ("arm", "control") if name in frame.columns]
        return frame.with_columns(c(arms).replace(self.labels))


def load(folder: Path) -> Table:
    """Reads a study's records, without those of arms that are now declared differently.

    Raises:
      UserError: If there are no records, or they are damaged.
    """
    file = RecordFile(folder)
    header, records = file.read_all()
    study = studies.load(header.study)
    current = study.current(header, records)
    loaded = make(study, header, current)
    return dataclasses.replace(loaded, outdated=len(records) - len(current))


def make(study: Study, header: Header, records: Sequence[Record]) -> Table:
    """Makes tables of records, as :meth:`RecordFile.read` returns them."""
    study = study.including(record.arm for record in records)
    arms = [arm.name for arm in study.arms]
    ran = {record.model for record in records}
    models = [model for model in dict.fromkeys(header.models) if model in ran]
    kept = sorted(
        (record for record in records if record.model in models),
        key=lambda r: (models.index(r.model), arms.index(r.arm), r.seed),
    )
    runs = [_key(r) | _numbers(r.result) for r in kept]
    epochs = [
        _key(r) | {n: v for n, v in row.items() if n != "analysis"}
        for r in kept
        for row in r.history
    ]

    def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
        if not rows:
            return pl.DataFrame(schema=_KEY)
        return pl.DataFrame(rows, schema_overrides=_KEY, infer_schema_length=None)

    results = ensure(frame(runs), "test_accuracy", "validation_loss", "train_seconds")
    return Table(study, tuple(kept), results, frame(epochs), tuple(models))


def _key(record: Record) -> dict[str, Any]:
    return {**{n: getattr(record, n) for n in KEYS}, "diverged": record.diverged}


def _numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    nested = {n for n, v in result.items() if isinstance(v, list | dict)}
    return {n: v for n, v in result.items() if n not in {*nested, "diverged"}}


def ensure(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    """A table with these columns: what was never recorded is null."""
    missing = [n for n in dict.fromkeys(names) if n not in frame.columns]
    return frame.with_columns(pl.lit(None, pl.Float64).alias(n) for n in missing)


def select(frame: pl.DataFrame, **columns: pl.Expr) -> pl.DataFrame:
    """The keys of runs and named columns; what was never recorded is null."""
    needed = [name for column in columns.values() for name in column.meta.root_names()]
    return ensure(frame, *needed).select(*KEYS, **columns)


def is_first_seed() -> pl.Expr:
    """Whether a row is of the first seed of its network and arm."""
    return c("seed") == c("seed").min().over("model", "arm")


# -- Comparisons -----------------------------------------------------------------------


class Metric(NamedTuple):
    """A quantity that is compared.

    Attributes:
      name: Short, for names of files.
      label: As reports call it.
      unit: Unit of the differences.
      digits: Decimals to print.
      value: An expression on the table of runs; or a function from a table to
        ``model``, ``arm``, ``seed``, ``value`` and, for values that depend on what a
        run is compared with, ``control``.
      higher_is_better: Whether a higher value is the better one.
      note: The note below its table.
      comparisons: Arms and controls; None for all of the study.
      is_ratio: Whether values are logarithms, whose differences are shown as ratios.
    """

    name: str
    label: str
    unit: str
    digits: int
    value: pl.Expr | Callable[[Table], pl.DataFrame]
    higher_is_better: bool = False
    note: str = ""
    comparisons: Sequence[tuple[str, str]] | None = None
    is_ratio: bool = False

    @property
    def title(self) -> str:
        """The label with a capital at its beginning."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def column(self) -> str:
        """The heading of a column of values."""
        if self.unit in ("epochs", self.label):
            return self.label
        return f"{self.label} ({self.unit.replace('points', '%')})"

    def values(self, table: Table) -> pl.DataFrame:
        """The values of the finished runs that have one."""
        if callable(self.value):
            found = self.value(table)
        else:
            found = select(table.finished, value=self.value)
        return found.cast({"value": pl.Float64}).drop_nulls("value")


# A run that averages parameters is judged by the average at its end.
ACCURACY = Metric(
    "test_accuracy",
    "test accuracy",
    "points",
    2,
    100 * pl.coalesce("average_test_accuracy", "test_accuracy"),
    higher_is_better=True,
)


def _validation_loss(table: Table) -> pl.DataFrame:
    last = select(table.epochs, average=c("average_validation_loss")).group_by(KEYS)
    runs = table.finished.join(last.last(), on=KEYS, how="left", maintain_order="left")
    return select(runs, value=pl.coalesce("average", "validation_loss"))


LOSS = Metric("validation_loss", "validation loss", "nats", 4, _validation_loss)
# The metrics of runs of the training recipe. The first one is charted first.
METRICS: tuple[Metric, ...] = (ACCURACY, LOSS)


def until_target(epochs: pl.DataFrame, beyond: pl.Expr) -> pl.DataFrame:
    """The cost of runs until they first reach the target of a control.

    Args:
      epochs: The epochs of finished runs, with ``spent``, the sum until their end.
      beyond: The value of a run that never reaches it, by its ``spent``.

    Returns:
      ``model``, ``arm``, ``seed``, ``control``, ``value``: each run with each control.
    """
    seen = select(
        epochs, accuracy=c("validation_accuracy").fill_nan(None), spent=c("spent")
    )
    best = seen.group_by(KEYS, maintain_order=True).agg(c("accuracy").max())
    targets = (
        best.drop_nulls()
        .group_by("model", control="arm")
        .agg(target=TARGET * c("accuracy").mean())
    )
    first = c("spent").filter(c("accuracy") >= c("target")).first()
    return (
        seen.join(targets, on="model", maintain_order="left")
        .group_by(*KEYS, "control", maintain_order=True)
        .agg(value=pl.coalesce(first, beyond).cast(pl.Float64))
    )


def seconds_by_epoch(table: Table) -> pl.DataFrame:
    """The epochs of finished runs whose times are known, with ``seconds`` of training.

    All epochs have the same number of images.
    """
    times = select(table.finished, train_seconds=c("train_seconds"))
    share = (1 / c("images_per_second")).over(KEYS)
    return (
        select(
            table.epochs.filter(~c("diverged")),
            validation_accuracy=c("validation_accuracy"),
            images_per_second=c("images_per_second").cast(pl.Float64),
        )
        .filter(c("images_per_second").is_finite().fill_null(False).all().over(KEYS))
        .join(times, on=KEYS, maintain_order="left")
        .with_columns(seconds=c("train_seconds") * share / share.sum().over(KEYS))
    )


def seconds_to_target(table: Table) -> pl.DataFrame:
    """Values of :data:`SECONDS_TO_TARGET`."""
    spent = seconds_by_epoch(table).with_columns(
        spent=c("seconds").cum_sum().over(KEYS)
    )
    # One more epoch, of the mean length.
    return until_target(spent, c("spent").last() * (1 + 1 / pl.len()))


# For studies that compare times.
SECONDS_TO_TARGET = Metric(
    "seconds_to_target",
    "seconds to target",
    "s",
    2,
    seconds_to_target,
    note=f"Training time until the validation accuracy first reaches "
    f"{100 * TARGET:.0f} % of the mean best one of the control's runs. "
    f"A run that never does counts as if it did after one more epoch.",
)


def compare(table: Table, metrics: Sequence[Metric] = METRICS) -> pl.DataFrame:
    """All comparisons in all metrics, on all networks that have runs.

    Comparisons without a pair are left out: arms that were not run, networks without a
    validation part. One whose runs all diverged appears once, in the first metric.
    P-values are corrected over the comparisons in the same metric.

    Returns:
      A row a comparison: ``metric``, ``model``, ``arm``, ``control``, ``diverged`` and
      ``control_diverged`` (runs that did, on the seeds that both ran; they are left out
      of the difference), the fields of ``statistics.PairedDifference``, ``corrected``
      and ``verdict``.
    """
    pair = {"arm": pl.String, "control": pl.String}
    declared = pl.DataFrame(table.study.comparisons, schema=pair, orient="row")
    theirs = table.runs.select(
        "model", "seed", control="arm", control_diverged="diverged"
    )
    ran = (
        declared.with_row_index("order")
        .join(table.runs.select(*KEYS, "diverged"), on="arm")
        .join(theirs, on=["model", "seed", "control"])
        .group_by("model", "order", "arm", "control")
        .agg(c("diverged", "control_diverged").sum())
        .sort(table.in_order, "order")
        .drop("order")
    )
    found = [_compare(table, metric, ran) for metric in metrics]
    anything = (c("diverged") + c("control_diverged") > 0) | (c("n") > 0)
    kept = [f.filter(c("n") > 0 if i else anything) for i, f in enumerate(found)]
    return pl.concat(kept) if kept else pl.DataFrame()


def _compare(table: Table, metric: Metric, ran: pl.DataFrame) -> pl.DataFrame:
    values = metric.values(table)
    if "control" in values.columns:
        of_pair = ["control"]
        theirs = values.filter(c("arm") == c("control"))
    else:
        of_pair = []
        theirs = values.with_columns(control="arm")
    theirs = theirs.select("model", "seed", "control", base="value")
    if metric.comparisons is not None:
        asked = pl.DataFrame(
            metric.comparisons, schema=["arm", "control"], orient="row"
        )
        ran = ran.join(asked, on=["arm", "control"], how="semi")
    is_pair = c("value").is_not_null() & c("base").is_not_null()
    both = (
        ran.join(values, on=[*ARM, *of_pair], how="left", maintain_order="left")
        .join(
            theirs, on=["model", "seed", "control"], how="left", maintain_order="left"
        )
        .group_by(ran.columns, maintain_order=True)
        .agg(c("value", "base").filter(is_pair))
    )
    found = list(itertools.starmap(compare_pairs, both.select("value", "base").rows()))
    p = corrected(found)
    better = metric.higher_is_better
    verdicts = [
        verdict(d, q, higher_is_better=better) for d, q in zip(found, p, strict=True)
    ]
    fields = pl.DataFrame(
        [(*d, q, v) for d, q, v in zip(found, p, verdicts, strict=True)],
        schema={
            **{"n": pl.Int64, "mean": pl.Float64, "low": pl.Float64},
            **{"high": pl.Float64, "p": pl.Float64, "up": pl.Int64, "tied": pl.Int64},
            **{"down": pl.Int64, "corrected": pl.Float64, "verdict": pl.String},
        },
        orient="row",
    )
    named = pl.lit(metric.name).alias("metric")
    return both.select(named, pl.exclude("value", "base")).hstack(fields)
