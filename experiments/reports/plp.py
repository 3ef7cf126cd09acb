"""The report of parameter linear prediction: the paper's table and figures."""

from typing import Any

import polars as pl

from experiments import figures, markdown
from experiments import table as tables
from experiments.reports import Report, ReportBlock, published
from experiments.table import METRICS as COMMON
from experiments.table import TARGET, Metric, Table

c = pl.col
# The paper's arms by ours. Its text describes period 4.
PAPER = {"sgd": "normal", "plp-4": "plp"}
CONTROL = "sgd"


def _epochs_to_target(table: Table) -> pl.DataFrame:
    epochs = table.epochs.filter(~c("diverged"))
    number = pl.int_range(1, pl.len() + 1).over(tables.KEYS)
    return tables.until_target(epochs.with_columns(spent=number), c("spent").last() + 1)


# The paper claims the last two.
METRICS = (
    *COMMON,
    Metric(
        "best_epoch",
        "best epoch",
        "epochs",
        1,
        # Without a validation part the last epoch counts, which compares nothing.
        pl.when(c("validation_loss").is_not_null()).then("best_epoch"),
        note="The epoch with the lowest validation loss. Earlier is counted as better, "
        "as in the PLP paper; it can also mean that an arm overfits sooner.",
    ),
    Metric(
        "epochs_to_target",
        "epochs to target",
        "epochs",
        1,
        _epochs_to_target,
        note=f"Epochs until the validation accuracy first reaches {100 * TARGET:.0f} % "
        f"of the mean best one of the control's runs. A run that never does counts as "
        f"if it did in the epoch after its last.",
    ),
)


def _sections(table: Table) -> list[ReportBlock]:
    """The paper's Table 4 and its Figures 3 and 4."""
    is_papers = table.datasets == (published("plp")["protocol"]["dataset"],)
    paper = published("plp") if is_papers else None
    arms = [arm.name for arm in table.study.arms if not arm.group]
    arms.sort(key=lambda name: name not in ("plp-4", "matched-4", "plp-3", "matched-3"))
    return [
        *(_accuracies(table, paper) if paper else ()),
        '## The paper\'s Figures 3 (accuracy, "Acc Diff") and 4 (loss)',
        *(figures.curves(table, model, arms, CONTROL) for model in table.models),
    ]


def _accuracies(table: Table, paper: dict[str, Any]) -> list[str]:
    names = ("accuracy", "top1_error", "top5_error")
    ours = table.finished.filter(c("arm").is_in(list(PAPER))).select(
        *tables.ARM, *(c(f"test_{name}").alias(name) for name in names)
    )
    cells = markdown.spreads(ours, tables.ARM, dict.fromkeys(names, 4))
    rows = markdown.counts(table).join(cells, on=tables.ARM, maintain_order="left")
    printed = pl.DataFrame(
        [
            {"model": model, "arm": f"paper: {table.labels[arm]}", "runs": "10"}
            | {name: markdown.number(theirs[column][name]) for name in names}
            for model in table.models
            if (theirs := paper["test"].get(model))
            for arm, column in PAPER.items()
        ],
        schema=rows.schema,
    )
    frame = pl.concat([table.named(rows), printed]).sort(
        table.in_order,
        c("arm").str.strip_prefix("paper: ") != table.labels[CONTROL],
        maintain_order=True,
    )
    heading = ["network", "arm", "runs", "accuracy", "top-1 error", "top-5 error"]
    frame.columns = heading
    return [
        "## The paper's Table 4: test accuracy and errors",
        markdown.write(
            "Accuracy, top-1 and top-5 error on the test set",
            frame,
            note="Ours: mean ± standard deviation over the finished runs.",
            left=2,
        ),
    ]


REPORT = Report(_sections, METRICS)
