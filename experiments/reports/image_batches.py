"""The report of predictors on images: the choice of rates."""

from experiments import figures
from experiments.reports import Report, ReportBlock
from experiments.reports.tried_rates import is_tuning, losses, sensitivity
from experiments.studies.image_batches import BASE, METHODS, RATES
from experiments.table import Table

_METHOD = (
    "The rate warms up and falls to 0 by half a cosine, or stays (*constant rate*). "
    "The peak rate of each method is one of {rates}, chosen at scale tune by the "
    "mean validation loss of three seeds that are not reported, among the rates near "
    "the best of one seed. *Matched rate "
    "of* a method: the base at that rate times the method's drift ({drifts}); "
    "EMA-Nesterov's is the mean over the run, weighted by the learning rate."
)


def _sections(table: Table) -> list[ReportBlock]:
    """How rates were chosen; at scale tune losses by rate."""
    if is_tuning(table):
        labels = {name: method.label for name, method in METHODS.items()}
        return [
            "## Sensitivity to the learning rate",
            figures.sensitivity(
                losses(table, METHODS),
                labels,
                BASE,
                ("lookahead", "ema", "outer", "constant"),
                table.place(table.models[0]),
            ),
            sensitivity(table, METHODS),
        ]
    rates = ", ".join(map(str, RATES))
    drifts = ", ".join(f"{m.label} {m.drift:.3g}" for m in METHODS.values() if m.drift)
    return ["## Chosen rates", _METHOD.format(rates=rates, drifts=drifts)]


REPORT = Report(_sections)
