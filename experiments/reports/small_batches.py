"""The report of small batches: verdicts, losses by learning rate, chosen rates."""

from collections.abc import Sequence

import numpy as np

from experiments import style, tables
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.reports.verdicts import verdicts
from experiments.runs import Runs

_METHOD = (
    "*characters*: a transformer of two layers and width 32 on the text of Python's "
    "`help()`, AdamW. The rate warms up and falls to a tenth of its peak by half a "
    "cosine, to 0 (*rate to 0*), or not at all (*constant rate*). Each method has its "
    "peak rate chosen on a grid over two decades, by the mean of the last losses of "
    "seeds that are not reported; the grid is continued where the best rate is at its "
    "edge. A seed sets the start and the batches, so that arms are paired. *At the "
    "rate of* a method: the base at that method's rate times its drift, at each step, "
    "where the drift follows a schedule; for the adaptive window, times the ratio of "
    "the lengths of all emitted updates and of what the base would have emitted "
    "there. The extrapolation of EMA-Nesterov falls from 0.5 to 0; on the *published "
    "schedule* it is 0.6 times the learning rate over its peak from 16 to 76 % of the "
    "steps, and 0 before and after (record 39 of modded-nanogpt's track 3). Averages "
    "of the tail are over the last quarter of the steps."
)
METRICS = (
    Metric(
        "loss",
        "last loss on held-out data",
        "nats",
        False,
        4,
        lambda record, _: record.result.get("loss"),
    ),
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Verdicts, sensitivity, chosen rates."""
    study = runs.study
    return [
        "## Who is ahead where",
        _METHOD,
        verdicts(
            runs,
            found,
            {"": METRICS[0]},
            {
                "against the tuned base": lambda arm: study.arm(arm).baseline,
                "against the base at the matched rate": (
                    lambda arm: study.arm(arm).matched
                ),
            },
            lambda c: f"{c.difference.mean:+.3f}",
        ),
        "## Sensitivity to the learning rate",
        _sensitivity(runs),
        _forgiving(runs),
        "## Chosen rates",
        _chosen(runs),
    ]


def _methods(runs: Runs) -> list[str]:
    """The arms that are no matched rates."""
    return [arm.name for arm in runs.study.arms if not arm.name.endswith("-matched")]


def _grid(runs: Runs, model: str, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Rates, and the last losses by rate and tuning seed; NaN where one diverged."""
    for record in runs.of(model, arm):
        if record.measures:
            losses = np.array(record.measures["losses"], float)
            return np.array(record.measures["rates"]), np.where(
                losses < 0, np.nan, losses
            )
    return np.zeros(0), np.zeros((0, 1))


def _sensitivity(runs: Runs) -> Picture:
    figure = style.figure(
        "Last loss by learning rate, tuning seeds", 3.5 + 4.5 * len(runs.models), 4.6
    )
    axes = figure.subplots(1, len(runs.models), squeeze=False)[0]
    for ax, model in zip(axes, runs.models, strict=True):
        lowest = np.inf
        for arm in _methods(runs):
            rates, losses = _grid(runs, model, arm)
            if not rates.size:
                continue
            look = runs.looks[arm]
            ax.plot(
                *(rates, losses.mean(axis=1)),
                **look._asdict(),
                ms=3.5,
                label=runs.label(arm),
            )
            low, high = losses.min(axis=1), losses.max(axis=1)
            ax.fill_between(rates, low, high, color=look.color, alpha=0.1, lw=0)
            lowest = np.nanmin([lowest, np.nanmin(losses)])
        ax.set_xscale("log")
        ax.set_ylim(lowest - 0.05, lowest + 1.5)
        style.dress(ax, xlabel="peak learning rate", ylabel="loss (nats)", title=model)
    style.legend(figure)
    return Picture(
        "sensitivity",
        figure,
        "Mean of the tuning seeds, and a band from the lowest to the highest. Lines "
        "end where a run diverged.",
    )


def _forgiving(runs: Runs) -> str:
    """How much is lost at a wrong rate."""
    rows = []
    for model in runs.models:
        for arm in _methods(runs):
            rates, losses = _grid(runs, model, arm)
            if not rates.size:
                continue
            means = losses.mean(axis=1)
            best = int(np.nanargmin(means))
            cells = []
            for factor in (1 / 10, 1 / 3, 3, 10):
                place = int(np.abs(np.log(rates / rates[best] / factor)).argmin())
                is_near = abs(np.log(rates[place] / rates[best] / factor)) < 0.2
                lost = means[place] - means[best] if is_near else None
                cells.append(tables.signed(lost, 3))
            rows.append([model, runs.label(arm), f"{means[best]:.3f}", *cells])
    return tables.markdown(
        "Loss at a wrong learning rate, minus loss at the best (nats)",
        ("setup", "method", "best", *(f"rate x {f}" for f in ("1/10", "1/3", 3, 10))),
        rows,
        note="Means of the tuning seeds, at the rate of the grid that is nearest. A "
        "dash: not on the grid, or a run diverged.",
        left=2,
    )


def _chosen(runs: Runs) -> str:
    rows = []
    for model in runs.models:
        for arm in runs.study.arms:
            for record in runs.finished(model, arm.name)[:1]:
                r = record.result
                rows.append(
                    [
                        *(model, arm.label, runs.count(model, arm.name)),
                        *(f"{r['learning_rate']:.3g}", f"{r['drift']:.2f}"),
                    ]
                )
    return tables.markdown(
        "Rates and drift",
        ("setup", "arm", "runs", "learning rate", "drift"),
        rows,
        note="A matched rate's row has the rate and the drift of its method; the mean "
        "drift, where it follows a schedule.",
        left=2,
    )
