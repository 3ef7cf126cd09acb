"""The evidence on each method: one table from the records of all studies.

python -m experiments evidence
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from matplotlib.figure import Figure

from experiments import figures, forests, markdown, report
from experiments import table as tables
from experiments.statistics import BETTER, NOT_SHOWN, UNCORRECTED, WORSE
from experiments.table import Metric
from training.errors import UserError
from training.run import style

c = pl.col
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
# The strongest evidence for a method first.
_ORDER = {BETTER: 0, UNCORRECTED: 1, NOT_SHOWN: 1, WORSE: 2}
PICTURE = Path("docs/methods/evidence.png")
_TITLE = "Which methods beat their strongest control?"
_NOTE = (
    "Paired differences over n seeds with 95 % intervals, strongest evidence first. "
    "Points: higher is better; all others: lower is better. A control after the first, "
    "such as the matched rate, is what else may explain a gain. Most rates are tuned, "
    "the reports say how; AdamW has b1 = 0.9 where it does not say otherwise. Bold "
    "where p, corrected over the study's comparisons, is at most 0.05; *not after "
    "correction* where only p itself is. The picture shows the control that a method "
    "does worst against. Differences are divided by that control's standard deviation "
    "over seeds; ratios are taken as logarithms."
)
# The page about a method, in ``docs/methods``, and what it is for, in README's few
# words.
_METHODS = {
    "Anderson acceleration": ("anderson", "full batches of a smooth loss"),
    "BEMA": ("bema", "an EMA of weights without its lag, for fine-tuning"),
    "Deep cascade learning": ("cascade", "deep networks without normalisation"),
    "EMA-Nesterov": ("ema_nesterov", "Muon, on its published schedule"),
    "Extended Kalman filter": ("ekf", "streams, one sample at a time"),
    "GPA": ("gpa", "a constant rate, after AdamW with momentum"),
    "GPA, AdamW without momentum": ("gpa", "a constant rate, small batches"),
    "Layer-wise amplification": ("amplify_layers", "layers whose gradients agree"),
    "Lookahead": ("plp", "small batches"),
    "Noise-adaptive layer rates": (
        "noise_adaptive_rates",
        "layers whose gradients are noisy",
    ),
    "Outer Nesterov": ("outer_nesterov", "long runs of large models"),
    "PACE": ("pace", "AdamW pulled towards its own average"),
    "PLP": ("plp", "jumps along the trajectory"),
    "Power average of one run": (
        "tail_average",
        "evaluation at any step of a constant rate",
    ),
    "Tail average, constant rate": ("tail_average", "evaluation without a decay"),
}


class Claim(NamedTuple):
    """A row of ``claims.csv``: what a study says of a method.

    Attributes:
      method: The method, as readers know it.
      record: The study's folder in ``results``.
      model: The network or setup, as in its records.
      arm: The arm that has the method.
      base: Its tuned base, the name of an arm; None if it was not compared.
      matched: Its matched control, likewise.
      metric: The name of a metric of the study.
      task: The network and the data that were trained.
    """

    method: str
    record: str
    model: str
    arm: str
    base: str | None
    matched: str | None
    metric: str
    task: str


_TABLE = pl.read_csv(Path(__file__).with_name("claims.csv"))
CLAIMS = tuple(Claim(*row) for row in _TABLE.iter_rows())
_ENDS = ("low", "mean", "high")


class _Study(NamedTuple):
    metrics: Sequence[Metric]
    # Comparisons, with ``against``, the control's label, and ``spread``, the standard
    # deviation of its values.
    found: pl.DataFrame


def _study(folder: Path) -> _Study:
    loaded = tables.load(folder)
    own = report.own(loaded.study)
    # Where arms are settings, a report says in what form methods are compared.
    made, metrics = own.compared(loaded), own.metrics
    of = ["metric", "model", "control"]
    spreads = [
        values.group_by(metric=pl.lit(metric.name), model="model", control="arm").agg(
            spread=c("value").std()
        )
        for metric in metrics
        if "control" not in (values := metric.values(made)).columns
    ]
    found = tables.compare(made, metrics).join(
        pl.concat(spreads), on=of, how="left", maintain_order="left"
    )
    return _Study(
        metrics, found.with_columns(against=c("control").replace(made.labels))
    )


def collect(results: Path, claims: Sequence[Claim] = CLAIMS) -> pl.DataFrame:
    """The claims with what the records say of them, the strongest evidence first.

    Returns:
      A row a claim: its fields, with the difference as text for ``base`` and
      ``matched``. Against the strongest control, the one with the least favourable
      difference: ``n``, ``mean``, ``verdict``, ``difference`` as text, the control's
      label ``against``, and ``effect``, ``low`` and ``high``, which are the mean and
      its interval over the control's standard deviation, below 0 if better.

    Raises:
      UserError: If a study has no records, or a comparison no interval.
      KeyError: If a study does not make the comparison.
    """
    loaded = functools.cache(lambda record: _study(results / record))
    rows = []
    for claim in claims:
        study = loaded(claim.record)
        (metric,) = (m for m in study.metrics if m.name == claim.metric)
        of_arm = study.found.filter(
            c("metric") == claim.metric,
            c("model") == claim.model,
            c("arm") == claim.arm,
        )
        by_control = {row["control"]: row for row in of_arm.iter_rows(named=True)}
        given = {
            kind: by_control[control]
            for kind in ("base", "matched")
            if (control := getattr(claim, kind)) is not None
        }
        sign = -1 if metric.higher_is_better else 1
        strongest = max(given.values(), key=lambda row: sign * row["mean"])
        texts = {kind: _difference(metric, row) for kind, row in given.items()}
        if strongest["low"] is None:
            raise UserError(
                f"the claim on {claim.method} in {claim.record} has no interval: run "
                f"more seeds, or leave it out"
            )
        names = ("n", "verdict", "mean", "against")
        ends = sorted(sign * strongest[end] / strongest["spread"] for end in _ENDS)
        rows.append(
            {
                **claim._asdict(),
                **{"base": None, "matched": None, **texts},
                **{name: strongest[name] for name in names},
                **dict(zip(("low", "effect", "high"), ends, strict=True)),
                "difference": _mean(metric, strongest["mean"]),
            }
        )
    frame = pl.DataFrame(rows, infer_schema_length=None)
    order = c("verdict").replace_strict(_ORDER, default=3)
    return frame.sort(order, "method", maintain_order=True)


def _difference(metric: Metric, row: dict[str, Any]) -> str:
    """``**-0.038 nats [-0.050, -0.025]** from SGD``, bold where it is decided."""
    low, high = (markdown.difference(metric, row[end], 3) for end in ("low", "high"))
    found = f"{_mean(metric, row['mean'])} [{low}, {high}]"
    if row["verdict"] in (BETTER, WORSE):
        found = f"**{found}**"
    note = f", {UNCORRECTED}" if row["verdict"] == UNCORRECTED else ""
    return f"{found} from {row['against']}{note}"


def _mean(metric: Metric, mean: float) -> str:
    unit = "times" if metric.is_ratio else metric.unit
    return f"{markdown.difference(metric, mean, 3)} {unit}"


def write(frame: pl.DataFrame, about: str) -> str:
    """The table as Markdown: its columns ``method`` and ``about``, and the numbers."""
    found = pl.concat_str("base", "matched", separator="<br>", ignore_nulls=True)
    columns = {"method": "method", about: about, "found": "difference (n)"}
    linked = frame.with_columns(found=pl.format("{} (n&nbsp;{})", found, "n"))
    return markdown.write("What was measured", linked, columns, note=_NOTE, left=3)


def draw(frame: pl.DataFrame) -> Figure:
    """A forest plot of the strongest controls, a row a claim.

    Tasks have different units, so that an effect is in standard deviations of the
    control, and the difference is written next to it.
    """
    figure = style.figure(_TITLE, 1.6 + 0.27 * len(frame))
    ax = figure.subplots()
    style.dress(ax, xlabel="difference, in standard deviations of the control over "
                "seeds; left is better", ylabel="")  # fmt: skip
    rows = {
        y: {**row, "mean": row["effect"]}
        for y, row in enumerate(frame.iter_rows(named=True))
    }
    forests.draw_intervals(ax, rows)
    names = frame.select(pl.format("{}, n = {}", "method", "n")).to_series()
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    forests.label_right(ax, {
        y: f"{row['difference']} against\n{row['against']}" for y, row in rows.items()
    })  # fmt: skip
    forests.explain(
        figure, rows.values(), "corrected over the comparisons of each study"
    )
    return figure


def update_pages(root: Path) -> None:
    """Writes the complete table to the page of methods; README has a row a method.

    The first claim that is declared for a method is the one that README has. Both pages
    have the picture of these.
    """
    every = collect(root / "results")
    first = {claim.method: claim.task for claim in reversed(CLAIMS)}
    chosen = pl.struct("method", "task").is_in(
        [{"method": method, "task": task} for method, task in first.items()]
    )
    heads = every.filter(chosen)
    figures.save(draw(heads), root / PICTURE)
    verdicts = heads.group_by("verdict", maintain_order=True).agg("method")
    seen = "; ".join(
        f"{v}: {markdown.join(names)}" for v, names in verdicts.iter_rows()
    )
    card, purpose = (
        c("method").replace_strict({name: about[i] for name, about in _METHODS.items()})
        for i in (0, 1)
    )
    by_task = every.with_columns(
        method=pl.format("[{}]({}.md)", "method", card),
        task=pl.format("[{}](../studies/{}/report.md)", "task", "record"),
    )
    by_purpose = heads.with_columns(
        pl.format("[{}](docs/methods/{}.md)", purpose, card).alias("what for"),
        method=pl.format("[{}](results/{}/report.md)", "method", "record"),
    )
    for page, table in (
        (root / "docs/methods/index.md", write(by_task, "task")),
        (root / "README.md", write(by_purpose, "what for")),
    ):
        place = (root / PICTURE).relative_to(page.parent)
        update(page, f"![{_TITLE} {seen}]({place})\n\n{table}")


def update(page: Path, text: str) -> None:
    """Replaces what stands between a page's two markers."""
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}", encoding="utf-8")
