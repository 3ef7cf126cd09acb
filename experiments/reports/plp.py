"""The report of parameter linear prediction: the paper's tables and figures."""

from typing import Any

import numpy as np
import polars as pl

from experiments import figures
from experiments import table as tables
from experiments.figures import Picture
from experiments.reports import published
from experiments.table import METRICS as COMMON
from experiments.table import TARGET, Metric, Table, markdown

c = pl.col
# The paper's arms by ours. Its text describes period 4.
PAPER = {"sgd": "normal", "plp-4": "plp"}
CONTROL = "sgd"
_SMOOTHING = 0.03  # of the path, for the moving average
_NOTES = (
    "- The paper prints its loss in units of 1e-2. Its 2.9e-2 would be 1.9 nats if it "
    "is 1/64 of a cross-entropy per example; that factor is inferred, so losses are "
    "not comparable with ours, which are in nats per example.\n"
    "- ResNet-18 with PLP: the paper prints an accuracy of 59.49 % and a top-1 error "
    "of 0.4061, which would be 59.39 %.\n"
    "- The paper says that top-5 errors fall by 0.01; in its Table 4 they fall by "
    "0.0045 (VGG-16), 0.0105 (ResNet-18) and 0.0091 (GoogLeNet), 0.008 on average.\n"
    "- Its repetitions are not paired with our seeds."
)


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


def sections(table: Table, found: pl.DataFrame) -> list[str | Picture | None]:
    """The paper's Tables 1 to 4 and its Figures 1, 3 and 4."""
    del found
    is_papers = table.datasets == (published("plp")["protocol"]["dataset"],)
    paper = published("plp") if is_papers else None
    arms = [arm.name for arm in table.study.arms if not arm.group]
    arms.sort(key=lambda name: name not in ("plp-4", "matched-4", "plp-3", "matched-3"))
    return [
        "## The paper's Tables 1 to 3: best epoch and loss of each run",
        *(_best_epochs(table, model, paper) for model in table.models),
        *(_accuracies(table, paper) if paper else ()),
        "## The paper's Figure 1: the path of a weight and of a bias",
        *(_paths(table, model) for model in table.models),
        '## The paper\'s Figure 3: the difference in accuracy ("Acc Diff")',
        *(figures.curves(table, m, arms, CONTROL, "accuracy") for m in table.models),
        "## The paper's Figure 4: loss",
        *(figures.curves(table, m, arms, CONTROL, "loss") for m in table.models),
    ]


def _best_epochs(table: Table, model: str, paper: dict[str, Any] | None) -> str:
    main = {arm.name for arm in table.study.arms if not arm.group}
    runs = table.runs.filter(c("model") == model, c("arm").is_in(list(main)))
    best = tables.select(
        runs,
        diverged=c("diverged"),
        epoch=c("best_epoch"),
        loss=c("validation_loss"),
    )
    loss = tables.texts("loss", tables.number)
    of_seed = best.select(
        "arm",
        seed=c("seed").cast(pl.String),
        cell=pl.when("diverged")
        .then(pl.lit("diverged"))
        .otherwise(pl.format("{} / {}", c("epoch").cast(pl.Int64), loss)),
    ).sort(c("seed").cast(pl.Int64), maintain_order=True)
    means = (
        best.filter(~c("diverged"))
        .group_by("arm", maintain_order=True)
        .agg(c("epoch", "loss").mean())
        .select(
            "arm",
            seed=pl.lit("mean"),
            cell=pl.format(
                "{} / {}", tables.texts("epoch", lambda x: tables.number(x, 1)), loss
            ),
        )
    )
    order = list(best["arm"].unique(maintain_order=True))
    frame = pl.concat([of_seed, means]).pivot("arm", index="seed", values="cell")
    note = "The loss is the lowest validation loss, in nats."
    if printed := paper and paper["best_epoch_and_loss_1e-2"].get(model):
        theirs = {a: np.mean(printed[name], axis=0) for a, name in PAPER.items()}
        row = {a: f"{e:.1f} / {loss:.3f}e-2" for a, (e, loss) in theirs.items()}
        kept = {name: text for name, text in row.items() if name in order}
        frame = pl.concat(
            [frame, pl.DataFrame({"seed": "paper", **kept})], how="diagonal"
        )
        note += " The paper's row is the mean of its ten repetitions."
    return markdown(
        f"{table.place(model)}: best epoch / loss",
        frame.select("seed", *order).fill_null("").rename(table.labels, strict=False),
        note=note,
    )


def _accuracies(table: Table, paper: dict[str, Any]) -> list[str]:
    names = ("accuracy", "top1_error", "top5_error")
    ours = table.finished.filter(c("arm").is_in(list(PAPER))).select(
        "model", "arm", *(c(f"test_{name}").alias(name) for name in names)
    )
    keys = ["model", "arm"]
    cells = tables.spreads(ours, keys, dict.fromkeys(names, 4))
    rows = tables.counts(table).join(cells, on=keys, maintain_order="left")
    printed = pl.DataFrame(
        [
            {"model": model, "arm": f"paper: {table.labels[arm]}", "runs": "10"}
            | {name: tables.number(theirs[column][name]) for name in names}
            for model in table.models
            if (theirs := paper["test"].get(model))
            for arm, column in PAPER.items()
        ],
        schema=rows.schema,
    )
    frame = pl.concat([table.named(rows), printed]).sort(
        c("model").replace_strict({m: i for i, m in enumerate(table.models)}),
        c("arm").str.strip_prefix("paper: ") != table.labels[CONTROL],
        maintain_order=True,
    )
    heading = ["network", "arm", "runs", "accuracy", "top-1 error", "top-5 error"]
    frame.columns = heading
    return [
        "## The paper's Table 4: test accuracy and errors",
        markdown(
            "Accuracy, top-1 and top-5 error on the test set",
            frame,
            note="Ours: mean ± standard deviation over the finished runs.",
            left=2,
        ),
        f"Notes on the paper's numbers:\n\n{_NOTES}",
    ]


def _paths(table: Table, model: str) -> Picture | None:
    followed = [
        (record.arm, path)
        for record, path in table.measured("path", finished=False)
        if record.model == model and record.arm in PAPER
    ]
    if not followed:
        return None
    which = followed[0][1]["which"]
    looks = figures.looks([arm for arm, _ in followed], CONTROL)
    figure = figures.figure(
        f"Two parameters along training, {table.place(model)}", 9, 3.5
    )
    for kind, ax in zip(("weight", "bias"), figure.subplots(1, 2), strict=True):
        figures.dress(ax, xlabel="optimizer step", ylabel=f"value of the {kind}")
        for arm, path in followed:
            frame = pl.DataFrame(path["step"], schema=["step"]).with_columns(
                value=pl.Series(path[kind], dtype=pl.Float64)
            )
            color = looks[arm].color
            ax.plot(frame["step"], frame["value"], color=color, lw=0.5, alpha=0.45)
            width = min(len(frame), max(3, int(_SMOOTHING * len(frame))))
            smooth = frame.select(pl.all().rolling_mean(width)).drop_nulls()
            ax.plot(smooth["step"], smooth["value"], color=color, lw=1.8,
                    ls=looks[arm].linestyle, label=table.labels[arm])  # fmt: skip
    figures.legend(figure)
    return Picture(
        f"path-{model}",
        figure,
        f"A weight, {which['weight']}, and a bias, {which['bias']}, of one run each "
        f"with the same seed. Thin: the values; thick: their centred moving average "
        f"over {_SMOOTHING:.0%} of the steps.",
    )
