"""A report's pages: made once, rendered as Markdown and as one HTML file."""

import base64
import dataclasses
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of sentences under a title."""

    title: str
    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Notice:
    """What a reader must not overlook."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      title: What it shows, in one line.
      header: The names of the columns.
      rows: As many cells each as the header.
      note: What a reader needs to read it right.
      left: How many of the first columns hold words, not numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"table {self.title!r} is not rectangular")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
      name: The name of its file, without the ending.
      figure: The figure.
      caption: What it shows, in whole sentences.
    """

    name: str
    figure: Figure
    caption: str


Block = str | Bullets | Notice | Table | Picture  # a string is a paragraph


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    heading: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Page:
    """A report."""

    title: str
    sections: Sequence[Section]


def write(page: Page, folder: Path) -> Path:
    """Writes ``report.md``, ``report.html`` and ``figures/*.png``.

    Args:
      page: The report.
      folder: Where to; made if it is not there.

    Returns:
      The Markdown file.
    """
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                drawn[block.name] = pictures / f"{block.name}.png"
                _save(block.figure, drawn[block.name])
    for stale in set(pictures.glob("*.png")) - set(drawn.values()):
        stale.unlink()
    path = folder / "report.md"
    path.write_text(to_markdown(page), encoding="utf-8")
    encoded = {name: path.read_bytes() for name, path in drawn.items()}
    (folder / "report.html").write_text(to_html(page, encoded), encoding="utf-8")
    return path


# -- Markdown ----------------------------------------------------------------------


def _save(figure: Figure, path: Path) -> None:
    """Saves a figure as a PNG file of 256 colours, a third of the size of all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    # Without a date or version, so that equal pictures are equal files.
    few.save(path, optimize=True)


def to_markdown(page: Page) -> str:
    """The page as GitHub's Markdown; pictures are ``figures/NAME.png``."""
    parts = [f"# {_plain(page.title)}"]
    for section in page.sections:
        parts.append(f"## {_plain(section.heading)}")
        parts += [_markdown(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case str():
            return _plain(block)
        case Bullets():
            items = "\n".join(f"- {_plain(item)}" for item in block.items)
            return f"**{_plain(block.title)}**\n\n{items}"
        case Notice():
            return f"> **{_plain(block.text)}**"
        case Picture():
            caption = _plain(block.caption)
            return f"![{block.name}](figures/{block.name}.png)\n\n*{caption}*"
        case Table():
            marks = [
                ":--" if column < block.left else "--:"
                for column in range(len(block.header))
            ]
            lines = [block.header, marks, *block.rows]
            text = "\n".join(
                # The line of marks is Markdown's own.
                f"| {' | '.join(line if line is marks else map(_cell, line))} |"
                for line in lines
            )
            note = f"\n\n*{_plain(block.note)}*" if block.note else ""
            return f"**{_plain(block.title)}**\n\n{text}{note}"


def _plain(text: str) -> str:
    return re.sub(r"([*<`])", r"\\\1", text).replace("](", r"]\(")


def _cell(text: str) -> str:
    return _plain(text).replace("|", r"\|")


# -- HTML --------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --faint: #666; --line: #ddd; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 58rem; padding: 1.5rem 1rem 4rem; background: #fff;
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .8rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.3rem 0 .4rem; }
p, ul { max-width: 44rem; margin: .7rem 0; }
ul { padding-left: 1.3rem; }
li { margin: .35rem 0; }
nav { color: var(--faint); font-size: .9rem; }
nav a { color: inherit; margin-right: 1rem; display: inline-block; }
.notice { padding: .7rem 1rem; font-weight: 600; background: #fff4e5;
  border-left: 4px solid #d55e00; }
figure { margin: 1.4rem 0; }
figcaption { max-width: 44rem; color: var(--faint); font-size: .9rem; margin: .3rem 0; }
figcaption.title { color: var(--ink); font-weight: 600; font-size: 1rem; }
img { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
.left { text-align: left; white-space: normal; min-width: 7rem; }
"""


def to_html(page: Page, pictures: dict[str, bytes]) -> str:
    """The page as one HTML file that needs nothing else.

    Args:
      page: The report.
      pictures: PNG files by name.
    """
    links = "\n".join(
        f'<a href="#section-{number}">{html.escape(section.heading)}</a>'
        for number, section in enumerate(page.sections)
    )
    body = "\n".join(
        f'<section id="section-{number}">\n<h2>{html.escape(section.heading)}</h2>\n'
        + "\n".join(_html(block, pictures) for block in section.blocks)
        + "\n</section>"
        for number, section in enumerate(page.sections)
    )
    title = html.escape(page.title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, pictures: dict[str, bytes]) -> str:
    match block:
        case str():
            return f"<p>{html.escape(block)}</p>"
        case Bullets():
            items = "\n".join(f"<li>{html.escape(item)}</li>" for item in block.items)
            return f"<h3>{html.escape(block.title)}</h3>\n<ul>\n{items}\n</ul>"
        case Notice():
            return f'<p class="notice">{html.escape(block.text)}</p>'
        case Picture():
            data = base64.b64encode(pictures[block.name]).decode()
            return (
                f'<figure>\n<img alt="{html.escape(block.name)}" '
                f'src="data:image/png;base64,{data}">\n'
                f"<figcaption>{html.escape(block.caption)}</figcaption>\n</figure>"
            )
        case Table():
            header = _html_row("th", block.header, block.left)
            rows = "\n".join(_html_row("td", row, block.left) for row in block.rows)
            note = html.escape(block.note)
            return (
                f'<figure>\n<figcaption class="title">{html.escape(block.title)}'
                '</figcaption>\n<div class="scroll">\n<table>\n<thead>\n'
                f"{header}\n</thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
                + (f"<figcaption>{note}</figcaption>\n" if note else "")
                + "</figure>"
            )


def _html_row(tag: str, cells: Sequence[str], left: int) -> str:
    kinds = [' class="left"' if column < left else "" for column in range(len(cells))]
    row = "".join(
        f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
        for kind, cell in zip(kinds, cells, strict=True)
    )
    return f"<tr>{row}</tr>"
