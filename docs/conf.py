"""The documentation site: ``sphinx-build -W -n -b html docs docs/_build``.

Formulas, pictures and links to other projects need no network: neither at the build,
nor in the browser.
"""

import importlib
import re
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import plp_optax

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import pictures

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
html_theme_options = {"navbar_persistent": []}  # search is in the side bar
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_extra_path = ["llms.txt"]
html_title = "plp_optax"
exclude_patterns = ["_build", "jupyter_execute", "tables", "**/conclusions.md"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True


def write_api() -> None:
    """One page for each public name, from its docstring."""
    folder = DOCS / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = [f"plp_optax.{name}" for name in plp_optax.__all__]
    names += [
        "plp_optax.linen.amplify_cotangent",
        "plp_optax.linen.propagate_amplification",
        "plp_optax.linen.recompute_batch_stats",
        "plp_optax.nnx.recompute_batch_stats",
    ]
    lines = []
    for name in names:
        place, _, short = name.rpartition(".")
        summary = getattr(importlib.import_module(place), short).__doc__.splitlines()[0]
        summary = re.sub(r":math:`(.*?)`", r"$\1$", summary)
        summary = re.sub(r":\w+:`(.*?)`", r"`\1`", summary)
        directive, role = "autofunction", "func"
        if short[0].isupper():
            directive, role = "autoclass", "class"
        page = f"# {short}\n\n```{{eval-rst}}\n.. {directive}:: {name}\n```\n"
        (folder / f"{name}.md").write_text(page)
        shown = f"~{name}" if place == "plp_optax" else name
        lines.append(f"| {{{role}}}`{shown}` | {summary} |")
    table = "\n".join(["| name | |", "|---|---|", *lines])
    entries = "\n".join(names)
    names_of_others = (
        "## You know it as\n\n```{include} ../methods/index.md\n"
        ':start-after: "<!-- names: begin -->"\n:end-before: "<!-- names: end -->"\n```'
    )
    pages = f"```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    index = f"# API\n\n{table}\n\n{names_of_others}\n\n{pages}"
    (folder / "index.md").write_text(index)


def copy_studies() -> None:
    """The reports of all studies, with their pictures."""
    folder = DOCS / "studies"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entries, rows = [], []
    for report in sorted((ROOT / "results").glob("*/*/report.md"), key=study_first):
        scale, study = report.parts[-3:-1]
        place = f"{scale}/{study}"
        shutil.copytree(
            report.parent,
            folder / place,
            ignore=shutil.ignore_patterns("*.jsonl", "conclusions.md"),
        )
        title = report.read_text().partition("\n")[0].removeprefix("# ")
        entries.append(f"{study}, {scale} <{place}/report>")
        rows.append(f"| [{title}]({place}/report.md) | `results/{place}` |")
    table = "\n".join(["| report | record |", "|---|---|", *rows])
    listing = "\n".join(entries)
    index = f"# Studies\n\n{table}\n\n```{{toctree}}\n:hidden:\n\n{listing}\n```\n"
    (folder / "index.md").write_text(index)


def study_first(report: Path) -> tuple[str, str]:
    scale, study = report.parts[-3:-1]
    return study, scale


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
write_api()
copy_studies()
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
