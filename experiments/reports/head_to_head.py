"""The report of all methods on one network: curves, and how rates were chosen."""

from experiments import figures
from experiments.reports import Report, ReportBlock
from experiments.reports.tried_rates import is_tuning, sensitivity
from experiments.studies.head_to_head import METHODS, NOOP, RATES, SGD
from experiments.table import Table

_RATES = (
    "The rate of SGD warms up and falls to 0 by half a cosine; that of the average "
    "warms up and stays. Amplification follows its paper's strategy: the rate is "
    "divided by ten after two thirds of the epochs, and layers are amplified in the "
    "middle. The peak rate of these three ({chosen}) is one of {rates}, chosen at "
    "scale tune by the validation loss of a seed that is not reported. The other "
    "methods train at the rate of their base. *Matched rate of* a method: the base at "
    "that rate times how much further the method moves on steady updates. Before each "
    "evaluation batch statistics are computed again, "
    "for all arms in the same way."
)
# As many arms as a panel takes, next to the control.
_DRAWN = ("plp", "lookahead", "constant", "noise")


def _sections(table: Table) -> list[ReportBlock]:
    """Curves by epoch, and rates; at scale tune losses by rate."""
    if is_tuning(table):
        return ["## Sensitivity to the learning rate", sensitivity(table, METHODS)]
    chosen = ", ".join(
        f"{method.label} {method.rate:g}" for method in METHODS.values() if method.rates
    )
    amplified = [name for name, method in METHODS.items() if method.base == NOOP]
    return [
        "## Curves",
        *(
            figures.curves(table, model, arms, control)
            for model in table.models
            for arms, control in ((_DRAWN, SGD), (amplified, NOOP))
        ),
        "## Chosen rates",
        _RATES.format(chosen=chosen, rates=", ".join(map(str, RATES))),
    ]


REPORT = Report(_sections)
