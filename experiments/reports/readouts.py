"""The report of read-outs: averages of a run, and decays tuned for each horizon."""

import dataclasses

import polars as pl

from experiments import figures, forests, lengths, markdown
from experiments import table as tables
from experiments.reports import Report, ReportBlock
from experiments.studies.readouts import CHOICE_SEEDS, FALLING
from experiments.study import Arm, Comparison
from experiments.table import Metric, Table

c = pl.col
METRICS = (Metric("loss", "loss on held-out data", "nats", 4, c("loss")),)
ANYTIME = "power-16"
# The arms of its picture.
_ANYTIME = {
    "one": "average of one run",
    "last": "last parameters, tuned rate",
    FALLING: "average of one run, rate falling as 1/sqrt(step)",
}
_METHOD = (
    "Each run has a constant learning rate after a warm-up. Read-outs and decays of a "
    "horizon share its trajectory, so that all differences are within a run. The "
    "settings of an arm (learning rate; momentum, if several were tried; shape and "
    "length of the decay, exponent, window) are those with the lowest mean loss on "
    "three seeds and one half of the held-out data, **for each horizon**; losses are "
    "of the other seeds and the other half. *One run*: the power average with exponent "
    "16 at the learning rate and momentum that are best at the longest horizon, read "
    "out of the same run at all horizons; *decay of its rate* starts from that run. "
    "*Merged* are means of the parameters over blocks of an 80th of the run; "
    "*checkpoints* are the parameters at the blocks' ends in their place. "
    "*Extrapolated* is the point beyond the last of two consecutive averages; its "
    "matched control is the best plain window, *merged*. *Blended* is 0.7 times a "
    "decayed run and 0.3 times its power average."
)
_FALLING = (
    " *Falling rate*: the rate of that run falls as one over the square root of the "
    "step, whatever the horizon; its peak is the best at the longest one."
)
_BEMA = (
    " *BEMA* is an exponential average, corrected from the start of the run; its "
    "control is an EMA without a correction."
)
# By the first word of a read-out's name: label, and what it is compared with.
_ARMS = {
    "decay": ("decay, tuned", ()),
    "own": ("decay of its rate", ()),
    "last": ("last parameters, tuned rate", ("decay",)),
    "one": ("power average, one run", ("decay", "own", "last")),
    FALLING: ("power average, one run, falling rate", ("decay", "one")),
    "power": ("power average, tuned", ("decay",)),
    "merge": ("merged blocks, tuned", ("decay",)),
    "raw": ("merged checkpoints, tuned", ("decay", "merge")),
    "ema": ("EMA, tuned", ("decay",)),
    "bema": ("BEMA, tuned", ("decay", "ema")),
    "extrapolated": ("extrapolated averages, tuned", ("decay", "merge")),
    "blend": ("decay blended with its average, tuned", ("decay",)),
}


def losses(table: Table) -> pl.DataFrame:
    """All losses: the columns of runs, ``step``, ``kind``, ``readout``, both losses.

    Without read-outs that some arms of a task do not have, as in older records: all
    kinds are chosen from the same arms. Runs whose rate falls are of a kind of their
    own.
    """
    falls = c("arm").str.ends_with(FALLING)
    found = table.epochs.filter(
        ~c("diverged"), ~falls | (c("readout") == ANYTIME)
    ).with_columns(
        kind=pl.when(falls).then(pl.lit(FALLING))
        .otherwise(c("readout").str.split("-").list.first())
    )  # fmt: skip
    own: list[str | pl.Expr] = ["model", falls]
    of_task = c("arm").n_unique().over(own)
    return found.filter(c("arm").n_unique().over(*own, "readout") == of_task)


def choices(table: Table) -> pl.DataFrame:
    """Mean losses by which settings are chosen, with the number of ``seeds``."""
    return (
        losses(table)
        .filter(c("seed").is_in(CHOICE_SEEDS))
        .group_by("model", "step", "kind", "arm", "readout", maintain_order=True)
        .agg(c("choice").mean(), seeds=c("seed").n_unique())
    )


def chosen(table: Table) -> pl.DataFrame:
    """The settings of each kind of read-out, by ``model`` and ``step``.

    Among those that all choosing seeds have.
    """
    means = choices(table).filter(c("seeds") == c("seeds").max().over("model"))
    setting = ["arm", "readout"]
    best = (
        means.filter(c("kind") != FALLING)
        .sort("choice", maintain_order=True)
        .group_by("model", "step", "kind", maintain_order=True)
        .agg(c(setting).first())
    )
    anytime = means.filter(c("readout") == ANYTIME).with_columns(
        c("kind").replace("power", "one")
    )
    last = anytime.filter(c("step") == c("step").max().over("model"))
    rate = last.sort("choice").group_by("model", "kind").agg(c("arm").first())
    one = anytime.join(rate, on=["model", "kind", "arm"])
    of_one = rate.filter(c("kind") == "one").select("model", "arm")
    own = (
        means.filter(c("kind") == "decay")
        .join(of_one, on=["model", "arm"])
        .sort("choice", maintain_order=True)
        .group_by("model", "step", "arm", maintain_order=True)
        .agg(c("readout").first(), kind=pl.lit("own"))
    )
    columns = ["model", "step", "kind", *setting]
    return pl.concat([found.select(columns) for found in (best, one, own)])


