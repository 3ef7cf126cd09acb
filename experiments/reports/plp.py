"""The report of parameter linear prediction: the paper's tables and figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import figures, style, tables
from experiments.page import Block, Picture, Section, Table
from experiments.reports import shared
from experiments.reports.comparisons import Compared
from experiments.reports.runs import NOT_RUN, Runs

# The paper's arms by ours. Its text describes period 4.
PAPER = {"sgd": "normal", "plp-4": "plp"}
CONTROL = "sgd"
_WINDOW = 0.03  # of the path, for the moving average


def sections(runs: Runs, found: Sequence[Compared]) -> list[Section]:
    """The paper's Tables 1 to 4 and Figures 1, 3 and 4, beside its own numbers."""
    paper = tables.published("plp")
    best: list[Block] = [
        "The paper prints its loss in units of 1e-2, and about 1/64 of a cross entropy "
        "per example: its 2.9e-2 would be 1.9 nats. Ours is in nats per example. "
        "Absolute losses are therefore not comparable; epochs and accuracies are, "
        "where the setting is the same. The paper's runs are not paired with our seeds."
    ]
    for number, model in enumerate(_models(runs, paper), start=1):
        best += _best_epochs(runs, model, number, paper)
    own = [
        Section("Best epoch and loss (the paper's Tables 1 to 3)", best),
        Section("Accuracy and errors (the paper's Table 4)", [_errors(runs, paper)]),
        Section("A weight's and a bias's path (the paper's Figure 1)", _paths(runs)),
        Section("Curves (the paper's Figures 3 and 4)", _curves(runs)),
    ]
    return shared.sections(runs, found, own=own)


def _models(runs: Runs, paper: dict[str, Any]) -> list[str]:
    ours = [model for model in runs.models if model not in paper["test"]]
    return [*paper["test"], *ours]


def _best_epochs(
    runs: Runs, model: str, number: int, paper: dict[str, Any]
) -> list[Block]:
    printed = paper["best_epoch_and_loss_1e-2"].get(model)
    title = f"Table {number}, {model}" if printed else model
    if model not in runs.models:
        return [f"{title}: {NOT_RUN}."]
    arms = runs.study.arms
    seeds = sorted({record.seed for record in runs.records if record.model == model})
    found = {(r.arm, r.seed): r for arm in arms for r in runs.of(model, arm.name)}
    rows = []
    for line in range(max(len(seeds), len(printed["normal"]) if printed else 0)):
        seed = seeds[line] if line < len(seeds) else None
        cells = [] if seed is None else [_best(found.get((a.name, seed))) for a in arms]
        cells = cells or [""] * len(arms)
        if printed:
            columns = [printed[name] for name in PAPER.values()]
            cells += [_printed(c[line]) if line < len(c) else "" for c in columns]
        rows.append(["" if seed is None else str(seed), *cells])
    mean = [_mean(runs, model, arm.name) for arm in arms]
    if printed:
        mean += [_printed(np.mean(printed[name], axis=0)) for name in PAPER.values()]
    header = ["seed", *(arm.label for arm in arms)]
    if printed:
        header += [f"paper: {name}" for name in ("SGD", "PLP")]
    return [
        Table(
            f"{title}: best epoch / validation loss",
            header,
            [*rows, ["mean", *mean]],
            note="Ours in nats, the paper's as printed, in units of 1e-2."
            if printed
            else "Losses in nats.",
        )
    ]


def _best(record: Any) -> str:
    if record is None:
        return NOT_RUN
    if record.diverged:
        return "diverged"
    loss = tables.number(record.result["validation_loss"])
    return f"{record.result['best_epoch']} / {loss}"


def _printed(epoch_and_loss: Any) -> str:
    epoch, loss = epoch_and_loss
    return f"{epoch:.4g} / {loss:.3f}"


def _mean(runs: Runs, model: str, arm: str) -> str:
    if absence := runs.absence(model, arm):
        return absence
    epochs = runs.values(model, arm, "best_epoch")
    losses = runs.values(model, arm, "validation_loss")
    return f"{epochs.mean():.1f} / {tables.number(float(losses.mean()))}"


def _errors(runs: Runs, paper: dict[str, Any]) -> Table:
    names = ("accuracy", "top1_error", "top5_error")
    rows = []
    for model in _models(runs, paper):
        for arm in runs.study.arms:
            absence = runs.absence(model, arm.name)
            ours = [
                tables.spread(runs.values(model, arm.name, f"test_{name}"))
                for name in names
            ]
            theirs = paper["test"].get(model, {}).get(PAPER.get(arm.name), {})
            if absence and not theirs and model not in runs.models:
                continue  # neither here nor in the paper
            rows.append(
                [
                    *(model, arm.label, absence or runs.count(model, arm.name), *ours),
                    *(tables.number(theirs.get(name)) for name in names),
                ]
            )
    return Table(
        "Table 4: accuracy, top-1 and top-5 error on the test set",
        [
            *("network", "arm", "runs", "accuracy", "top-1 error", "top-5 error"),
            *("paper: accuracy", "top-1", "top-5"),
        ],
        rows,
        note="Mean ± standard deviation over the finished runs, of the parameters of "
        "the epoch with the lowest validation loss; the test set was read once a run.",
        left=2,
    )


def _paths(runs: Runs) -> list[Block]:
    blocks: list[Block] = []
    for model in runs.models:
        measured = [
            record
            for arm in PAPER
            for record in runs.of(model, arm)[:1]
            if record.measures.get("path")
        ]
        if measured:
            which = measured[0].measures["path"]["which"]
            seeds = tables.join(dict.fromkeys(str(r.seed) for r in measured))
            blocks.append(
                Picture(
                    f"path-{model}",
                    _draw_paths(runs, measured),
                    f"{model}, seed {seeds}: the path of a weight ({which['weight']}) "
                    f"and of a bias ({which['bias']}) over training: thin as it is, "
                    f"thick smoothed by a centred moving average over {_WINDOW:.0%} of "
                    f"the steps shown.",
                )
            )
    return blocks or [f"Paths of single parameters: {NOT_RUN}."]


def _draw_paths(runs: Runs, measured: list[Any]) -> Figure:
    figure = style.figure(9, 3.6)
    for kind, ax in zip(("weight", "bias"), figure.subplots(1, 2), strict=True):
        style.dress(ax, xlabel="optimizer step", ylabel=f"value of the {kind}")
        for record in measured:
            path = record.measures["path"]
            values, steps = (np.array(path[n], np.float64) for n in (kind, "step"))
            color = style.look(record.arm).color
            ax.plot(steps, values, color=color, lw=0.5, alpha=0.45)
            average = np.full(n := max(3, int(_WINDOW * len(values))), 1 / n)
            smooth, middle = (
                np.convolve(series, average, mode="valid") for series in (values, steps)
            )
            label = runs.study.arm(record.arm).label
            ax.plot(middle, smooth, color=color, lw=1.8, label=label)
    style.legend(figure)
    return figure


def _curves(runs: Runs) -> list[Block]:
    arms = [arm.name for arm in runs.study.arms]
    return [figures.curves(runs, model, arms, control=CONTROL) for model in runs.models]
