"""The documentation site: ``sphinx-build -W -b html docs docs/_build``."""

import shutil
from pathlib import Path

import plp_optax

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "plp_optax"
author = "The plp_optax authors"
version = release = plp_optax.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
]
html_theme = "sphinx_book_theme"
html_extra_path = ["llms.txt"]
html_title = "plp_optax"
exclude_patterns = ["_build", "jupyter_execute", "**/conclusions.md"]
myst_enable_extensions = ["dollarmath"]
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
    ]
    for name in names:
        short = name.rpartition(".")[2]
        directive = "autoclass" if short[0].isupper() else "autofunction"
        page = f"# {short}\n\n```{{eval-rst}}\n.. {directive}:: {name}\n```\n"
        (folder / f"{name}.md").write_text(page)
    entries = "\n".join(names)
    index = f"# API\n\n```{{toctree}}\n:maxdepth: 1\n\n{entries}\n```\n"
    (folder / "index.md").write_text(index)


def copy_studies() -> None:
    """The reports of all studies, with their pictures."""
    folder = DOCS / "studies"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    entries = []
    for report in sorted((ROOT / "results").glob("*/*/report.md")):
        scale, study = report.parts[-3:-1]
        target = folder / scale / study
        shutil.copytree(
            report.parent,
            target,
            ignore=shutil.ignore_patterns("*.jsonl", "conclusions.md"),
        )
        entries.append(f"{study}, {scale} <{scale}/{study}/report>")
    listing = "\n".join(sorted(entries))
    index = f"# Studies\n\n```{{toctree}}\n:maxdepth: 1\n\n{listing}\n```\n"
    (folder / "index.md").write_text(index)


write_api()
copy_studies()
