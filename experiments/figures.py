"""Pictures of tables: forest plots, curves of differences."""

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from experiments import markdown
from experiments.statistics import BETTER, NOT_SHOWN, TOO_FEW, UNCORRECTED, WORSE
from experiments.table import Metric, Table
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


# -- Lines -----------------------------------------------------------------------------


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


# -- Forest plots ----------------------------------------------------------------------


class _Verdict(NamedTuple):
    color: str
    marker: str
    fill: str


_VERDICTS = {
    BETTER: _Verdict(style.BLUE, "^", style.BLUE),
    WORSE: _Verdict(style.VERMILION, "v", style.VERMILION),
    UNCORRECTED: _Verdict(style.ORANGE, "D", style.ORANGE),
    NOT_SHOWN: _Verdict(style.GREY, "o", style.GREY),
    TOO_FEW: _Verdict(style.GREY, "o", "white"),
}
_Row = Mapping[str, Any]  # of a comparison: its columns in ``table.compare``


def forests(table: Table, found: pl.DataFrame, metric: Metric) -> list[Picture]:
    """Draws each arm minus its base and minus its strongest other control.

    The base is the control that is declared first. The strongest of the others is the
    one with the least favourable difference.

    Returns:
      A picture a network, of those on which anything is decided.
    """
    of_metric = found.filter(c("metric") == metric.name)
    tests = len(of_metric.drop_nulls("corrected"))
    corrected = f"corrected over {tests} comparisons" * bool(tests)
    drawn = of_metric.filter(c("n") > 0)
    if metric.is_ratio:
        drawn = drawn.with_columns(c("mean", "low", "high").exp())
    return [
        _forest(table, metric, str(model), rows, corrected)
        for (model,), rows in drawn.group_by("model", maintain_order=True)
        if rows["verdict"].is_in([BETTER, WORSE]).any()
    ]


def _forest(
    table: Table, metric: Metric, model: str, found: pl.DataFrame, corrected: str
) -> Picture:
    sign = -1 if metric.higher_is_better else 1
    arms: dict[str, list[_Row]] = {}
    for row in found.iter_rows(named=True):
        arms.setdefault(row["arm"], []).append(row)
    bases = {y: rows[0] for y, rows in enumerate(arms.values())}
    strongest = {
        y: max(others, key=lambda row: sign * row["mean"])
        for y, (_, *others) in enumerate(arms.values())
        if others
    }
    every = [*bases.values(), *strongest.values()]
    new = style.figure(
        f"Which arms beat their controls? {metric.title}, {table.place(model)}",
        1.6 + 0.29 * len(arms),
    )
    axes = new.subplots(1, 1 + bool(strongest), sharey=True, squeeze=False)[0]
    labels = [_wrapped(table.labels[arm], 34) for arm in arms]
    axes[0].set_yticks(range(len(arms)), labels)
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    side = "higher" if metric.higher_is_better else "lower"
    unit = "ratio" if metric.is_ratio else f"difference in {metric.unit}"
    minus = "over" if metric.is_ratio else "minus"
    shows, has_several = [], False
    for ax, rows in zip(axes, (bases, strongest), strict=False):
        is_base = rows is bases
        names = {y: _control(table, row, is_base) for y, row in rows.items()}
        ((common, times),) = Counter(names.values()).most_common(1)
        # The title names the common control, and labels those of other rows.
        if times >= len(names) / (2 if is_base else 1):
            title = f"{minus} {common}"
            names = {y: f"{minus} {x}" for y, x in names.items() if x != common}
        else:
            title = f"{minus} its {'base' if is_base else 'strongest other control'}"
            has_several |= not is_base
        style.dress(ax, xlabel=f"{unit}; {side} is better", ylabel="", title=title)
        draw_intervals(ax, rows, every, is_ratio=metric.is_ratio)
        label_right(ax, {y: _wrapped(name, 26) for y, name in names.items()})
        shows.append(f"{title}: {_verdicts(row['verdict'] for row in rows.values())}")
    explain(new, every, corrected)
    strongest_is = "Strongest: of an arm's others, the least favourable mean. "
    arrow_is = "An arrow: the mean is off the axis."
    return Picture(
        re.sub(r"\W+", "-", f"differences {metric.name} {model}").replace("_", "-"),
        new,
        "; ".join(shows),
        (strongest_is * has_several + arrow_is * any(ax.texts for ax in axes)).strip(),
    )


def _control(table: Table, row: _Row, is_base: bool) -> str:
    is_matched = row["control"] == table.study.arm(row["arm"]).matched
    matched = is_matched and not is_base
    return "its matched rate" if matched else table.labels[row["control"]]


