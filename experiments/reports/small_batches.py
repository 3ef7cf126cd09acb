"""The report of small batches: losses by learning rate, chosen rates."""

import polars as pl

from experiments import figures, markdown
from experiments import table as tables
from experiments.reports import Report, ReportBlock
from experiments.reports.tried_rates import rates_and_drift
from experiments.table import Metric, Table

c = pl.col
_METHOD = (
    "*characters*: a transformer of two layers and width 32 on the text of Python's "
    "`help()`, AdamW. The rate warms up and falls to a tenth of its peak by half a "
    "cosine, to 0 (*rate to 0*), or not at all (*constant rate*). Each method has its "
    "peak rate chosen on a grid over two decades, by the mean of the last losses of "
    "seeds that are not reported; the grid is continued where the best rate is at its "
    "edge. A seed sets the start and the batches, so that arms are paired. *Matched "
    "rate of* a method: the base at that method's rate times its drift, at each step, "
    "where the drift follows a schedule; for Anderson acceleration, times the ratio of "
    "the lengths of all emitted updates and of what the base would have emitted "
    "there. The extrapolation of EMA-Nesterov falls from 0.5 to 0; on the *published "
    "schedule* it is 0.6 times the learning rate over its peak from 16 to 76 % of the "
    "steps, and 0 before and after (record 39 of modded-nanogpt's track 3). Averages "
    "of the tail are over the last quarter of the steps. Of GPA, schedule-free, BEMA "
    "and PACE the average is evaluated. GPA averages as DiLoCo with four inner steps "
    "would (0.974). PACE has an AdamW of its own with the same settings. *Without "
    "momentum* AdamW has no first moment, as in schedule-free, where an average takes "
    "its place. BEMA corrects an average over about "
    "the last 20 steps, from the start of the run or of its last quarter."
)
METRICS = (Metric("loss", "last loss on held-out data", "nats", 4, c("loss")),)


# Those that are drawn in colour, and the base that is subtracted: the first that ran.
_BASES = ("base", "muon")
_DRAWN = ("b1-0.5", "plain-gpa", "b1-0.5-tail", "lookahead", "muon-ema", "muon-tail")


def _sections(table: Table) -> list[ReportBlock]:
    """Sensitivity to the rate, and chosen rates."""
    losses = means(table).rename({"arm": "method", "loss": "value"})
    base = next((b for b in _BASES if b in set(losses["method"])), _BASES[0])
    return [
        "## Sensitivity to the learning rate",
        _METHOD,
        *(
            figures.sensitivity(
                losses.filter(c("model") == model), table.labels, base, _DRAWN, model
            )
            for model in table.models
        ),
        _forgiving(table),
        "## Chosen rates",
        rates_and_drift(
            table,
            "setup",
            "A matched rate's row has the rate and the drift of its method; the mean "
            "drift, where it follows a schedule.",
        ),
    ]


def means(table: Table) -> pl.DataFrame:
    """Mean last losses of the tuning by rate; null where a run diverged."""
    found = table.long(finished=False, rates=pl.Float64, losses=pl.List(pl.Float64))
    mean = pl.when((c("losses") >= 0).all()).then(c("losses").mean())
    return (
        found.filter(tables.is_first_seed())
        .explode("losses")
        .group_by(*tables.ARM, rate="rates", maintain_order=True)
        .agg(loss=mean)
    )


def _forgiving(table: Table) -> str:
    """How much is lost at a wrong rate."""
    best = c("loss").arg_min()
    factors = {"1/10": 1 / 10, "1/3": 1 / 3, "3": 3.0, "10": 10.0}

    def lost(factor: float) -> pl.Expr:
        away = (c("rate") / c("rate").get(best) / factor).log().abs()
        difference = c("loss").get(away.arg_min()) - c("loss").min()
        return pl.when(away.min() < 0.2).then(difference)

    rows = (
        means(table)
        .group_by(tables.ARM, maintain_order=True)
        .agg(
            best=c("loss").min(),
            **{f"rate x {name}": lost(factor) for name, factor in factors.items()},
        )
    )
    return markdown.write(
        "Loss at a wrong learning rate, minus loss at the best (nats)",
        table.named(rows),
        {
            **{"model": "setup", "arm": "method", "best": ("best", 3)},
            **{n: (n, lambda x: markdown.signed(x, 3)) for n in rows.columns[3:]},
        },
        note="Means of the tuning seeds, at the rate of the grid that is nearest. A "
        "dash: not on the grid, or a run diverged.",
        left=2,
    )


REPORT = Report(_sections, METRICS)
