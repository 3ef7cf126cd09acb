"""Pictures of tables: curves by epoch, by length and by learning rate."""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from experiments import markdown
from experiments.table import Table
from training.run import style

c = pl.col


class Picture(NamedTuple):
    """A figure of a report.

    Attributes:
      name: Name of its file, without extension.
      figure: The figure; its title is the question that it answers.
      shows: A description, for readers who cannot see it.
      caption: The note below it.
    """

    name: str
    figure: Figure
    shows: str
    caption: str

    @property
    def title(self) -> str:
        """The figure's title."""
        return self.figure.get_suptitle().replace("\n", " ")


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG file, with a palette, which makes it a third as large."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    # This method keeps colours that few pixels have, such as those of verdicts.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    image = Image.open(content).convert("RGB")
    image.quantize(256, method, kmeans=3, dither=dither).save(path, optimize=True)


class Look(NamedTuple):
    """How an arm is drawn: matplotlib's arguments."""

    color: str
    linestyle: str = "-"
    linewidth: float = 1.7
    zorder: float = 2.0


PLAIN = Look(style.BLACK)
# Also different in grey.
COLORED = (
    Look(style.BLUE),
    Look(style.VERMILION, "--"),
    Look(style.GREEN, "-."),
    Look(style.PURPLE, ":"),
)
OTHERS = Look(style.PALE, linewidth=0.9, zorder=1.9)
_LINEAR = 0.02  # of the axis of differences by rate, in nats


def logarithmic_if_wide(ax: Axes) -> bool:
    """Makes the axis of values logarithmic where lines span a factor of 50."""
    values = _drawn(ax)
    is_wide = values.size > 0 and 0 < 50 * values.min() <= values.max()
    if is_wide:
        ax.set_yscale("log")
        style.number_logarithms(ax.yaxis)
    return bool(is_wide)


def _drawn(ax: Axes) -> np.ndarray:
    """All finite values of the lines of an axis."""
    values = [np.asarray(line.get_ydata(), float) for line in ax.get_lines()]
    drawn = np.concatenate([np.zeros(0), *values])
    return drawn[np.isfinite(drawn)]


def band(
    ax: Axes,
    frame: pl.DataFrame,
    x: str,
    y: str,
    look: Look,
    label: str,
    *,
    has_error: bool = False,
) -> None:
    """Draws the mean of runs over x, and a band from the lowest to the highest.

    With ``has_error`` the band is the standard error of the mean instead. The frame has
    a row a run and x.
    """
    mean = c(y).mean()
    error = (c(y).std() / pl.len().sqrt()).fill_null(0)
    low, high = (mean - error, mean + error) if has_error else (c(y).min(), c(y).max())
    of_x = frame.drop_nulls(y).group_by(x).agg(mean, low=low, high=high).sort(x)
    ax.plot(of_x[x], of_x[y], label=label, **look._asdict())
    if look != OTHERS:
        ends = of_x["low"], of_x["high"]
        ax.fill_between(of_x[x], *ends, color=look.color, alpha=0.14, lw=0)


def count(numbers: Iterable[int]) -> str:
    """``5``, or ``3 to 5``."""
    return " to ".join(map(str, dict.fromkeys([min(found := [*numbers]), max(found)])))


