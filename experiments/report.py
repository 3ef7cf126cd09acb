"""Reports: from a study's records to Markdown, HTML and pictures."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from experiments import page, tables
from experiments.page import Block, Notice, Page, Section
from experiments.records import Record
from experiments.reports import comparisons
from experiments.reports.runs import NOT_RUN, Runs
from experiments.study import Study


def write(study: Study, records: Sequence[Record], folder: Path) -> Path:
    """Writes a study's report.

    Args:
      study: The study; ``experiments.reports`` has a module of its name.
      records: Its runs at one scale, as many as there are.
      folder: Where to: ``report.md``, ``report.html`` (which needs nothing else) and
        ``figures/*.png``.

    Returns:
      The Markdown file.

    Raises:
      RunError: If an arm ran a seed twice, or a run lacks a result.
    """
    runs = Runs(study, records)
    sections = [_header(runs)]
    if records:
        own = importlib.import_module(f"experiments.reports.{study.name}")
        sections += own.sections(runs, comparisons.compare(runs))
    return page.write(Page(study.title, sections), folder)


def _header(runs: Runs) -> Section:
    blocks: list[Block] = [runs.study.question]
    if not runs.records:
        return Section("Question", [*blocks, Notice(f"{NOT_RUN.capitalize()} yet.")])
    if short := tables.shortfalls(runs):
        blocks.append(Notice(_miniature(runs, short)))
    return Section("Question", [*blocks, tables.setting(runs)])


def _miniature(runs: Runs, short: Sequence[str]) -> str:
    told = f"Not the study at full scale: {'; '.join(short)}."
    if {record.config["dataset"] for record in runs.records} != {"digits"}:
        return told
    return (
        f"A miniature on digits: it shows that the study runs and says nothing about "
        f"CIFAR-100. {told}"
    )
