"""The report of gradient amplification: the paper's accuracies, and rates."""

import polars as pl

from experiments import figures, markdown
from experiments.rates import stages
from experiments.reports import Report, ReportBlock, published
from experiments.table import ARM, KEYS, Table
from training.settings.config import resolve
from training.settings.methods import Amplify

c = pl.col
CONTROL = "original"
_PLAIN = "noop"  # the plain control that shares the path of arms that amplify
# The paper's columns by the arms that correspond to them.
PAPER = {
    "original": "original",
    "random": "random layers",
    "g1-case1": "g1 case 1",
    "g1-case2": "g1 case 2",
    "g2-case1": "g2 case 1",
    "g2-case2": "g2 case 2",
}
# The arms in colour: the method, and others that could explain its gain.
_DECIDING = ("g2-case1", "random", "all", "rate-1.1")


def sections(table: Table) -> list[ReportBlock]:
    """The paper's Tables 3 and 4 and its Figure 11, and the rise of the rate."""
    main = [arm.name for arm in table.study.arms if not arm.group]
    return [
        "## Best accuracy (the paper's Tables 3 and 4)",
        _accuracies(table),
        "## Curves (the paper's Figure 11)",
        *(
            figures.curves(table, model, main, _control(table, model), _DECIDING)
            for model in table.models
        ),
        *_rises(table),
    ]


def _control(table: Table, model: str) -> str:
    """The control of arms that amplify, in pictures."""
    ran = table.finished.filter(c("model") == model)["arm"]
    return _PLAIN if _PLAIN in set(ran) else CONTROL


# -- The paper's tables ----------------------------------------------------------------


def _accuracies(table: Table) -> str:
    paper = published("amplification")["best_test_accuracy"]
    of = c("arm").str.replace(r"-t[\d.]+$", "")  # an arm at all its thresholds
    accuracy = table.finished.with_columns(of=of, accuracy=100 * c("test_accuracy"))
    fixed = accuracy.group_by(ARM).agg("accuracy")
    means = {(m, a): markdown.spread(x, ".2f") for m, a, x in fixed.iter_rows()}
    best = accuracy.group_by("model", "of").agg(c("accuracy").max())
    highest = {(m, a): markdown.number(x, 2) for m, a, x in best.iter_rows()}
    rows = []
    ours = f"ours ({markdown.join(table.datasets)})"
    for model in table.models:
        original = means.get((model, CONTROL), markdown.NONE)
        others = [(model, arm) for arm in PAPER if arm != CONTROL]
        for text, cells in (("threshold fixed, mean", means), ("best run", highest)):
            found = [cells.get(key, markdown.NONE) for key in others]
            rows.append([model, f"{ours}: {text}", original, *found])
        for dataset, number in (("cifar10", 3), ("cifar100", 4)):
            printed = paper[dataset].get(model)
            if printed and dataset in table.datasets:
                cells_ = [f"{value:.2f}" for value in printed]
                rows.append([model, f"paper, Table {number} ({dataset})", *cells_])
    return markdown.write(
        "Test accuracy (%)",
        pl.DataFrame(rows, schema=["network", "source", *PAPER.values()], orient="row"),
        note="Best run: of all thresholds, and of the original model the mean, as in "
        "the paper. The paper's accuracy is the best one on the test set; ours was "
        "read once a run.",
        left=2,
    )


# -- Settings and rates ----------------------------------------------------------------


def rises(table: Table) -> pl.DataFrame:
    """The mean rise of the effective learning rate of each run that amplifies.

    Means over layers, each counted once, and over the epochs in which layers may be
    amplified. Arms in the propagated form are left out: it multiplies the layers before
    a selected one, too.
    """
    analyzed = pl.DataFrame(
        [
            (record.model, record.arm, row["layer"])
            for record in table.records
            if not record.diverged
            for metrics in record.history
            for row in metrics.get("analysis", ())
        ],
        schema=dict.fromkeys((*ARM, "layer"), pl.String),
        orient="row",
    )
    counts = analyzed.group_by(ARM).agg(count=c("layer").n_unique())
    of_model = counts.group_by("model").agg(c("count").max().alias("most"))
    factors = []
    for (model, arm), complete in table.configs.items():
        config, start = resolve(complete), 0
        if complete["strategy"] is None or table.study.arm(arm).fields.get(
            "amplify_propagate"
        ):
            continue
        for stage in stages(config):
            if stage.amplify:
                amplify = config.get(Amplify)
                own = amplify.factor if amplify else None
                factor = stage.factor if own is None else own
                epochs = range(int(start) + 2, int(stage.end_epoch) + 1)
                factors += [(model, arm, epoch, factor) for epoch in epochs]
            start = stage.end_epoch
    allowed = pl.DataFrame(
        factors,
        schema={"model": pl.String, "arm": pl.String, "epoch": pl.Int64,
                "factor": pl.Float64},
        orient="row",
    )  # fmt: skip
    share = c("amplified").list.len() / pl.coalesce("count", "most")
    finished = table.epochs.filter(~c("diverged"))
    return (
        finished.filter(c("amplified").is_not_null().any().over(KEYS))
        .join(counts, on=ARM, how="left", maintain_order="left")
        .join(of_model, on="model", how="left", maintain_order="left")
        .join(allowed, on=["model", "arm", "epoch"], maintain_order="left")
        .with_columns(share=100 * share, rise=1 + (c("factor") - 1) * share)
        .group_by(KEYS, maintain_order=True)
        .agg(c("share", "rise").mean())
    )


def _rises(table: Table) -> list[str]:
    if "amplified" not in table.epochs.columns:
        return []
    found = rises(table)
    if not len(found):
        return []
    matched = {a.name: table.labels.get(a.matched or "", "") for a in table.study.arms}
    runs = found.group_by(ARM, maintain_order=True).len("runs")
    cells = markdown.spreads(found, ARM, {"share": 1, "rise": 3})
    rows = runs.join(cells, on=ARM, maintain_order="left")
    frame = rows.select(
        c("model").alias("network"),
        c("arm").replace(table.labels),
        c("arm").replace_strict(matched).alias("plain arm at the matched rate"),
        "runs",
        c("share").alias("layers amplified (%)"),
        c("rise").alias("rate x"),
    )
    title = "Mean rise of the effective learning rate"
    note = (
        "Means over the layers, each counted once, and over the epochs in which "
        "layers may be amplified: those of an amplified stage but its first. Rate x: "
        "what gradients are multiplied by, in the mean. Plain arms multiply the rate "
        "in the same epochs; their factors were declared before the runs, exactly for "
        "random and all layers, and as the nearest for layers selected by scores."
    )
    return [f"## {title}", markdown.write(title, frame, note=note, left=3)]


REPORT = Report(sections)