def curves(
    table: Table,
    model: str,
    arms: Sequence[str],
    control: str,
    first: Sequence[str] = (),
) -> Picture | None:
    """Draws how far arms are from a control by epoch, with four arms in colour.

    Accuracy is above loss, each on the training part, and next to it on the test or
    else the validation part.

    Args:
      table: The study's tables.
      model: The network.
      arms: Names of arms; those without a run are left out.
      control: The arm to subtract, seed by seed.
      first: The arms in colour; empty for the first ones.

    Returns:
      The picture; None if there is nothing to draw.
    """
    epochs = _judged(table, model, [*arms, control])
    columns = [
        [
            name
            for part in ("train", "validation", "test")
            if (name := f"{part}_{quantity}") in epochs.columns
            and epochs[name].is_not_null().any()
        ]
        for quantity in ("accuracy", "loss")
    ]
    base = epochs.filter(c("arm") == control)
    if not len(base) or epochs["arm"].n_unique() < 2 or not all(columns):
        return None
    label = table.labels[control]
    new = style.figure(
        f"Accuracy and loss minus those of {label}, {table.place(model)}", 6.2
    )
    axes = new.subplots(2, min(2, max(map(len, columns))), squeeze=False)
    ran = [*dict.fromkeys(epochs.filter(c("arm") != control)["arm"])]
    order = sorted(ran, key=lambda arm: [*first, arm].index(arm))
    looks = dict.fromkeys(order, OTHERS) | dict(zip(order, COLORED, strict=False))
    others = [table.labels[arm] for arm, look in looks.items() if look == OTHERS]
    shows = []
    units = (100, "points; higher"), (1, "nats; lower")
    for row, names, (scale, unit) in zip(axes, columns, units, strict=True):
        for ax, name in zip(row, dict.fromkeys((names[0], names[-1])), strict=False):
            title = name.replace("train_", "training_").replace("_", " ")
            ax.axhline(0, color=style.BLACK, lw=1, label=f"{label} (control)")
            pairs = (
                epochs.filter(~c("diverged"), c("arm") != control)
                .join(
                    base.select("seed", "epoch", base=name),
                    on=["seed", "epoch"],
                    maintain_order="left",
                )
                .with_columns(difference=scale * (c(name) - c("base")))
            )
            for arm, look in looks.items():
                of_arm = pairs.filter(c("arm") == arm)
                drawn = "others" if look == OTHERS else table.labels[arm]
                band(ax, of_arm, "epoch", "difference", look, drawn, has_error=True)
            if _is_log_symmetric(ax):
                title += " (symmetric-log axis)"
            style.dress(
                ax,
                xlabel="epoch",
                ylabel=f"difference ({unit} is better)",
                title=title,
            )
        last = pairs.filter(c("epoch") == c("epoch").max())
        means = dict(last.group_by("arm").agg(c("difference").mean()).iter_rows())
        ends = [
            f"{table.labels[arm]} {means[arm]:+.2g}"
            for arm, look in looks.items()
            if look != OTHERS and means.get(arm) is not None
        ]
        shows.append(f"{name.replace('_', ' ')}: {', '.join(ends)}")
    n = count(epochs.group_by("arm").agg(c("seed").n_unique())["seed"])
    style.legend(new, title=f"mean ± standard error, n = {n}")
    return Picture(
        f"curves-{model}-minus-{control}",
        new,
        f"last epoch, {'; '.join(shows)}",
        f"Arm minus {label}, seed by seed: mean over the finished runs, and its "
        f"standard error."
        + f" In grey: {'; '.join(others)}." * bool(others)
        + _diverged(table, epochs),
    )


def _judged(table: Table, model: str, arms: Sequence[str]) -> pl.DataFrame:
    """Epochs of arms; as in the results, an average is judged in its run's place."""
    epochs = table.epochs.filter(c("model") == model, c("arm").is_in(arms))
    return epochs.with_columns(
        pl.coalesce(name, name.removeprefix("average_")).alias(
            name.removeprefix("average_")
        )
        for name in epochs.columns
        if name.startswith("average_")
    )


def _diverged(table: Table, epochs: pl.DataFrame) -> str:
    """A sentence on the runs that diverged, which are not drawn; empty without any."""
    counts = epochs.group_by("arm", maintain_order=True).agg(
        c("seed").filter("diverged").n_unique(), of=c("seed").n_unique()
    )
    named = [f"{table.labels[a]} {n} of {of}" for a, n, of in counts.iter_rows() if n]
    return f" Diverged: {'; '.join(named)}." * bool(named)


