"""The report of all methods on one network: curves, and how rates were chosen."""

import dataclasses

import polars as pl

from experiments import figures, lengths, markdown
from experiments import table as tables
from experiments.reports import Report, ReportBlock
from experiments.reports.tried_rates import is_tuning, sensitivity
from experiments.studies.head_to_head import (
    CONSTANT,
    METHODS,
    NOOP,
    RATES,
    SGD,
    SHORTER,
)
from experiments.study import Arm, Comparison
from experiments.table import Metric, Table

c = pl.col

_RATES = (
    "The rate of SGD warms up and falls to 0 by half a cosine; that of the average "
    "warms up and stays. Amplification follows its paper's strategy: the rate is "
    "divided by ten after two thirds of the epochs, and layers are amplified in the "
    "middle. Peak rates ({chosen}) are the best of those of {rates} that have run at "
    "scale tune, where not every method has run at all of them, by the validation loss "
    "of a seed that is not reported. The other methods train at the "
    "rate of their base. *Matched rate of* a method: the base at that rate times how "
    "much further the method moves on steady updates. Before each evaluation batch "
    "statistics are computed again, "
    "for all arms in the same way."
)
_LENGTHS = (
    "One run at a constant rate is read out at the lengths of runs whose rate decayed "
    "to 0, each trained for its length at the best of its tried rates; the constant "
    "rate is the one that is best at the end. Losses are those of the epoch, on both "
    "sides."
)
METRIC = Metric("loss", "validation loss", "nats", 4, c("loss"))
_ARMS = {"one": "average of one run", "last": "last parameters of that run"}
# As many arms as a panel takes, next to the control.
_DRAWN = ("plp", "lookahead", "constant", "noise")
# As in Figures 3 and 4 of the PLP paper.
_ALONE = (SGD, "plp", "plp-matched", CONSTANT)


def _sections(table: Table) -> list[ReportBlock]:
    """Curves by epoch, and rates; at scale tune losses by rate."""
    if is_tuning(table):
        methods = METHODS | SHORTER
        return ["## Sensitivity to the learning rate", sensitivity(table, methods)]
    chosen = ", ".join(
        f"{method.label} {method.rate:g}"
        for name, method in (METHODS | SHORTER).items()
        if method.rates and name in set(table.runs["arm"])
    )
    amplified = [name for name, method in METHODS.items() if method.base == NOOP]
    return [
        *_anytime(table),
        "## Curves",
        *(figures.runs(table, model, _ALONE) for model in table.models),
        *(
            figures.curves(table, model, arms, control)
            for model in table.models
            for arms, control in ((_DRAWN, SGD), (amplified, NOOP))
        ),
        "## Chosen rates",
        _RATES.format(chosen=chosen, rates=", ".join(map(str, RATES))),
    ]


def at_lengths(table: Table) -> Table:
    """The losses of one averaged run and of decays, whose setups are lengths."""
    last = c("epoch") == c("epoch").max().over(tables.KEYS)
    found = table.epochs.filter(~c("diverged"))
    decays = found.filter(c("arm").is_in([SGD, *SHORTER]), last)
    read = found.filter(c("arm") == CONSTANT).join(
        decays.select("model", "seed", "epoch"), on=["model", "seed", "epoch"]
    )
    runs = pl.concat(
        rows.select(
            "epoch",
            model=pl.format("{}, {} epochs", "model", "epoch"),
            arm=pl.lit(name),
            seed="seed",
            diverged="diverged",
            loss=loss,
        )
        for name, rows, loss in (
            ("decay", decays, "validation_loss"),
            ("one", read, "average_validation_loss"),
            ("last", read, "validation_loss"),
        )
    ).sort("epoch", maintain_order=True)
    arms = tuple(Arm(n, label, {}) for n, label in ({"decay": "decay"} | _ARMS).items())
    study = dataclasses.replace(
        table.study,
        arms=arms,
        extra_comparisons=tuple(Comparison(name, "decay") for name in _ARMS),
    )
    return Table(study, (), runs, runs, tuple(dict.fromkeys(runs["model"])))


def _anytime(table: Table) -> list[ReportBlock]:
    """The average of a run in its middle, next to decays for that length."""
    if not {CONSTANT, *SHORTER} <= set(table.runs["arm"]):
        return []
    own = at_lengths(table)
    found = tables.compare(own, [METRIC])
    controls = tuple(Comparison("one", control) for control in ("decay", "last"))
    study = dataclasses.replace(own.study, extra_comparisons=controls)
    both = tables.compare(dataclasses.replace(own, study=study), [METRIC])
    return [
        "## One run read out at every length",
        _LENGTHS,
        *(
            figures.anytime(found, model, "epochs", "validation loss", _ARMS)
            for model in table.models
        ),
        *lengths.write(own, lengths.saved(own, both, "one")),
        *markdown.comparisons(own, found, [METRIC]),
        *markdown.results(own, [METRIC]),
    ]


REPORT = Report(_sections)
