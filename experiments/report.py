"""Reports: from a study's records to Markdown and pictures."""

import importlib
import importlib.util
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from matplotlib.figure import Figure
from PIL import Image

from experiments import figures, tables
from experiments.comparisons import METRICS, Compared, Metric, compare_all
from experiments.figures import Picture
from experiments.records import Header, Record
from experiments.runs import Runs
from experiments.study import Study

CONCLUSIONS = "conclusions.md"  # written by hand, next to the records
_MOST_CURVES = 10  # arms that one picture holds
_COLORS = 64  # of a picture
_READ = (
    "The test set was read once a run, with the parameters of the best epoch: the one "
    "with the lowest validation loss, or the last one without a validation part."
)

# Markdown, a picture, or None for a picture that could not be drawn.
Block = str | Picture | None
_Sections = Callable[[Runs, Sequence[Compared]], list[Block]]


def write(
    study: Study, header: Header, records: Sequence[Record], folder: Path
) -> Path:
    """Writes a study's report: ``report.md`` and ``figures/*.png``.

    Conclusions and a chart of the comparisons come first, then all comparisons and
    results, what a study shows of its own, settings and versions. Conclusions are
    written by hand: the content of ``conclusions.md`` in the folder, if there is one.
    What is special to a study is in a module of ``experiments.reports`` with its name:
    ``sections(runs, found)`` returns blocks, and ``METRICS`` replaces those of
    ``experiments.comparisons`` (an empty one: the study makes its own comparisons).
    Without it there are curves of the arms.

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
    own = _own(study)
    metrics: Sequence[Metric] = getattr(own, "METRICS", METRICS)
    sections: _Sections = getattr(own, "sections", _curves)
    found = compare_all(runs, metrics)
    place = " on ".join(map(tables.join, filter(None, (runs.models, runs.datasets))))
    blocks = [
        f"# {study.title}: {place}",
        study.question,
        *_introduction(runs, folder),
        *_shared(runs, found, metrics),
        *([_READ] if study.execute is None else ()),
        *sections(runs, found),
        "## Settings and versions",
        tables.settings(runs),
        tables.versions(runs),
    ]
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    parts = [_part(list(group), folder) for group in _groups(blocks)]
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _own(study: Study) -> ModuleType | None:
    """The module of ``experiments.reports`` with the study's name, if there is one."""
    name = f"experiments.reports.{study.name}"
    has_own = importlib.util.find_spec(name) is not None
    return importlib.import_module(name) if has_own else None


def _shared(
    runs: Runs, found: Sequence[Compared], metrics: Sequence[Metric]
) -> list[Block]:
    """Comparisons and results; nothing for a study whose module has no METRICS."""
    if not metrics:
        return []
    compared = [
        figures.differences(runs, found, metrics[0]),
        "## Comparisons",
        *tables.comparisons(runs, found),
    ]
    return [
        *(compared if found else ()),
        "## Results",
        *tables.results(runs, metrics),
    ]


def _introduction(runs: Runs, folder: Path) -> list[Block]:
    blocks: list[Block] = []
    if short := tables.shortfalls(runs):
        blocks.append(f"> A reduced form of the study: {'; '.join(short)}.")
    conclusions = folder / CONCLUSIONS
    if conclusions.exists():
        text = conclusions.read_text(encoding="utf-8").strip()
        blocks += ["## Conclusions", text]
    return blocks


def _curves(runs: Runs, found: Sequence[Compared]) -> list[Block]:
    """Curves of the main part's arms."""
    del found
    first, *_ = arms = [arm.name for arm in runs.study.arms if not arm.group]
    drawn = [
        figures.curves(runs, model, arms[:_MOST_CURVES], first, quantity)
        for model in runs.models
        for quantity in ("accuracy", "loss")
    ]
    return ["## Curves", *drawn] if any(drawn) else []


def _groups(blocks: Sequence[Block]) -> Iterator[list[str | Picture]]:
    """Blocks one by one, except pictures of one kind that follow each other."""

    def kind(block: str | Picture) -> object:
        return id(block) if isinstance(block, str) else block.name.partition("-")[0]

    present = [block for block in blocks if block is not None]
    for _, group in itertools.groupby(present, key=kind):
        yield list(group)


def _part(group: Sequence[str | Picture], folder: Path) -> str:
    """Markdown, or pictures of one kind, which become one file."""
    pictures = [block for block in group if isinstance(block, Picture)]
    if not pictures:
        return "\n\n".join(map(str, group))
    path = Path("figures", f"{pictures[0].name}.png")
    _save([picture.figure for picture in pictures], folder / path)
    titles = "; ".join(picture.title for picture in pictures)
    captions = " ".join(dict.fromkeys(picture.caption for picture in pictures))
    return f"![{titles}]({path.as_posix()})\n\n*{captions}*"


def _save(figures_: Sequence[Figure], path: Path) -> None:
    images = []
    for figure in figures_:
        content = io.BytesIO()
        figure.savefig(content, format="png")
        images.append(Image.open(content).convert("RGB"))
    size = max(i.width for i in images), sum(i.height for i in images)
    sheet = Image.new("RGB", size, "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    # A palette makes the file a third as large.
    sheet.quantize(_COLORS).save(path, optimize=True)