def runs(table: Table, model: str, arms: Sequence[str]) -> Picture | None:
    """Draws accuracy and loss of each run by epoch, training next to validation.

    Args:
      table: The study's tables.
      model: The network.
      arms: Names of up to four arms, a column each; those without a run are left out.

    Returns:
      The picture; None if no arm has run, or without a validation part.
    """
    every = _judged(table, model, arms)
    epochs = every.filter(~c("diverged"))
    parts = {"training": ("train", COLORED[1]), "validation": ("validation", PLAIN)}
    quantities = {"accuracy": (100, "%"), "loss": (1, "nats")}
    drawn = [f"{part}_{q}" for part, _ in parts.values() for q in quantities]
    ran = [arm for arm in arms if arm in set(epochs["arm"])]
    if not ran or not all(
        name in epochs.columns and epochs[name].is_not_null().any() for name in drawn
    ):
        return None
    new = style.figure(
        f"What does training reach, and what of it generalises? {table.place(model)}",
        5.6,
    )
    axes = new.subplots(2, len(ran), sharex=True, sharey="row", squeeze=False)
    for row, (quantity, (scale, unit)) in zip(axes, quantities.items(), strict=True):
        for ax, arm in zip(row, ran, strict=True):
            for name, (part, look) in parts.items():
                for run in epochs.filter(c("arm") == arm).partition_by("seed"):
                    of = run.sort("epoch").with_columns(c(f"{part}_{quantity}") * scale)
                    looks = {**look._asdict(), "linewidth": 0.9}
                    ax.plot(of["epoch"], of[f"{part}_{quantity}"], label=name, **looks)
            is_top = quantity == "accuracy"
            style.dress(
                ax,
                xlabel="" if is_top else "epoch",
                ylabel=f"{quantity} ({unit})" if arm == ran[0] else "",
                title=textwrap.fill(table.labels[arm], 24) if is_top else "",
            )
    n = count(epochs.group_by("arm").agg(c("seed").n_unique())["seed"])
    style.legend(new, title=f"a line a run, n = {n}")
    last = epochs.filter(c("epoch") == c("epoch").max().over("arm", "seed"))
    ends = last.group_by("arm").agg(c(*drawn[::2]).mean() * 100)
    shows = [
        f"{table.labels[arm]} {' and '.join(f'{x:.1f}' for x in means)} %"
        for arm, *means in sorted(ends.iter_rows(), key=lambda row: ran.index(row[0]))
    ]
    return Picture(
        f"runs-{model}",
        new,
        f"last epoch, training and validation accuracy: {'; '.join(shows)}",
        "Training accuracy and loss are means over an epoch's steps, of changing "
        "parameters and of augmented images; validation of an average is its own."
        + _diverged(table, every),
    )


def anytime(
    found: pl.DataFrame, model: str, unit: str, quantity: str, arms: Mapping[str, str]
) -> Picture | None:
    """Draws the losses of one run at several lengths, minus those of tuned decays.

    Args:
      found: Comparisons with the arm ``decay``, in setups such as
        ``characters, 400 steps``; in nats.
      model: The setup before the comma.
      unit: What lengths are counted in: ``steps``.
      quantity: What is compared: ``held-out loss``.
      arms: Labels by name.

    Returns:
      The picture; None if there are no intervals to draw.
    """
    found = found.with_columns(
        length=c("model").str.extract(rf"^{re.escape(model)}, (\d+) ").cast(pl.Int64)
    ).filter(
        c("length").is_not_null(),
        c("arm").is_in([*arms]),
        c("control") == "decay",
        c("low").is_not_null(),
    )
    if not len(found):
        return None
    figure = style.figure(
        f"Does one averaged run replace a decay tuned for each length? {model}", 3.8
    )
    ax = figure.subplots()
    label = "decay, tuned for each length (control)"
    ax.axhline(0, color=style.BLACK, lw=1, label=label)
    shows = []
    for shift, look, (arm, label) in zip(
        (0.98, 1.02, 1), COLORED, arms.items(), strict=False
    ):
        rows = found.filter(c("arm") == arm)
        if not len(rows):
            continue
        ends = np.abs(rows.select(c("low", "high") - c("mean")).to_numpy()).T
        ax.errorbar(
            shift * rows["length"].to_numpy(),
            rows["mean"],
            ends,
            marker="o",
            ms=5,
            capsize=3,
            label=label,
            **look._asdict(),
        )
        means = ", ".join(f"{mean:+.3f}" for mean in rows["mean"])
        shows.append(f"{label}: {means} nats")
    ax.set_xscale("log")
    lengths = sorted(found["length"].unique())
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
    ax.minorticks_off()
    style.dress(
        ax,
        xlabel=f"length of training ({unit})",
        ylabel=f"{quantity} minus the\ndecay's (nats; lower is better)",
    )
    n = count(found["n"])
    style.legend(figure, title=f"mean and 95 % interval, not corrected, n = {n}")
    return Picture(
        f"anytime-{model}",
        figure,
        f"at {markdown.join(map(str, lengths))} {unit}, {'; '.join(shows)}",
        "Paired differences over the seeds. The decay is tuned for each length.",
    )