def compared(table: Table) -> Table:
    """The reported losses as a study of its own, whose setups are task and horizon.

    The arms of the study itself are learning rates, and not compared.
    """
    of = ["model", "step", "arm", "readout"]
    found = losses(table).filter(~c("seed").is_in(CHOICE_SEEDS))
    rows = found.drop("kind").join(chosen(table), on=of)
    steps = sorted(rows["step"].unique())
    place = pl.format("{}, {} steps", "model", "step")
    runs = rows.select(
        model=place, arm="kind", seed="seed", diverged=pl.lit(False), loss="loss"
    )
    # Older records have fewer kinds.
    kinds = [name for name in _ARMS if name in set(rows["kind"])]
    arms = tuple(Arm(name, _ARMS[name][0], {}) for name in kinds)
    pairs = tuple(
        Comparison(name, control)
        for name in kinds
        for control in _ARMS[name][1]
        if control in kinds
    )
    study = dataclasses.replace(table.study, arms=arms, extra_comparisons=pairs)
    models = [f"{model}, {step} steps" for model in table.models for step in steps]
    ran = set(runs["model"])
    return Table(study, (), runs, runs, tuple(m for m in models if m in ran))


def _results(table: Table) -> list[ReportBlock]:
    """Comparisons and losses of read-outs, for the runs of the reported seeds."""
    if table.runs.filter(~c("seed").is_in(CHOICE_SEEDS)).is_empty():
        return ["Only the seeds that choose settings have run."]
    own = compared(table)
    found = tables.compare(own, METRICS)
    kinds = {arm.name for arm in own.study.arms}
    return [
        _METHOD + (FALLING in kinds) * _FALLING + ("bema" in kinds) * _BEMA,
        *forests.draw(own, found, METRICS[0]),
        *markdown.comparisons(own, found, METRICS),
        *markdown.results(own, METRICS),
    ]


def _sections(table: Table) -> list[ReportBlock]:
    """The anytime figure, differences in steps, settings, losses of all rates."""
    own = compared(table)
    found = tables.compare(own, METRICS)
    return [
        "## One run read out at every horizon",
        *(
            figures.anytime(found, model, "steps", "held-out loss", _ANYTIME)
            for model in table.models
        ),
        *lengths.write(own, lengths.saved(own, found, "one")),
        "## Chosen settings",
        _settings(table),
        *rates(table),
    ]


def _settings(table: Table) -> str:
    labels = {name: label for name, (label, _) in _ARMS.items()}
    rows = chosen(table).sort(
        c("model"), c("kind").cast(pl.Enum([*_ARMS])), "step", maintain_order=True
    )
    frame = rows.select(
        c("model").alias("task"),
        c("kind").replace(labels).alias("arm"),
        c("step").cast(pl.String).alias("steps"),
        c("arm").replace(table.labels).alias("learning rate"),
        c("readout").alias("read-out"),
    )
    return markdown.write(
        "Settings with the lowest loss on the choosing seeds", frame, left=5
    )


def rates(table: Table) -> list[str]:
    """What each rate costs at the longest horizon."""
    longest = c("step") == c("step").max().over("model")
    means = (
        choices(table)
        .filter(longest, c("kind") != FALLING)
        .with_columns(is_whole=c("seeds") == c("seeds").max().over("model"))
    )
    kinds = (c("kind") == "last", c("readout") == ANYTIME, c("kind") == "decay")
    rows = []
    of = ["model", "step", "arm"]
    for (model, step, arm), found in means.group_by(of, maintain_order=True):
        cells = []
        for kind in kinds:
            best = found.filter(kind).sort("choice").head(1)
            text = "".join(map(markdown.number, best["choice"]))
            cells.append(text if best["is_whole"].all() else f"({text})")
        rows.append((model, str(step), table.labels[str(arm)], *cells))
    if not rows:
        return []
    names = ["task", "steps", "learning rate", "last", "average", "decay"]
    text = markdown.write(
        "Loss by learning rate, on the seeds and the half that choose settings (nats)",
        pl.DataFrame(rows, schema=names, orient="row"),
        note="The average is the power average with exponent 16, the decay the lowest "
        "mean of all shapes and lengths. In brackets, if any: of fewer seeds.",
        left=3,
    )
    return [text]


REPORT = Report(_sections, METRICS, _results, compared)
