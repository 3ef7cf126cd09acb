"""The report of parameter linear prediction: the paper's tables and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import figures, style, tables
from experiments.comparisons import Compared
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs

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


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """The paper's Tables 1 to 4 and its Figures 1, 3 and 4."""
    del found
    paper = tables.published("plp") if _is_papers(runs) else None
    arms = [arm.name for arm in runs.study.arms if not arm.group]
    return [
        "## The paper's Tables 1 to 3: best epoch and loss of each run",
        *(_best_epochs(runs, model, paper) for model in runs.models),
        *(_accuracies(runs, paper) if paper else ()),
        "## The paper's Figure 1: the path of a weight and of a bias",
        *(_paths(runs, model) for model in runs.models),
        '## The paper\'s Figure 3: training accuracy and its difference ("Acc Diff")',
        *(figures.curves(runs, m, arms, CONTROL, "accuracy") for m in runs.models),
        "## The paper's Figure 4: loss",
        *(figures.curves(runs, m, arms, CONTROL, "loss") for m in runs.models),
    ]


def _is_papers(runs: Runs) -> bool:
    """Whether the runs are on the paper's data set, so that its numbers matter."""
    return runs.datasets == (tables.published("plp")["protocol"]["dataset"],)


def _best_epochs(runs: Runs, model: str, paper: dict[str, Any] | None) -> str:
    arms = [a for a in runs.study.arms if not a.group and runs.of(model, a.name)]
    seeds = sorted({r.seed for arm in arms for r in runs.of(model, arm.name)})
    by_seed = {(a.name, r.seed): r for a in arms for r in runs.of(model, a.name)}
    rows = [
        [str(seed), *(_best(by_seed.get((arm.name, seed))) for arm in arms)]
        for seed in seeds
    ]
    rows.append(["mean", *(_mean(runs.finished(model, arm.name)) for arm in arms)])
    note = "The loss is the lowest validation loss, in nats."
    printed = paper and paper["best_epoch_and_loss_1e-2"].get(model)
    if printed:
        means = {a: np.mean(printed[name], axis=0) for a, name in PAPER.items()}
        cells = [
            f"{means[arm.name][0]:.1f} / {means[arm.name][1]:.3f}e-2"
            if arm.name in means
            else ""
            for arm in arms
        ]
        rows.append(["paper", *cells])
        note += " The paper's row is the mean of its ten repetitions."
    return tables.markdown(
        f"{runs.place(model)}: best epoch / loss",
        ["seed", *(arm.label for arm in arms)],
        rows,
        note=note,
    )


def _best(record: Record | None) -> str:
    if record is None:
        return ""
    if record.diverged:
        return "diverged"
    loss = tables.number(record.result.get("validation_loss"))
    return f"{record.result['best_epoch']} / {loss}"


def _mean(finished: Sequence[Record]) -> str:
    best = [
        (r.result["best_epoch"], r.result.get("validation_loss", np.nan))
        for r in finished
    ]
    if not best:
        return ""
    epoch, loss = np.mean(best, axis=0)
    return f"{epoch:.1f} / {tables.number(loss)}"


def _accuracies(runs: Runs, paper: dict[str, Any]) -> list[str]:
    names = ("accuracy", "top1_error", "top5_error")
    rows = []
    for model in runs.models:
        for arm, printed in PAPER.items():
            if runs.finished(model, arm):
                values = [runs.values(model, arm, f"test_{name}") for name in names]
                cells = [tables.spread(v) for v in values]
                rows.append([model, runs.label(arm), runs.count(model, arm), *cells])
            if theirs := paper["test"].get(model):
                cells = [tables.number(theirs[printed][name]) for name in names]
                rows.append([model, f"paper: {runs.label(arm)}", "10", *cells])
    return [
        "## The paper's Table 4: test accuracy and errors",
        tables.markdown(
            "Accuracy, top-1 and top-5 error on the test set",
            ["network", "arm", "runs", "accuracy", "top-1 error", "top-5 error"],
            rows,
            note="Ours: mean ± standard deviation over the finished runs.",
            left=2,
        ),
        f"Notes on the paper's numbers:\n\n{_NOTES}",
    ]


def _paths(runs: Runs, model: str) -> Picture | None:
    followed = [r for arm in PAPER for r in runs.of(model, arm) if "path" in r.measures]
    if not followed:
        return None
    which = followed[0].measures["path"]["which"]
    return Picture(
        f"path-{model}",
        _draw_paths(runs, model, followed),
        f"A weight, {which['weight']}, and a bias, {which['bias']}, of one run each "
        f"with the same seed. Thin: the values; thick: their centred moving average "
        f"over {_SMOOTHING:.0%} of the steps.",
    )


def _draw_paths(runs: Runs, model: str, followed: Sequence[Record]) -> Figure:
    figure = style.figure(f"Two parameters along training, {runs.place(model)}", 9, 3.4)
    for kind, ax in zip(("weight", "bias"), figure.subplots(1, 2), strict=True):
        style.dress(ax, xlabel="optimizer step", ylabel=f"value of the {kind}")
        for record in followed:
            path = record.measures["path"]
            values, steps = (np.array(path[n], np.float64) for n in (kind, "step"))
            color = runs.looks[record.arm].color
            ax.plot(steps, values, color=color, lw=0.5, alpha=0.45)
            width = min(len(values), max(3, int(_SMOOTHING * len(values))))
            smooth, middle = (
                np.convolve(series, np.full(width, 1 / width), mode="valid")
                for series in (values, steps)
            )
            ax.plot(middle, smooth, color=color, lw=1.8, label=runs.label(record.arm))
    style.legend(figure)
    return figure
