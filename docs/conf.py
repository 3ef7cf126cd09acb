"""The documentation site: ``sphinx-build -W -n -b html docs docs/_build``.

Formulas, pictures and links to other projects need no network: neither at the build,
nor in the browser.
"""

import os
import re
import sys
import zlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import plp_optax

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import api_pages
import pictures
import study_pages

from benchmarks import tables, time_share

project = "plp_optax"
author = "The plp_optax authors"
version = release = plp_optax.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "mathml",
    "myst_nb",
]
html_theme = "sphinx_book_theme"
# Where the repository is: REPOSITORY=https://... sphinx-build ...; pages link to it.
repository = os.environ.get("REPOSITORY")
link = {"name": "Repository", "url": repository, "icon": "fa-solid fa-code-branch"}
html_theme_options = {
    "navbar_persistent": [],  # search is in the side bar
    "icon_links": [link] if repository else [],
}
html_favicon = "_static/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_extra_path = ["llms.txt"]
html_title = "plp_optax"
exclude_patterns = ["_build", "jupyter_execute", "tables"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_in_temp = True
nb_execution_mode = "force"
nb_execution_timeout = 300  # seconds a cell
nb_merge_streams = True
nb_execution_raise_on_error = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True


def write_inventory(project: str, site: str) -> tuple[str, str]:
    """Links to another project: Sphinx's format of the list in ``inventories``."""
    inventory = DOCS / "inventories" / f"{project}.inv"
    head = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version:\n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = inventory.with_suffix(".txt").read_bytes()
    inventory.write_bytes(head.encode() + zlib.compress(lines))
    return site, str(inventory)


intersphinx_mapping = {
    "jax": write_inventory("jax", "https://docs.jax.dev/en/latest"),
    "optax": write_inventory("optax", "https://optax.readthedocs.io/en/latest"),
    "python": write_inventory("python", "https://docs.python.org/3"),
}
api_pages.write(DOCS)
study_pages.write(ROOT / "results", DOCS)
pictures.draw(DOCS / "methods" / "pictures")
tables.write_pages(DOCS / "tables")
time_share.draw(DOCS / "tables" / "time_share.png", tables.read("time_share-cpu"))


ELSEWHERE = {
    name: "class" if kind == "py:class" else "func"
    for inventory in (DOCS / "inventories").glob("*.txt")
    for name, kind, *_ in map(str.split, inventory.read_text().splitlines())
}


def link_names(*arguments: Any) -> None:
    """Names of other projects in a docstring become links."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        return f":{ELSEWHERE[name]}:`{name}`" if name in ELSEWHERE else match[0]

    lines = arguments[-1]
    for i, line in enumerate(lines):
        public = line.replace("jax.jaxlib._jax.Array", "jax.Array")
        lines[i] = re.sub(r"``([\w.]+)``", link, public)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_names, priority=1000)
