"""The pages of the API: an index by purpose, and a page for each public name."""

import importlib
import re
import shutil
from pathlib import Path

import plp_optax

# Purpose -> card in ``methods`` -> names, functions before classes.
PURPOSES = {
    "Averages, and what to evaluate": {
        "tail_average": "tail_average averaged_params evaluation_params merge "
        "merge_weights nnx.recompute_batch_stats linen.recompute_batch_stats "
        "TailAverageState",
        "bema": "bema bema_params BemaState",
    },
    "Averages that training uses": {
        "gpa": "gpa GPAState",
        "pace": "pace PaceState",
        "ema_nesterov": "ema_nesterov EmaNesterovState",
        "outer_nesterov": "outer_nesterov OuterNesterovState",
    },
    "Prediction, and windows of parameters": {
        "plp": "plp plp_sgd plp_adamw plp_coefficients effective_rate_multiplier "
        "lookahead lookahead_coefficients average_coefficients affine_window "
        "AffineWindowState",
    },
    "Full batches": {"anderson": "anderson AndersonState"},
    "Streams": {"ekf": "ekf EKFState"},
    "Amplification of layers": {
        "amplify_layers": "amplify_layers linen.propagate_amplification "
        "linen.amplify_cotangent by_score named all_layers at_random layer_analyses "
        "TrainingStrategy Stage AmplificationWindow Selector LayerAnalysis "
        "AmplifyLayersState",
    },
    "Layers: names, statistics, rates": {
        "monitor_layers": "monitor_layers layer_statistics layer_table layer_names "
        "stacked LayerStatistics MonitorLayersState",
        "noise_adaptive_rates": "noise_adaptive_rates NoiseAdaptiveRatesState",
    },
}
_OUTSIDE = {  # of flax, which is optional
    "linen.amplify_cotangent",
    "linen.propagate_amplification",
    "linen.recompute_batch_stats",
    "nnx.recompute_batch_stats",
}
_INDEX = """\
# API

{sections}

## You know it as

```{{include}} ../methods/index.md
:start-after: "<!-- names: begin -->"
:end-before: "<!-- names: end -->"
```

```{{toctree}}
:hidden:

{pages}
```
"""
_PAGE = """\
# {short}

```{{index}} {index}
```

{card}

```{{eval-rst}}
.. {directive}:: plp_optax.{name}
```
"""


def write(docs: Path) -> None:
    """Writes ``api``.

    Raises:
      ValueError: If a public name has no purpose, or the other way round.
    """
    folder = docs / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    others = _names_of_others(docs / "methods" / "index.md")
    sections, pages = [], []
    for purpose, cards in PURPOSES.items():
        rows: dict[bool, list[str]] = {False: [], True: []}  # functions, then classes
        for card, names in cards.items():
            title = (docs / f"methods/{card}.md").read_text().partition("\n")[0][2:]
            link = f"[{title}](../methods/{card}.md)"
            for name in names.split():
                is_class = name.rpartition(".")[2][0].isupper()
                known = others.get(name, [])
                # "Polyak" alone finds Polyak averaging.
                people = [m[0] for n in known if (m := re.match(r"[A-Z][a-z]+\b", n))]
                also = f" Also known as {', '.join(known)}." if known else ""
                (folder / f"plp_optax.{name}.md").write_text(
                    _PAGE.format(
                        short=name,
                        index=", ".join(f"! {n}" for n in [name, *known, *people]),
                        card=f"Method: {link}.{also}",
                        directive="autoclass" if is_class else "autofunction",
                        name=name,
                    )
                )
                role = "class" if is_class else "func"
                shown = f"{{{role}}}`{name} <plp_optax.{name}>`"
                rows[is_class].append(f"| {shown} | {_summary(name)} {link} |")
                pages.append(name)
        table = ["| name | and its card |", "|---|---|", *rows[False], *rows[True]]
        sections.append(f"## {purpose}\n\n" + "\n".join(table))
    if odd := {*pages} ^ {*plp_optax.__all__, *_OUTSIDE}:
        raise ValueError(f"docs/api_pages.py: PURPOSES and plp_optax differ in {odd}")
    index = _INDEX.format(
        sections="\n\n".join(sections),
        pages="\n".join(f"plp_optax.{name}" for name in pages),
    )
    (folder / "index.md").write_text(index)


def _summary(name: str) -> str:
    """The first line of a docstring, as Markdown."""
    place, _, short = f"plp_optax.{name}".rpartition(".")
    line = getattr(importlib.import_module(place), short).__doc__.splitlines()[0]
    line = re.sub(r":math:`(.*?)`", r"$\1$", line)
    return re.sub(r":\w+:`(.*?)`", r"`\1`", line)


def _names_of_others(page: Path) -> dict[str, list[str]]:
    """Other names of a function: the table "You know it as", for the search."""
    table = page.read_text().split("<!-- names: begin -->")[1].split("<!-- names")[0]
    found: dict[str, list[str]] = {}
    for row in table.splitlines():
        if match := re.match(r"\| (.*?) \| .*?`~?plp_optax\.(.*?)`", row):
            names = re.sub(r" \(.*?\)|`", "", match[1]).split(", ")
            found.setdefault(match[2], []).extend(names)
    return found
