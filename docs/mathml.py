"""Formulas as MathML, which browsers draw without a script."""

from typing import Any

from docutils import nodes
from math_core import LatexToMathML
from sphinx.application import Sphinx
from sphinx.writers.html import HTML5Translator

_convert = LatexToMathML().convert_with_local_state


def _inline(translator: HTML5Translator, node: nodes.Element) -> None:
    translator.body.append(_convert(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.Element) -> None:
    latex = node.astext().strip()
    if r"\\" in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    formula = _convert(latex, displaystyle=True)
    translator.body.append(f'<div class="math">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
