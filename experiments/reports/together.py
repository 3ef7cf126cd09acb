"""The report of both methods together."""

from collections.abc import Sequence

from experiments import figures
from experiments.page import Section
from experiments.reports import shared
from experiments.reports.comparisons import Compared
from experiments.reports.runs import Runs


def sections(runs: Runs, found: Sequence[Compared]) -> list[Section]:
    """Curves of all arms; the shared sections hold the rest."""
    arms = [arm.name for arm in runs.study.arms]
    pictures = [
        figures.curves(runs, model, arms, control="sgd") for model in runs.models
    ]
    return shared.sections(runs, found, own=[Section("Curves", pictures)])
