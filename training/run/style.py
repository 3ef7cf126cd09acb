"""The style of all pictures: sizes, colours, axes, legends.

A picture answers one question, which is its title. It is as wide as a page shows it, so
that its text has the size that is set here.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis

# Figure, not pyplot: no global state, no display, and a quicker import.
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's colours, which colour-blind readers can distinguish.
BLACK, ORANGE, GREEN, PURPLE = "#000000", "#E69F00", "#009E73", "#CC79A7"
BLUE, VERMILION = "#0072B2", "#D55E00"
GREY, PALE = "#777777", "#C8C8C8"

WIDTH = 8.4  # inches
TITLE, TEXT, SMALL = 11, 9.5, 8.5  # points
# Text of the user's is no mathematics and no TeX.
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


def figure(title: str, height: float, width: float = WIDTH) -> Figure:
    """An empty figure, in inches, that lays itself out."""
    new = Figure(figsize=(width, height), dpi=100, layout="constrained")
    shown = "".join(c if has_glyphs(c) else "?" for c in title)
    lines = textwrap.fill(shown, int(11 * width))
    new.suptitle(lines, fontsize=TITLE, fontweight="bold", **LITERAL)
    return new


def dress(ax: Axes, *, xlabel: str, ylabel: str, title: str = "") -> None:
    """Labels, a light grid, no box; epochs as whole numbers."""
    ax.set_xlabel(xlabel, fontsize=TEXT)
    ax.set_ylabel(ylabel, fontsize=TEXT)
    ax.set_title(title, fontsize=TEXT, loc="left")
    ax.tick_params(labelsize=SMALL)
    ax.grid(alpha=0.25, lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if xlabel in ("epoch", "step"):
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def number_logarithms(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: decades, or 1, 2 and 5 on less than two."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(
    figure: Figure, handles: Mapping[str, Artist] | None = None, title: str = ""
) -> None:
    """One legend below all axes, no wider than the figure; an entry for each name."""
    entries: dict[str, Artist] = dict(handles or {})
    for ax in figure.axes if handles is None else ():
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for rows in range(-(-len(entries) // 5), len(entries) + 1):
        drawn = figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=-(-len(entries) // max(rows, 1)),
            frameon=False,
            fontsize=SMALL,
            title=title or None,
            title_fontsize=SMALL,
        )
        if drawn.get_window_extent().width <= figure.bbox.width:
            return
        drawn.remove()


def has_glyphs(text: str) -> bool:
    """Whether the font can show a text, on one line."""
    font = get_font(findfont(FontProperties()))
    return text.isprintable() and all(font.get_char_index(ord(c)) for c in text)
