"""The sections that every report has."""

from collections.abc import Sequence

from experiments import figures, tables
from experiments.figures import Interval
from experiments.page import Block, Picture, Section, Table
from experiments.pairing import Metric
from experiments.reports.comparisons import Compared, metrics
from experiments.reports.conclusions import conclusions, times
from experiments.reports.runs import Runs
from experiments.statistics import PairedDifference


def sections(
    runs: Runs,
    found: Sequence[Compared],
    heading: str = "Conclusions",
    own: Sequence[Section] = (),
) -> list[Section]:
    """The sections of comparisons, which every report has.

    Args:
      runs: The study's runs.
      found: Its comparisons.
      heading: Of the section of sentences.
      own: The report's own sections, between sentences and numbers.
    """
    sentences = Section(heading, [*conclusions(runs, found), *_forests(runs, found)])
    numbers: list[Block] = [
        *tables.results(runs),
        *(_table(runs, found, metric) for metric in metrics(found)),
    ]
    found_times = times(runs, found)
    return [
        sentences,
        *own,
        Section("All numbers", numbers),
        *([Section("Epochs to a target accuracy", found_times)] if found_times else []),
    ]


def _table(runs: Runs, found: Sequence[Compared], metric: Metric) -> Table:
    """All comparisons in a metric."""
    digits = 2 if metric.unit == "points" else 4
    rows = []
    for c in found:
        d = c.differences[metric]
        labels = [
            runs.study.arm(name).label
            for name in (c.comparison.arm, c.comparison.control)
        ]
        if not d.n:
            rows.append([c.model, *labels, _absence(runs, c), *[tables.NONE] * 5])
            continue
        rows.append(
            [
                *(c.model, *labels, _seeds(d), tables.signed(d.mean, digits)),
                tables.interval(d.interval, digits),
                f"{d.wins} / {d.ties} / {d.losses}",
                *(tables.number(p, 3) for p in (d.p, d.corrected_p)),
            ]
        )
    better = "higher" if metric.higher_is_better else "lower"
    return Table(
        f"Paired differences in {metric.label} ({metric.unit})",
        [
            *("network", "arm", "minus control", "seeds", "difference"),
            *("95 % interval", "better / tied / worse", "p", "corrected p"),
        ],
        rows,
        note=f"Arm minus control on the same seeds; {better} is better. p: Wilcoxon's "
        f"signed-rank test, two-sided, and corrected over all differences of this "
        f"report (Benjamini-Hochberg).",
        left=3,
    )


def _forests(runs: Runs, found: Sequence[Compared]) -> list[Picture]:
    """Comparisons as dots on their intervals: a picture for each network.

    Arms that were not run are left out; text and tables name them.
    """
    pictures = []
    found = [c for c in found if runs.of(c.model, c.comparison.arm)]
    for model in dict.fromkeys(c.model for c in found):
        columns = {}
        for metric in metrics(found):
            side = "right" if metric.higher_is_better else "left"
            xlabel = f"difference in {metric.label}\n({metric.unit}; better: {side})"
            columns[xlabel] = [
                _row(runs, c, c.differences[metric]) for c in found if c.model == model
            ]
        pictures.append(
            Picture(
                f"differences-{model}",
                figures.forest(columns),
                f"{model}: arm minus control on the same seeds, mean and 95 % "
                f"interval; an open marker where one seed leaves no interval.",
            )
        )
    return pictures


def _row(runs: Runs, c: Compared, d: PairedDifference) -> Interval:
    arm, control = (
        runs.study.arm(name).label for name in (c.comparison.arm, c.comparison.control)
    )
    return Interval(
        group=arm,
        label=f"minus {control}",
        arm=c.comparison.arm,
        value=d.mean if d.n else None,
        interval=d.interval,
        remark=_absence(runs, c),
    )


def _seeds(d: PairedDifference) -> str:
    diverged = sum(d.diverged)
    return f"{d.n}" + (f", {diverged} diverged" if diverged else "")


def _absence(runs: Runs, c: Compared) -> str:
    if absence := runs.absence(c.model, c.comparison.arm):
        return absence
    if absence := runs.absence(c.model, c.comparison.control):
        return f"control {absence}"
    return "no seed in common"
