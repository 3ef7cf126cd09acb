"""The pages of the studies: the reports, with the result first and the rest folded."""

import re
import shutil
from pathlib import Path

# A study's conclusions in a line. Others have the report's title.
RESULTS = {
    "quick/readouts": "An average of one run comes close to a tuned decay",
    "small-patches/readouts": "Without batch normalisation no decay of its rate is "
    "shown to beat an average; a decay tuned for short runs is better there",
    "small-characters/readouts": "On a larger network no tuned decay up to 800 steps "
    "is shown to beat the average of one run; at 1,600 it does, by 0.006 nats",
    "full/small_batches": "On Muon EMA-Nesterov gains beyond rate and momentum",
    "quick/small_batches": "GPA without momentum gains; an average replaces the decay",
    "quick/predictors": "On full batches Anderson acceleration beats Nesterov; on two "
    "convex problems of three L-BFGS is ahead",
    "quick/sequential": "On streams the Kalman filter beats SGD and Adam",
    "quick/ablation": "PLP: no gain beyond that of a higher learning rate",
    "quick/mechanism": "At low rates PLP follows its matched rate",
    "quick/plp": "PLP on three networks: no difference shown",
    "full-tiny/plp": "PLP on all of CIFAR-100: within 0.0001 nats of its matched rate, "
    "on three seeds",
    "quick/vanishing": "Without normalisation a cascade trains what SGD cannot; batch "
    "normalisation does it better",
    "quick/cascade": "A cascade needs less memory, and ends at a higher loss",
    "quick/amplification": "Amplification of layers: no difference shown",
    "attention/amplification": "Amplification of ViT's layers: no difference shown",
    "quick/together": "Whether PLP and amplification add up remains open",
    "quick/acceleration": "On two CPU cores no acceleration technique is shown to be "
    "faster",
    "small/image_batches": "Predictors on CIFAR-100: no difference shown",
    "small/ablation": "PLP on CIFAR-100: the signs of the digits, on three seeds",
    "small/vanishing": "Vanishing gradients on CIFAR-100: three seeds, too few for a "
    "verdict",
    "small/plp": "PLP on CIFAR-100: three seeds, too few for a verdict",
    "small/mechanism": "PLP with heavy ball on CIFAR-100: three seeds, too few for a "
    "verdict",
    "small/amplification": "Amplification on CIFAR-100: three seeds, too few for a "
    "verdict",
    "small/together": "PLP and amplification on CIFAR-100: three seeds, too few for a "
    "verdict",
    "small/cascade": "A cascade on CIFAR-100 needs less memory; one seed",
    "quick-resnet18/mechanism": "PLP with heavy ball on ResNet-18: four seeds decide "
    "nothing",
    "quick-vgg29/vanishing": "In a deeper network only the cascade trains without "
    "normalisation",
    "converged/head_to_head": "On CIFAR-100 the average of one run replaces most of a "
    "decay at every length; noise-adaptive rates, amplification, Lookahead and PLP: no "
    "difference shown",
    "tune/head_to_head": "The rates that were tried on a network that converges",
    "tune/image_batches": "The rates that were tried on CIFAR-100",
    "tune/vanishing": "The rates that were tried without normalisation",
}
# The picture that shows a study's result, where it is not the first one.
_PICTURES = {
    f"{scale}/readouts": "anytime"
    for scale in ("quick", "small-characters", "small-patches")
}
_INDEX = """\
# Studies

Each study has a question, controls and paired seeds. `quick` is digits, characters or
small problems on two CPU cores; `small` is CIFAR-100 in part.

| | result |
|---|---|
{rows}

```{{toctree}}
:hidden:

{pages}
```
"""


def write(results: Path, docs: Path) -> None:
    """Writes ``studies``: a page for each report, and an index of the results."""
    folder = docs / "studies"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    found = {
        "/".join(report.parts[-3:-1]): report
        for report in results.glob("*/*/report.md")
    }
    order = [*filter(found.get, RESULTS), *sorted(found.keys() - RESULTS.keys())]
    rows = []
    for place in order:
        shutil.copytree(
            found[place].parent,
            folder / place,
            ignore=shutil.ignore_patterns("*.jsonl"),
        )
        text = found[place].read_text()
        (folder / place / "report.md").write_text(page(text, place))
        rows.append(_row(text, place))
    pages = "\n".join(f"{place}/report" for place in order)
    (folder / "index.md").write_text(_INDEX.format(rows="\n".join(rows), pages=pages))


def page(report: str, place: str) -> str:
    """The result, conclusions, the main picture and table; the rest is folded."""
    title, question, *blocks = report.strip().split("\n\n")
    table = next((i for i, block in enumerate(blocks) if block.startswith("| ")), None)
    main = _with_note(blocks, _picture(blocks, place))
    if table is not None:
        main += [table - 1, *_with_note(blocks, table)]  # with its title
        blocks[table] = f'<div class="long">\n\n{blocks[table]}\n\n</div>'
    sections: list[list[str]] = [[]]
    for block in (block for i, block in enumerate(blocks) if i not in main):
        if block.startswith("## "):
            sections.append([block])
        else:
            sections[-1].append(block)
    head, conclusions, *folded = sections
    name = title.removeprefix("# ")
    return "\n\n".join(
        [
            f"# {RESULTS.get(place, name)}",
            f"**{name}.** {question}" if place in RESULTS else question,
            *head,
            *conclusions,
            *(blocks[i] for i in main),
            "## Everything that was measured",
            *(_folded(*section) for section in folded if len(section) > 1),
        ]
    )


def _folded(name: str, *blocks: str) -> str:
    summary = f"<summary>{name.removeprefix('## ')}</summary>"
    return "\n\n".join([f"<details>{summary}", *blocks, "</details>\n"])


def _picture(blocks: list[str], place: str) -> int | None:
    found = [i for i, block in enumerate(blocks) if block.startswith("![")]
    named = [i for i in found if _PICTURES.get(place, "![") in blocks[i]]
    return next(iter([*named, *found]), None)


def _with_note(blocks: list[str], i: int | None) -> list[int]:
    """Where a picture or a table is, and the note below it if there is one."""
    if i is None:
        return []
    has_note = re.match(r"\*[^*]", "".join(blocks[i + 1 : i + 2]))
    return [i, i + 1] if has_note else [i]


def _row(report: str, place: str) -> str:
    name, _, *blocks = report.strip().split("\n\n")
    name, page = name.removeprefix("# "), f"{place}/report.md"
    picture = _picture(blocks, place)
    shown = ""
    if picture is not None:
        file = blocks[picture].rpartition("](")[2].removesuffix(")")
        shown = f"[![]({place}/{file})]({page})"
    return (
        f"| {shown} | **[{RESULTS.get(place, name)}]({page})**<br>{name} (`{place}`) |"
    )
