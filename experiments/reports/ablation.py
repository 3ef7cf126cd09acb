"""The report of the ablation: what each setting of prediction does."""

import polars as pl

from experiments import figures
from experiments.figures import Look, Picture
from experiments.table import ACCURACY, LOSS, Metric, Table

c = pl.col
# Settings that are numbers, and the defaults that a reader must know.
_SETTINGS = {
    "plp_step": "step",
    "plp_period": "period",
    "plp_window": "window (at period 5)",
}
_LOOKS = {
    "minus SGD": Look(figures.BLACK),
    "minus SGD at the matched rate": Look(figures.VERMILION, "--", "^"),
}


def sections(table: Table, found: pl.DataFrame) -> list[str | Picture | None]:
    """Differences from both controls over step, period and window."""
    return [
        "## Step, period and window",
        *(
            over_settings(table, model, metric, found)
            for metric in (ACCURACY, LOSS)
            for model in table.models
        ),
    ]


def settings(table: Table) -> pl.DataFrame:
    """The arms that vary a setting or are varied: a row an arm, setting and control."""
    arms = table.study.arms
    bases = {(arm.varies, arm.variant_of) for arm in arms}
    return pl.DataFrame(
        [
            (setting, float(arm.fields[setting]), arm.name, line, control)
            for setting in _SETTINGS
            for arm in arms
            if arm.varies == setting or (setting, arm.name) in bases
            for line, control in zip(_LOOKS, (arm.baseline, arm.matched), strict=True)
        ],
        schema=["setting", "value", "arm", "line", "control"],
        orient="row",
    )


def over_settings(
    table: Table, model: str, metric: Metric, found: pl.DataFrame
) -> Picture | None:
    """Draws differences from both controls, a panel a setting."""
    drawn = (
        found.filter(c("model") == model, c("metric") == metric.name, c("n") > 0)
        .join(settings(table), on=["arm", "control"])
        .sort("value")
    )
    panels = [s for s in _SETTINGS if s in set(drawn["setting"])]
    if not panels:
        return None
    figure = figures.figure(
        f"{metric.title} over settings of prediction, {table.place(model)}", 9.2, 3.7
    )
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, setting in zip(axes, panels, strict=True):
        figures.dress(ax, xlabel=_SETTINGS[setting], ylabel="")
        ax.axhline(0, color="0.3", lw=1)
        of_setting = drawn.filter(c("setting") == setting)
        # Evenly spaced, whatever the setting.
        values = list(of_setting["value"].unique().sort())
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        for shift, (line, look) in zip((-0.07, 0.07), _LOOKS.items(), strict=True):
            of_line = of_setting.filter(c("line") == line)
            # Next to each other, so that no interval hides another.
            x = [values.index(value) + shift for value in of_line["value"]]
            ends = of_line.select(
                c("mean") - c("low").fill_null(c("mean")),
                c("high").fill_null(c("mean")) - c("mean"),
            )
            y, errors = of_line["mean"].to_numpy(), ends.to_numpy().T
            ax.errorbar(
                x, y, errors, **look._asdict(), ms=5, elinewidth=1.5, label=line
            )
    better = "up" if metric.higher_is_better else "down"
    axes[0].set_ylabel(f"difference ({metric.unit}; better: {better})")
    figures.legend(figure, title=figures.evidence(drawn, found))
    return Picture(
        f"settings-{metric.name.replace('_', '-')}-{model}",
        figure,
        "PLP with one setting changed, minus plain SGD and minus SGD at the matched "
        "rate of that setting: mean of the paired differences and 95 % interval. The "
        "other settings have their defaults: step 1, period 4, window 3.",
    )
