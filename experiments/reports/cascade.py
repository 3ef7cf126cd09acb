"""The report of deep cascade learning: memory, operations, and gradients by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

from experiments import comparisons, style, tables
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.records import Record
from experiments.runs import Runs, history
from experiments.studies.cascade import AMPLIFIED, END_TO_END
from training.run.plots import by_depth

_PUBLISHED = (
    "The authors' accuracies on CIFAR-10, with a network of six convolutions: about "
    "85.5 % by the cascade and 87.8 % end to end. Ours end to end has the network's "
    "own linear head, and the cascades a larger one."
)
_COSTS = (
    "Of the training function, as compiled: held are its arguments and results (state "
    "and images), temporary what it needs besides, both of the stage that needs most. "
    "Operations are floating-point operations of all training steps, by XLA's count; "
    "evaluations are left out. Parameters are those of the last stage's network."
)
_GRADIENTS = (
    "Norm of the gradient of each kernel after the first step, halfway and at the end "
    "of its training, of the first seed. In a cascade every layer is measured in the "
    "stage that trains it, and heads are left out."
)


def operations(record: Record) -> np.ndarray | None:
    """Operations of training until the end of each epoch: ``[epochs]``."""
    costs = [stage.get("operations") for stage in _measured(record)]
    if not costs or None in costs or not record.history:
        return None
    stage = [m.get("stage", 1) - 1 for m in record.history]
    steps = np.diff(history(record, "step"), prepend=0)
    return np.cumsum(steps * np.array(costs)[stage])


def _to_target(record: Record, controls: Sequence[Record]) -> float | None:
    spent, target = operations(record), comparisons.target_accuracy(controls)
    if spent is None or target is None:
        return None
    until = comparisons.epochs_to(record, target)
    return float(np.append(spent, spent[-1])[until - 1]) / 1e9


def _measured(record: Record) -> list[dict[str, Any]]:
    """What was measured of each stage; nothing of a run that did not begin."""
    stages: list[dict[str, Any]] = record.measures.get("stages", [])
    return stages


METRICS = (
    *comparisons.METRICS[:2],  # accuracy and loss
    Metric(
        "operations_to_target",
        "operations to target",
        "GFLOP",
        False,
        1,
        _to_target,
        f"Until the validation accuracy first reaches {100 * comparisons.TARGET:.0f} % "
        f"of the mean best one of the control's runs, in whatever stage. A run that "
        f"never does counts with all its operations.",
    ),
    comparisons.SECONDS_TO_TARGET,
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Costs, curves over operations, and gradients by layer."""
    del found
    return [
        _PUBLISHED,
        "## Memory and operations",
        _costs(runs),
        *(_curves(runs, model) for model in runs.models),
        "## Gradients by layer",
        *(_gradients(runs, model) for model in runs.models),
        *(_stages(runs, model) for model in runs.models),
    ]


def _costs(runs: Runs) -> str | None:
    rows = []
    for model in runs.models:
        for arm in runs.study.arms:
            finished = runs.finished(model, arm.name)
            stages = _measured(finished[0]) if finished else []
            if not stages:
                continue
            spent = operations(finished[0])
            seconds = [r.result["train_seconds"] for r in finished]
            rows.append(
                [
                    *(model, arm.label, str(len(stages))),
                    f"{finished[0].result['parameters']:,}",
                    *(
                        tables.number(max(s[name] for s in stages) / 1e6, 2)
                        for name in ("held", "temporary")
                    ),
                    tables.NONE if spent is None else f"{spent[-1] / 1e9:,.1f}",
                    tables.spread(np.array(seconds), 1),
                ]
            )
    if not rows:
        return None
    return tables.markdown(
        f"Costs, {tables.join(runs.datasets)}",
        [
            *("network", "arm", "stages", "parameters", "held (MB)"),
            *("temporary (MB)", "operations (GFLOP)", "training (s)"),
        ],
        rows,
        note=_COSTS,
        left=2,
    )


def _stages(runs: Runs, model: str) -> str | None:
    """The cost and the result of each stage of the cascades, of the first seed."""
    rows = []
    for arm in runs.study.arms:
        for record in runs.finished(model, arm.name)[:1]:
            lines: list[Mapping[str, Any]] = record.result.get("stages", [])
            for line, cost in zip(lines, _measured(record), strict=False):
                spent = cost["operations"]
                rows.append(
                    [
                        *(arm.label, line["block"]),
                        tables.number(cost["temporary"] / 1e6, 2),
                        tables.NONE if spent is None else f"{spent / 1e6:,.1f}",
                        tables.number(100 * line["test_accuracy"], 2),
                    ]
                )
    if not rows:
        return None
    return tables.markdown(
        f"Stages, {runs.place(model)}, first seed",
        ["arm", "block", "temporary (MB)", "MFLOP a step", "test accuracy (%)"],
        rows,
        left=2,
    )


def _curves(runs: Runs, model: str) -> Picture | None:
    """Validation accuracy over the operations spent."""
    figure = style.figure(
        f"Validation accuracy over operations, {runs.place(model)}", 8, 4.4
    )
    ax = figure.subplots()
    style.dress(ax, xlabel="operations (GFLOP)", ylabel="validation accuracy")
    for arm in runs.study.arms:
        finished = runs.finished(model, arm.name)
        spent = operations(finished[0]) if finished else None
        if spent is not None:
            values = [history(record, "validation_accuracy") for record in finished]
            look = runs.looks[arm.name]
            style.mean_line(ax, spent / 1e9, np.stack(values), look, arm.label)
    style.legend(figure)
    if not ax.lines:
        return None
    return Picture(
        f"operations-{model}",
        figure,
        "Lines are means over the finished runs, bands reach from the lowest to the "
        "highest. A cascade falls back at the beginning of each stage, whose block and "
        "head are new.",
    )


def _gradients(runs: Runs, model: str) -> Picture | None:
    """Norms by layer: end to end, in a cascade, and amplified."""
    first = {
        arm: next((r for r in runs.finished(model, arm) if _courses(r)), None)
        for arm in (END_TO_END, "dense", "conv", AMPLIFIED)
    }
    found = {arm: record for arm, record in first.items() if record is not None}
    if not found:
        return None
    figure = style.figure(
        f"Norm of the gradient by layer, {runs.place(model)}", 3.1 * len(found), 4.8
    )
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    shades = colormaps["viridis"]
    for ax, (arm, record) in zip(axes, found.items(), strict=True):
        courses = _courses(record)
        layers = by_depth(list(courses))
        for part, label in ((0.0, "first step"), (0.5, "halfway"), (1.0, "end")):
            norms = [courses[n][round(part * (len(courses[n]) - 1))] for n in layers]
            color = shades(0.85 * (1 - part))
            ax.plot(layers, norms, color=color, marker="o", ms=3, lw=1.2, label=label)
        style.dress(ax, xlabel="", ylabel="", title=runs.label(arm))
        ax.set_yscale("log")
        ax.tick_params(axis="x", labelrotation=90, labelsize=6)
    axes[0].set_ylabel("norm of the gradient")
    style.legend(figure)
    return Picture(f"gradients-{model}", figure, _GRADIENTS)


def _courses(record: Record) -> dict[str, list[float]]:
    """The norms of each layer in the order of training, without heads."""
    courses: dict[str, list[float]] = {}
    for measured in record.measures.get("gradients", []):
        for layer, norm in measured["norms"].items():
            if not layer.startswith("head"):
                courses.setdefault(layer, []).append(norm)
    return courses