def _is_log_symmetric(ax: Axes) -> bool:
    """Makes an axis of differences symmetric-log where some are far larger than most.

    Returns:
      Whether they are.
    """
    sizes = np.abs(_drawn(ax))
    typical = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 0
    if not typical or sizes.max() <= 30 * typical:
        return False
    ax.set_yscale("symlog", linthresh=10.0 ** math.ceil(math.log10(typical)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    return True


def sensitivity(
    losses: pl.DataFrame,
    labels: Mapping[str, str],
    base: str,
    first: Sequence[str],
    place: str,
) -> Picture | None:
    """Draws the loss by learning rate, minus the lowest loss of the base.

    Args:
      losses: A row a method and rate: ``method``, ``rate``, ``value``, which is null
        where a run diverged.
      labels: Labels of the methods.
      base: The method whose lowest loss is subtracted.
      first: Up to four methods in colour.
      place: The network and the data set, for title and name.

    Returns:
      The picture; None if the base has not run.
    """
    found = losses.drop_nulls("value")
    if base not in set(found["method"]):
        return None
    lowest = found.filter(c("method") == base)["value"].min()
    ran = [name for name in dict.fromkeys(found["method"]) if name != base]
    colored = [name for name in first if name in ran]
    looks = dict.fromkeys(ran, OTHERS) | dict(zip(colored, COLORED, strict=False))
    new = style.figure(f"What does a wrong learning rate cost? {place}", 4.2)
    ax = new.subplots()
    ax.axhline(0, color=style.BLACK, lw=0.6)
    for name, look in {**looks, base: PLAIN}.items():
        of = found.filter(c("method") == name).sort("rate")
        is_other = look == OTHERS
        ax.plot(
            of["rate"],
            of["value"] - lowest,
            marker="" if is_other else "o",
            ms=4,
            label="others" if is_other else labels[name],
            **look._asdict(),
        )
    ax.set_xscale("log")
    style.number_logarithms(ax.xaxis)
    ax.set_yscale("symlog", linthresh=_LINEAR)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    style.dress(
        ax,
        xlabel="learning rate",
        ylabel=f"loss minus the best of {labels[base]}\n(nats; linear up to {_LINEAR})",
    )
    style.legend(new, title="means of the tuning seeds")
    grey = [labels[name] for name, look in looks.items() if look == OTHERS]
    best = found.group_by("method").agg(c("value").min() - lowest)
    ends = dict(best.iter_rows())
    shown = ", ".join(f"{labels[name]} {ends[name]:+.3f}" for name in colored)
    return Picture(
        f"sensitivity-{place.replace(' ', '-')}",
        new,
        f"the best of each method, minus that of {labels[base]}: {shown}",
        f"In grey: {'; '.join(grey)}." if grey else "",
    )
