"""Whether a picture can be read."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def texts_of(figure):
    """The texts that are drawn; tick labels only where the axes show them."""
    hidden = set()
    for ax in [a for top in figure.axes for a in (top, *top.child_axes)]:
        if not ax.axison:
            hidden |= {*ax.xaxis.findobj(Text), *ax.yaxis.findobj(Text)}
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def assert_legible(figure):
    """No text is outside of the canvas, on another one, or smaller than 6 points."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = texts_of(figure)
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts}
    for text, box in boxes.items():
        name = text.get_text()
        assert text.get_fontsize() >= 6, name
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= figure.bbox.x1 + 1, name
        assert box.y1 <= figure.bbox.y1 + 1, name
    straight = [text for text in texts if text.get_rotation() % 90 == 0]
    for one, two in itertools.combinations(straight, 2):
        a, b = boxes[one], boxes[two]
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        overlap = min(width, height) > 2
        assert not overlap, f"{one.get_text()!r} is on {two.get_text()!r}"
