"""The report of predictors: who needs fewest gradients where, and at which rates."""

from collections.abc import Sequence

import numpy as np

from experiments import style, tables
from experiments.comparisons import Compared, Metric
from experiments.figures import Picture
from experiments.records import Record
from experiments.reports.verdicts import verdicts
from experiments.runs import Runs

_GAPS = ("coarse", "fine")
_TAUS = np.geomspace(1, 32, 200)
_METHOD = (
    "A full batch in float64. Each method has one learning rate, of seven over two "
    "decades and more where the best is at an edge, and those with momentum one of "
    "five momenta, chosen by the gradients to the fine gap, or else the coarse gap, or "
    "else the last value, on a seed that is not reported. A seed draws the samples, "
    "and the start of the networks. Gaps above the minimum are 1e-3 and 1e-6, of the "
    "PINN 1 and 1e-2 above 0. The minimum is the lowest value of 1,500 steps of "
    "L-BFGS; the tanh network has several, so that a gap there means L-BFGS's. L-BFGS "
    "counts the gradients of its line search. *At the rate of* a method: the base at "
    "that method's learning rate times its drift; where coefficients follow the "
    "updates, drift is the ratio of the lengths of all emitted updates and of what its "
    "base would have emitted there."
)


def _count(record: Record, gap: str) -> float:
    """Gradients to a gap; one that never gets there counts as its last step."""
    return float(record.result.get(f"gradients_{gap}", record.result["steps"]))


METRICS = (
    Metric(
        "gradients_fine",
        "gradients to the fine gap",
        "gradients",
        False,
        0,
        lambda record, _: _count(record, "fine"),
        "A run that never gets there counts as if it did with its last step.",
    ),
    Metric(
        "gradients_coarse",
        "gradients to the coarse gap",
        "gradients",
        False,
        0,
        lambda record, _: _count(record, "coarse"),
        "A run that never gets there counts as if it did with its last step.",
    ),
)


def sections(runs: Runs, found: Sequence[Compared]) -> list[str | Picture | None]:
    """Verdicts, medians, profiles, ratios to Nesterov and L-BFGS, rates."""
    study = runs.study
    return [
        "## Who is ahead where",
        verdicts(
            runs,
            found,
            {metric.name.removeprefix("gradients_"): metric for metric in METRICS},
            {
                "base, tuned": lambda arm: study.arm(arm).baseline,
                "base, matched rate": lambda arm: study.arm(arm).matched,
                "tuned Nesterov": lambda arm: "nesterov",
                "L-BFGS": lambda arm: "lbfgs",
            },
            lambda c: f"{c.difference.mean:+.0f}",
        ),
        "## Who needs fewest gradients",
        _METHOD,
        _medians(runs),
        _profile(runs),
        *(_ratios(runs, control) for control in ("nesterov", "lbfgs")),
        "## Sensitivity to the learning rate",
        _sensitivity(runs),
        "## Chosen rates",
        _chosen(runs),
    ]


def _methods(runs: Runs) -> list[str]:
    """The arms that are no matched rates."""
    return [arm.name for arm in runs.study.arms if not arm.name.endswith("-matched")]


def _models(runs: Runs) -> list[str]:
    """The problems on which every method ran a seed."""
    return [model for model in runs.models if _seeds(runs, model)]


def _seeds(runs: Runs, model: str) -> set[int]:
    """The seeds on which every method ran."""
    seeds = [{r.seed for r in runs.of(model, arm)} for arm in _methods(runs)]
    return set.intersection(*seeds)


def _counts(
    runs: Runs, model: str, arm: str, gap: str, unit: str = "gradients"
) -> np.ndarray:
    """Gradients or seconds to a gap by seed; infinite where it is not reached."""
    seeds = _seeds(runs, model)
    records = [r for r in runs.of(model, arm) if r.seed in seeds]
    return np.array([r.result.get(f"{unit}_{gap}", np.inf) for r in records])


def _medians(runs: Runs) -> Picture:
    arms = _methods(runs)
    columns = [(model, gap) for model in _models(runs) for gap in _GAPS]
    medians = np.array(
        [
            [float(np.median(_counts(runs, m, arm, gap))) for m, gap in columns]
            for arm in arms
        ]
    )
    best = medians.min(axis=0)
    ratios = medians / np.where(np.isfinite(best), best, 1)
    figure = style.figure("Gradients to the gap, median of the seeds", 9, 4.6)
    ax = figure.subplots()
    shown = np.log2(np.clip(np.where(np.isfinite(ratios), ratios, 16), 1, 16))
    ax.imshow(shown, cmap="YlGnBu_r", aspect="auto", vmin=0, vmax=5)
    for (row, column), count in np.ndenumerate(medians):
        is_best = ratios[row, column] == 1
        text = f"{count:.0f}" if np.isfinite(count) else "not reached"
        ax.text(
            *(column, row, text),
            ha="center",
            va="center",
            fontsize=8.5,
            fontweight="bold" if is_best else "normal",
            color="white" if shown[row, column] < 2 else "black",
        )
    ax.set_xticks(range(len(columns)), [f"{m}\n{gap}" for m, gap in columns])
    ax.tick_params(axis="x", labelsize=8)
    ax.set_yticks(range(len(arms)), [runs.label(arm) for arm in arms])
    return Picture(
        "medians",
        figure,
        "Dark: as few as the best of the column, which is bold. Light: 16 times as "
        "many, or never within the steps of the study.",
    )


