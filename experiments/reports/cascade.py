"""The report of deep cascade learning: memory, operations, and gradients by layer."""

from collections.abc import Sequence

import polars as pl
from matplotlib.ticker import MaxNLocator

from experiments import figures, markdown
from experiments import table as tables
from experiments.figures import Picture
from experiments.reports import Report, ReportBlock
from experiments.studies.cascade import AMPLIFIED, END_TO_END
from experiments.table import ACCURACY, LOSS, SECONDS_TO_TARGET, TARGET, Metric, Table
from training.run import style
from training.run.layer_analysis import by_depth

c = pl.col
_ARMS = (END_TO_END, "dense", "conv", AMPLIFIED)
_COSTS = (
    "Of the training function, as compiled: held are its arguments and results (state "
    "and images), temporary its scratch memory, both of the stage that needs most. "
    "Operations are floating-point operations of all training steps, by XLA's count; "
    "evaluations are left out. Parameters are those of the last stage's network."
)


def stages(table: Table) -> pl.DataFrame:
    """Costs of the stages of finished runs, which count from 1."""
    costs = dict.fromkeys(("operations", "held", "temporary"), pl.Float64)
    found = table.long(stages=pl.Struct(costs)).unnest("stages")
    number = pl.int_range(1, pl.len() + 1).over(tables.KEYS)
    return found.select(*tables.KEYS, *costs, stage=number)


def operations(table: Table) -> pl.DataFrame:
    """The epochs of finished runs with ``spent``: operations until their end."""
    epochs = tables.select(
        table.epochs.filter(~c("diverged")),
        step=c("step"),
        stage=c("stage").fill_null(1).cast(pl.Int64),
        validation_accuracy=c("validation_accuracy"),
    )
    steps = c("step").diff().fill_null(c("step")).over(tables.KEYS)
    return (
        epochs.join(
            stages(table), on=[*tables.KEYS, "stage"], how="left", maintain_order="left"
        )
        .filter(c("operations").is_not_null().all().over(tables.KEYS))
        .with_columns(spent=(steps * c("operations")).cum_sum().over(tables.KEYS))
    )


def _to_target(table: Table) -> pl.DataFrame:
    found = tables.until_target(operations(table), c("spent").last())
    return found.with_columns(c("value") / 1e9)


METRICS = (
    ACCURACY,
    LOSS,
    Metric(
        "operations_to_target",
        "operations to target",
        "GFLOP",
        1,
        _to_target,
        note=f"Until the validation accuracy first reaches {100 * TARGET:.0f} % "
        f"of the mean best one of the control's runs, in whatever stage. A run that "
        f"never does counts with all its operations.",
    ),
    SECONDS_TO_TARGET,
)


def _sections(table: Table) -> list[ReportBlock]:
    """Costs, and gradients by layer."""
    return [
        "## Memory and operations",
        _costs(table),
        "## Gradients by layer",
        *(gradient_picture(table, model, _ARMS) for model in table.models),
    ]


def _costs(table: Table) -> str | None:
    first = stages(table).filter(tables.is_first_seed())
    if not len(first):
        return None
    spent = operations(table).group_by(tables.ARM).agg(c("spent").max() / 1e9)
    rows = (
        first.group_by(tables.ARM, maintain_order=True)
        .agg(pl.len().alias("stages"), c("held", "temporary").max() / 1e6)
        .join(
            table.finished.group_by(tables.ARM).agg(c("parameters").first()),
            on=tables.ARM,
            maintain_order="left",
        )
        .join(spent, on=tables.ARM, how="left", maintain_order="left")
        .join(
            markdown.spreads(table.finished, tables.ARM, {"train_seconds": 1}),
            on=tables.ARM,
            maintain_order="left",
        )
    )
    return markdown.write(
        f"Costs, {markdown.join(table.datasets)}",
        table.named(rows),
        {
            **{"model": "network", "arm": "arm", "stages": "stages"},
            "parameters": ("parameters", "{:,}".format),
            "held": ("held (MB)", 2),
            "temporary": ("temporary (MB)", 2),
            "spent": ("operations (GFLOP)", _thousands),
            "train_seconds": "training (s)",
        },
        note=_COSTS,
        left=2,
    )


def _thousands(value: float | None) -> str:
    return markdown.NONE if value is None else f"{value:,.1f}"


def gradients(table: Table, model: str) -> pl.DataFrame:
    """Norms of the kernels' gradients of the first seed, without heads.

    Returns:
      ``arm``, ``layer``, ``norm``, and ``part``, how far the layer's training was.
    """
    rows = [
        (r.arm, layer, norm)
        for r in table.records
        if r.model == model and not r.diverged
        for moment in r.measures.get("gradients", ())
        for layer, norm in moment["norms"].items()
        if not layer.startswith("head")
    ]
    frame = pl.DataFrame(rows, schema=["arm", "layer", "norm"], orient="row")
    number = pl.int_range(pl.len())
    part = (number / (pl.len() - 1).clip(1)).over("arm", "layer")
    return frame.with_columns(part=part)


def gradient_picture(table: Table, model: str, arms: Sequence[str]) -> Picture | None:
    """Norms by layer, a panel a time, of those of the arms that were measured."""
    found = gradients(table, model)
    arms = [arm for arm in arms if arm in set(found["arm"])]
    if not arms:
        return None
    figure = style.figure(
        f"Do gradients vanish in early layers? {table.place(model)}, one seed", 3.9
    )
    times = {"after the first step": 0.0, "halfway": 0.5, "at the end": 1.0}
    axes = figure.subplots(1, len(times), sharey=True)
    shows = []
    for ax, (time, part) in zip(axes, times.items(), strict=True):
        style.dress(ax, xlabel="layer, from the input", ylabel="", title=time)
        for arm, look, marker in zip(arms, figures.COLORED, "os^v", strict=False):
            near = (c("part") - part).abs()
            at = (
                found.filter(c("arm") == arm)
                .filter(near == near.min().over("layer"))
                .unique("layer", keep="first", maintain_order=True)
            )
            layers = pl.Enum(by_depth(at["layer"].to_list()))
            norms = at.sort(c("layer").cast(layers))["norm"]
            ax.plot(
                range(1, len(norms) + 1),
                norms,
                marker=marker,
                ms=4,
                label=table.labels[arm],
                **look._replace(linewidth=1.2)._asdict(),
            )
            if part == 0:
                shows.append(f"{table.labels[arm]} {norms[0]:.1g} to {norms[-1]:.1g}")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_yscale("log")
    style.number_logarithms(axes[0].yaxis)
    axes[0].set_ylabel("norm of the gradient", fontsize=style.TEXT)
    style.legend(figure)
    return Picture(
        f"gradients-{model}",
        figure,
        f"from the first to the last layer, after the first step: {', '.join(shows)}",
        "Norm of the gradient of each kernel after the first step, halfway and at the "
        "end of its training, of the first seed. In a cascade every layer is measured "
        "in the stage that trains it, and heads are left out.",
    )


REPORT = Report(_sections, METRICS)
