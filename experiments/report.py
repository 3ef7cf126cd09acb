"""Reports: from a study's records to Markdown and pictures."""

import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments import figures, tables
from experiments.comparisons import METRICS, Compared, compare_all
from experiments.figures import Picture
from experiments.records import Header, Record
from experiments.runs import Runs
from experiments.study import Study

CONCLUSIONS = "conclusions.md"  # written by hand, next to the records
_MOST_CURVES = 10  # arms that one picture holds
_COLORS = 256  # of a picture

# Markdown, a picture, or None for a picture that could not be drawn.
Block = str | Picture | None


def write(
    study: Study, header: Header, records: Sequence[Record], folder: Path
) -> Path:
    """Writes a study's report: ``report.md`` and ``figures/*.png``.

    Conclusions and a chart of the comparisons come first, then all comparisons and
    results, what a study shows of its own, settings and versions. Conclusions are
    written by hand: the content of ``conclusions.md`` in the folder, if there is one.
    What is special to a study comes from ``sections(runs, found)`` in its module of
    ``experiments.reports``; a study without one gets curves of its arms.

    Args:
      study: The study.
      header: The header of its records.
      records: Its runs at one scale, at least one.
      folder: Where to write.

    Returns:
      The Markdown file.

    Raises:
      RunError: If an arm ran a seed twice.
    """
    runs = Runs(study, header, records)
    found = compare_all(runs)
    place = " on ".join(map(tables.join, filter(None, (runs.models, runs.datasets))))
    blocks = [
        f"# {study.title}: {place}",
        study.question,
        *_introduction(runs, found, folder),
        "## Comparisons",
        *tables.comparisons(runs, found),
        *(figures.differences(runs, found, metric) for metric in METRICS[1:2]),
        "## Results",
        *tables.results(runs),
        *_sections(runs, found),
        "## Settings and versions",
        tables.settings(runs),
        tables.versions(runs),
    ]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    parts = [_part(block, folder) for block in blocks if block is not None]
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _introduction(
    runs: Runs, found: Sequence[Compared], folder: Path
) -> list[Block]:
    blocks: list[Block] = []
    if short := tables.shortfalls(runs):
        blocks.append(f"> A reduced form of the study: {'; '.join(short)}.")
    conclusions = folder / CONCLUSIONS
    if conclusions.exists():
        text = conclusions.read_text(encoding="utf-8").strip()
        blocks += ["## Conclusions", text]
    return [*blocks, figures.differences(runs, found, METRICS[0])]


def _sections(runs: Runs, found: Sequence[Compared]) -> list[Block]:
    name = f"experiments.reports.{runs.study.name}"
    if importlib.util.find_spec(name) is not None:
        blocks: list[Block] = importlib.import_module(name).sections(runs, found)
        return blocks
    first, *_ = arms = [arm.name for arm in runs.study.arms if not arm.group]
    return [
        "## Curves",
        *(
            figures.curves(runs, model, arms[:_MOST_CURVES], first, quantity)
            for model in runs.models
            for quantity in ("accuracy", "loss")
        ),
    ]


def _part(block: str | Picture, folder: Path) -> str:
    if isinstance(block, str):
        return block
    path = Path("figures", f"{block.name}.png")
    with io.BytesIO() as content:
        block.figure.savefig(content, format="png")
        # A palette makes the file a third as large.
        Image.open(content).convert("RGB").quantize(_COLORS).save(
            folder / path, optimize=True
        )
    return f"![{block.title}]({path.as_posix()})\n\n*{block.caption}*"
