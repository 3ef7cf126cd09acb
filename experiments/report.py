"""Reports: from a study's records to Markdown and pictures."""

import importlib
import importlib.util
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from experiments import figures, forests, markdown
from experiments import table as table_lib
from experiments.figures import Picture
from experiments.reports import Report, ReportBlock
from experiments.study import Study
from experiments.table import Table

_MOST = 8  # values that are listed
_LINES = re.DOTALL | re.MULTILINE
_READ = (
    "The test set was read once a run, with the parameters of the best epoch: the one "
    "with the lowest validation loss, or the last one without a validation part."
)
# Fields of a configuration that a report names, and what it calls them.
_FIELDS = {
    "dataset": "data set",
    "validation_fraction": "fraction held out for validation",
    "train_fraction": "fraction of the training images used",
    "width": "width of the first stage",
    "epochs": "epochs",
    "max_steps": "limit on steps",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "max_learning_rate": "peak learning rate",
    "schedule": "schedule",
    "strategy": "strategy",
    "momentum": "momentum",
    "weight_decay": "weight decay",
    "augment": "augmentation",
    "precision": "precision",
}
# Those that make a study small.
_SIZES = ("dataset", "train_fraction", "width", "epochs", "batch_size", "max_steps")
_PROVENANCE = ("device", "python", "jax", "flax", "optax", "plp_optax", "commit")


def write(table: Table, folder: Path) -> Path:
    """Writes a study's report: ``report.md`` and ``figures/*.png``.

    Conclusions come first, then charts of the comparisons, all comparisons and results,
    sections of this study alone, settings and versions. The section Conclusions is
    written by hand, and kept as it stands in the file. What only this study has is a
    ``REPORT`` in the module of ``experiments.reports`` with its name.

    Args:
      table: The study's tables, of one run at least.
      folder: Where to write.

    Returns:
      The Markdown file.
    """
    path = folder / "report.md"
    report = own(table.study)
    metrics, results = report.metrics, report.results
    found = table_lib.compare(table, metrics)
    place = " on ".join(
        map(markdown.join, filter(None, (table.models, table.datasets)))
    )
    compared: list[ReportBlock] = [
        "## Comparisons",
        *forests.draw(table, found, metrics[0]),
        *markdown.comparisons(table, found, metrics),
    ]
    blocks: list[ReportBlock] = [
        f"# {table.study.title}: {place}",
        table.study.question,
        *_introduction(table, path),
        *(compared if len(found) else ()),
        "## Results",
        *(results(table) if results else markdown.results(table, metrics)),
        *([_READ] if table.study.execute is None else ()),
        *report.sections(table),
        "## Settings and versions",
        settings(table),
        versions(table),
    ]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    parts = [b if isinstance(b, str) else _picture(b, folder) for b in blocks if b]
    # A heading below which nothing could be drawn goes.
    heading = re.compile("## .+").fullmatch
    parts = [
        part
        for part, after in itertools.pairwise([*parts, ""])
        if not (heading(part) and heading(after))
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def own(study: Study) -> Report:
    """What a study's report has of its own; else it has curves of the arms."""
    name = f"experiments.reports.{study.name}"
    if importlib.util.find_spec(name) is None:
        return Report(_curves)
    report: Report = importlib.import_module(name).REPORT
    return report


def _introduction(table: Table, path: Path) -> list[ReportBlock]:
    blocks: list[ReportBlock] = []
    if short := shortfalls(table):
        blocks.append(f"> A reduced form of the study: {'; '.join(short)}.")
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if kept := re.search(r"^## Conclusions\n.+?(?=\n\n## )", before, _LINES):
        blocks.append(kept[0])
    return blocks


def _curves(table: Table) -> list[ReportBlock]:
    """Curves of the main part's arms."""
    first, *others = [arm.name for arm in table.study.arms if not arm.group]
    drawn = [figures.curves(table, model, others, first) for model in table.models]
    return ["## Curves", *drawn]


def _picture(picture: Picture, folder: Path) -> str:
    path = Path("figures", f"{picture.name}.png")
    figures.save(picture.figure, folder / path)
    seen = f"{picture.title}: {picture.shows}"
    note = f"\n\n*{picture.caption}*" * bool(picture.caption)
    return f"![{seen}]({path.as_posix()}){note}"


# -- Runs ------------------------------------------------------------------------------


def settings(table: Table) -> str:
    """The configurations; fields that differ between arms list all their values."""
    configs = table.configs.values()
    seeds = table.runs["seed"].unique().sort()
    diverged = table.runs["diverged"].sum()
    rows = {
        f"{table.kind}s": ", ".join(table.models),
        **{label: _setting(list(configs), name) for name, label in _FIELDS.items()},
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})",
        "runs": f"{len(table.runs) - diverged} finished, {diverged} diverged",
    }
    return _facts("Settings", "setting", "value", rows)


def _setting(configs: Sequence[Mapping[str, Any]], name: str) -> str:
    found = _distinct(config.get(name) for config in configs)
    if found != markdown.NONE and any(name not in config for config in configs):
        return f"{found} in some arms"
    return found


def versions(table: Table) -> str:
    """Where the finished runs were made, and with what."""
    finished = table.finished
    rows = {
        name.replace("_", "\\_"): _distinct(finished[name])
        for name in _PROVENANCE
        if name in finished.columns
    }
    return _facts("Versions", "what", "version", rows)


def _facts(title: str, what: str, value: str, rows: dict[str, str]) -> str:
    kept = [row for row in rows.items() if row[1] != markdown.NONE]
    frame = pl.DataFrame(kept, schema=[what, value], orient="row")
    return markdown.write(title, frame, left=2)


def _distinct(values: Iterable[Any]) -> str:
    found = {value for value in values if value is not None}
    kept = sorted(found, key=lambda v: (isinstance(v, str), v))
    more = f" and {len(kept) - _MOST} more" if len(kept) > _MOST else ""
    return ", ".join(map(_written, kept[:_MOST])) + more or markdown.NONE


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shortfalls(table: Table) -> list[str]:
    """How the runs fall short of the study at full scale: ``width 4 instead of 64``."""
    study = table.study
    full = next((scale for scale in study.scales if scale.name == "full"), None)
    if full is None:
        return []
    short: dict[str, None] = {}
    for (model, arm), ours in table.configs.items() if study.execute is None else ():
        wanted = study.configure(full.fields, model, study.arm(arm))
        theirs = table.complete(wanted)
        for name in _SIZES:
            if ours[name] != theirs[name]:
                limit = theirs[name] or "no limit"
                short[f"{_FIELDS[name]} {ours[name]} instead of {limit}"] = None
    found = list(short)
    seeds = table.runs["seed"].n_unique()
    if seeds < full.seeds:
        found.append(f"{seeds} seed{'s'[: seeds > 1]} instead of {full.seeds}")
    if missing := [model for model in full.models if model not in table.models]:
        found.append(f"{markdown.join(missing)} not run")
    return found
