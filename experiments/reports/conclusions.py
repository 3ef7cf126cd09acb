"""What follows from a study's comparisons, in sentences."""

from collections.abc import Sequence

from experiments.page import Block, Bullets
from experiments.pairing import Metric
from experiments.reports.comparisons import Compared, metrics
from experiments.reports.runs import NOT_RUN, Runs, history
from experiments.sentences import conclusion, target_conclusion


def conclusions(runs: Runs, found: Sequence[Compared]) -> list[Block]:
    """What follows from the numbers: a tally, then a sentence for each arm."""
    blocks: list[Block] = [_tally(found, metric) for metric in metrics(found)]
    for model in dict.fromkeys(c.model for c in found):
        by_arm: dict[str, list[Compared]] = {}
        for c in found:
            if c.model == model:
                by_arm.setdefault(c.comparison.arm, []).append(c)
        for metric in metrics(found):
            sentences = [
                _sentence(runs, of_arm, metric)
                for arm, of_arm in by_arm.items()
                if runs.of(model, arm)
            ]
            blocks.append(Bullets(f"{model}, {metric.label}", sentences))
        missing = [arm for arm in by_arm if not runs.of(model, arm)]
        if missing:
            labels = "; ".join(runs.study.arm(arm).label for arm in missing)
            blocks.append(f"{model}, {NOT_RUN}: {labels}.")
    return blocks


def _tally(found: Sequence[Compared], metric: Metric) -> str:
    every = [c.differences[metric] for c in found]
    differences = [d for d in every if d.interval is not None]
    if not differences:
        return f"No comparison in {metric.label} has two seeds or more."
    sure, unsure = (
        [d.verdict for d in differences if d.is_confirmed is confirmed]
        for confirmed in (True, False)
    )
    equal = sure.count(0) + unsure.count(0)
    rest = len(every) - len(differences)
    return (
        f"Of {len(differences)} comparisons in {metric.label} the arm beats its "
        f"control in {sure.count(1)} and loses in {sure.count(-1)}; by its interval "
        f"alone it is ahead in {unsure.count(1)} and behind in {unsure.count(-1)}; in "
        f"{equal} the two cannot be told apart."
        + (f" {rest} more have fewer than two seeds." if rest else "")
    )


def _sentence(runs: Runs, of_arm: Sequence[Compared], metric: Metric) -> str:
    """What is said of an arm and all of its controls."""
    model, arm = of_arm[0].model, of_arm[0].comparison.arm
    label = runs.study.arm(arm).label
    if absence := runs.absence(model, arm):
        return f"{label}: {absence}."
    controls = {c.comparison.control: c.differences[metric] for c in of_arm}
    absent = [name for name in controls if runs.absence(model, name)]
    remarks = [
        f"{runs.study.arm(name).label}, its control: {runs.absence(model, name)}."
        for name in absent
    ]
    present = [name for name in controls if name not in absent]
    if not present:
        return " ".join([f"{label} ran.", *remarks])
    plain, matched = _roles(runs, model, present)
    differences = [
        (runs.study.arm(name).label, controls[name])
        for name in dict.fromkeys((plain, *present))
    ]
    raised = runs.study.arm(matched).label if matched else None
    return " ".join([conclusion(label, differences, metric, raised), *remarks])


def _roles(runs: Runs, model: str, controls: Sequence[str]) -> tuple[str, str | None]:
    """The plain control, and the control at a higher rate that matches the arm's.

    ``matched-adam`` is ``adam`` at the matched rate, ``matched-4`` the first control.
    """
    plain = [name for name in controls if not name.startswith("matched")]
    matched = [name for name in controls if name.startswith("matched")]
    if not plain or not matched:
        return controls[0], None
    base = matched[0].removeprefix("matched-")
    chosen = base if base in plain else plain[0]
    rates = [
        history(runs.finished(model, name)[0], "learning_rate").mean()
        for name in (chosen, matched[0])
    ]
    return chosen, matched[0] if rates[0] < rates[1] else None


def times(runs: Runs, found: Sequence[Compared]) -> list[Block]:
    """How soon arms reach a target accuracy, a sentence for each comparison."""
    blocks: list[Block] = []
    for model in dict.fromkeys(c.model for c in found):
        sentences = []
        for c in found:
            if c.model == model and c.time is not None and c.time.n:
                arm = runs.study.arm(c.comparison.arm).label
                control = runs.study.arm(c.comparison.control).label
                sentences.append(target_conclusion(arm, control, c.time))
        if sentences:
            blocks.append(Bullets(model, sentences))
    return blocks