def _verdicts(found: Iterable[str]) -> str:
    """``2 better, 3 no difference shown``."""
    counts = Counter(found)
    return ", ".join(f"{counts[v]} {v}" for v in _VERDICTS if v in counts)


def _wrapped(text: str, width: int) -> str:
    """On two lines where it is longer than the width."""
    return text if len(text) <= width else textwrap.fill(text, len(text) // 2 + 6)


def label_right(ax: Axes, names: Mapping[int, str]) -> None:
    """Names of rows, to the right of the axes."""
    if names:
        right = ax.secondary_yaxis("right")
        right.set_yticks(list(names), list(names.values()))
        right.tick_params(length=0, labelsize=style.SMALL - 1)
        right.spines["right"].set_visible(False)


def draw_intervals(
    ax: Axes,
    rows: Mapping[int, _Row],
    every: Iterable[_Row] | None = None,
    *,
    is_ratio: bool = False,
) -> None:
    """Draws means and their intervals, by place, in the look of their verdicts.

    Args:
      ax: The axes.
      rows: Comparisons, by their place on the vertical axis.
      every: All rows that the horizontal axis must have room for; None for these.
      is_ratio: Whether values are ratios, which are 1 without a difference.
    """
    low, high = _limits(rows.values() if every is None else every, is_ratio)
    ax.axvline(is_ratio, color="0.3", lw=1)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    if is_ratio:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.2, high * 1.2)
        style.number_logarithms(ax.xaxis)
    else:
        margin = 0.05 * (high - low) or 1.0
        ax.set_xlim(low - margin, high + margin)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for y, row in rows.items():
        x, (color, marker, fill) = row["mean"], _VERDICTS[row["verdict"]]
        if not low <= x <= high:
            x, marker, side = (high, ">", "right") if x > high else (low, "<", "left")
            text = f"   {row['mean']:+.3g}   "
            ax.text(x, y, text, ha=side, va="center", fontsize=style.SMALL)
        elif row["low"] is not None:
            ax.plot([row["low"], row["high"]], [y, y], color=color, lw=1.8)
        ax.plot(x, y, marker, color=color, mfc=fill, ms=5)


def _limits(rows: Iterable[_Row], is_ratio: bool) -> tuple[float, float]:
    """The limits of an axis: around all intervals, except those of extreme arms."""
    ends = np.array([
        end for row in rows for end in (row["mean"], row["low"], row["high"])
        if end is not None
    ])  # fmt: skip
    low, high = min(*ends, is_ratio), max(*ends, is_ratio)
    if is_ratio:
        return low, high
    # One extreme arm must not flatten the others.
    sizes = np.abs(ends[ends != 0])
    limit = 12 * float(np.median(sizes)) if sizes.size else 1.0
    low, high = np.clip([low, high], -limit, limit)
    return float(low), float(high)


def explain(figure: Figure, rows: Collection[_Row], corrected: str) -> None:
    """A legend of the verdicts, with n and what p was corrected over."""
    found = {row["verdict"] for row in rows}
    handles: dict[str, Artist] = {
        name: Line2D([], [], color=color, marker=marker, mfc=fill, ms=5)
        for name, (color, marker, fill) in _VERDICTS.items()
        if name in found
    }
    n = count(row["n"] for row in rows)
    means = "one seed" if n == "1" else f"mean and 95 % interval, n = {n}"
    parts = means, corrected
    style.legend(figure, handles, ", ".join(filter(None, parts)))


# -- Curves ----------------------------------------------------------------------------


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
    epochs = table.epochs.filter(c("model") == model, c("arm").is_in([*arms, control]))
    # As in the results, a run that averages parameters is judged by the average.
    epochs = epochs.with_columns(
        pl.coalesce(name, name.removeprefix("average_")).alias(
            name.removeprefix("average_")
        )
        for name in epochs.columns
        if name.startswith("average_")
    )
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
    diverged = epochs.group_by("arm", maintain_order=True).agg(
        c("seed").filter("diverged").n_unique(), of=c("seed").n_unique()
    )
    named = [f"{table.labels[a]} {n} of {of}" for a, n, of in diverged.iter_rows() if n]
    return Picture(
        f"curves-{model}-minus-{control}",
        new,
        f"last epoch, {'; '.join(shows)}",
        f"Arm minus {label}, seed by seed: mean over the finished runs, and its "
        f"standard error."
        + f" In grey: {'; '.join(others)}." * bool(others)
        + f" Diverged: {'; '.join(named)}." * bool(named),
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
        (0.98, 1.02), COLORED, arms.items(), strict=False
    ):
        rows = found.filter(c("arm") == arm)
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