def _profile(runs: Runs) -> Picture:
    arms = _methods(runs)
    cases = [(model, gap) for model in _models(runs) for gap in _GAPS]
    figure = style.figure("Performance profiles", 9, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, unit in zip(axes, ("gradients", "seconds"), strict=True):
        counts = np.array(
            [
                np.concatenate([_counts(runs, m, arm, gap, unit) for m, gap in cases])
                for arm in arms
            ]
        )
        best = counts.min(axis=0)
        for arm, of_arm in zip(arms, counts, strict=True):
            is_solved = np.isfinite(of_arm)
            look = runs.looks[arm]
            ax.plot(
                _TAUS,
                [float(np.mean(is_solved & (of_arm <= tau * best))) for tau in _TAUS],
                color=look.color,
                ls=look.linestyle,
                label=runs.label(arm),
            )
        ax.set_xscale("log", base=2)
        style.dress(
            ax,
            xlabel=f"{unit} / {unit} of the best",
            ylabel="part of the cases" if unit == "gradients" else "",
        )
    style.legend(figure)
    return Picture(
        "profile",
        figure,
        "The part of the cases (a problem, a gap, a seed) in which a method needs at "
        "most so many times the gradients, or the processor time, of the best one. "
        "Cases that no method solves count as unsolved.",
    )


def _ratios(runs: Runs, control: str) -> str:
    rows = []
    for arm in ("sliding", "revert", "restarted", "restarted-nesterov"):
        cells = []
        for model in _models(runs):
            for gap in _GAPS:
                ours = _counts(runs, model, arm, gap)
                theirs = _counts(runs, model, control, gap)
                solved = np.isfinite(ours) & np.isfinite(theirs)
                if not solved.any():
                    cells.append(tables.NONE)
                    continue
                ratio = np.exp(np.log(ours[solved] / theirs[solved]).mean())
                missing = f" ({solved.sum()} of {solved.size})" * (not solved.all())
                cells.append(f"{ratio:.2f}{missing}")
        rows.append([runs.label(arm), *cells])
    names = [f"{model}, {gap}" for model in _models(runs) for gap in _GAPS]
    return tables.markdown(
        f"Gradients, relative to {runs.label(control)}",
        ("method", *names),
        rows,
        note="Geometric mean of the ratios of the seeds on which both get there.",
    )


def _sensitivity(runs: Runs) -> Picture:
    figure = style.figure(
        "Last gap by learning rate, tuning seed", 3.2 * len(runs.models), 4.2
    )
    axes = figure.subplots(1, len(runs.models), squeeze=False)[0]
    for ax, model in zip(axes, runs.models, strict=True):
        for arm in _methods(runs):
            for record in runs.of(model, arm)[:1]:
                rates, gaps = (
                    np.array(record.measures.get(n, [])) for n in ("rates", "gaps")
                )
                if len(rates) > 1 and arm != "adam":
                    gaps = np.where(gaps < 0, np.nan, np.maximum(gaps, 1e-12))
                    look = runs.looks[arm]
                    ax.plot(
                        *(rates / rates[0], gaps),
                        **look._asdict(),
                        ms=3,
                        label=runs.label(arm),
                    )
        ax.set_ylim(1e-13, 1e3)
        ax.set_xscale("log")
        ax.set_yscale("log")
        style.dress(ax, xlabel="rate / lowest rate", ylabel="gap", title=model)
    style.legend(figure)
    return Picture(
        "sensitivity",
        figure,
        "The gap after the last step, at the best momentum. Lines end where the loss "
        "is no longer finite.",
    )


def _chosen(runs: Runs) -> str:
    rows = []
    for model in runs.models:
        for arm in runs.study.arms:
            for record in runs.finished(model, arm.name)[:1]:
                r = record.result
                seconds = runs.values(model, arm.name, "seconds_fine")
                rows.append(
                    [
                        *(model, arm.label, runs.count(model, arm.name)),
                        *(f"{r['learning_rate']:.3g}", f"{r['momentum']:g}"),
                        f"{r['drift']:.2f}",
                        tables.spread(seconds, 3),
                    ]
                )
    return tables.markdown(
        "Rates, drift, seconds",
        (
            *("problem", "arm", "runs", "learning rate", "momentum", "drift"),
            "seconds to the fine gap",
        ),
        rows,
        note="Drift of a matched rate is that of its method. Seconds are processor "
        "time without compilation.",
        left=2,
    )
