"""The records as Markdown tables: commands print them, and the site includes them."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).parent / "records"
BASE = "sgd"  # the method that ahead_of_time compares others with

# The parts of a step that ``time_share`` times alone.
STEP, REST = "step", "rest"
STEP_PARTS = (
    "convolution, forward",
    "input gradient",
    "filter gradient",
    "normalisation",
    "update",
)

Record = Mapping[str, Any]


def show(record: Record) -> str:
    """The table of a record, and where and how it was measured."""
    rounds = f"{record['rounds']} rounds, " if "rounds" in record else ""
    where = (
        f"{rounds}{record['cores']} cores of an {record['processor']}, "
        f"JAX {record['jax']}, {record['time'][:10]}."
    )
    return f"{TABLES[record['benchmark']](record)}\n\n{where}"


def write_pages(folder: Path) -> None:
    """Writes a Markdown file for each record of a CPU."""
    folder.mkdir(exist_ok=True)
    for path in RECORDS.glob("*-cpu.json"):
        record = read(path.stem)
        text = f"{show(record)} Record: `benchmarks/records/{path.name}`.\n"
        (folder / f"{record['benchmark']}.md").write_text(text, encoding="utf-8")


def read(name: str) -> Record:
    """A committed record."""
    record: Record = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _step_overhead(record: Record) -> str:
    return _table(
        "optimizer | state | temporaries | time / SGD | added to a training step",
        (
            (
                name,
                f"{arm['state_copies']:.2f}",
                f"{arm['temporary_copies']:.2f}",
                _quartiles(arm["time_ratio"]),
                f"{arm['training_step_overhead']:+.1%}",
            )
            for name, arm in record["arms"].items()
        ),
    )


def _throughput(record: Record) -> str:
    peers = [] if record["torch_absent"] else ["torch eager", "torch compiled"]

    def rate(arm: Record) -> str:
        if "images_per_second" not in arm:
            return "failed" if "failed" in arm else ""
        return f"{arm['images_per_second']['median']:.0f}, {arm['of_product']:.0%}"

    def row(cell: Record) -> Iterable[str]:
        yield f"{cell['model']}, {cell['precision']}, {cell['batch_size']}"
        arms = [cell["arms"].get(name, {}) for name in ("jax", *peers)]
        yield from map(rate, arms)
        for arm in arms[1:]:
            yield _quartiles(arm["speedup"]) if "speedup" in arm else ""
            yield f"{arm['best_speedup']:.2f}" if "best_speedup" in arm else ""

    heads = ["network, precision, batch", "JAX, images/s and share of a product's rate"]
    heads += [peer.replace("torch", "PyTorch") for peer in peers]
    for peer in peers:
        heads += [f"JAX / {peer.removeprefix('torch ')}", "in the best rounds"]
    text = _table(" | ".join(heads), map(row, record["cells"]))
    return text if peers else f"{text}\n\nNo PyTorch: {record['torch_absent']}."


def _time_share(record: Record) -> str:
    def row(cell: Record) -> Iterable[str]:
        times = cell["milliseconds"]
        yield f"{cell['width']}, {cell['library']}"
        yield f"{times[STEP]:.0f}"
        for value in (*(times[part] for part in STEP_PARTS), rest_of_step(times)):
            yield f"{value:.0f} ({value / times[STEP]:.0%})"

    heads = ["width, library", "step, ms", *STEP_PARTS, REST]
    return _table(" | ".join(heads), map(row, record["cells"]))


def rest_of_step(times: Mapping[str, float]) -> float:
    """The time of a step less that of its parts."""
    return times[STEP] - sum(times[part] for part in STEP_PARTS)


def _trainer_overhead(record: Record) -> str:
    return _table(
        "arm | milliseconds | time / bare step | in the best rounds",
        (
            (
                name,
                f"{arm['milliseconds']:.0f}",
                _quartiles(arm["time_ratio"]),
                f"{arm['best_ratio']:.2f}",
            )
            for name, arm in record["arms"].items()
        ),
    )


def _first_step(record: Record) -> str:
    text = _table(
        "compilation cache | seconds until compilation | until the first epoch",
        (
            (name, *(_quartiles(arm[k]) for k in ("to_compiling", "to_first_epoch")))
            for name, arm in record["arms"].items()
        ),
    )
    floor = _quartiles(record["floor_seconds"])
    return f"{text}\n\nImporting JAX and compiling a sum takes {floor} seconds."


def _host_input(record: Record) -> str:
    return _table(
        "feed | alone, batches/s | training, images/s | time / resident images",
        (
            (
                name,
                f"{feed['batches_per_second']['median']:,.0f}"
                if feed["batches_per_second"]
                else "",
                f"{feed['images_per_second']['median']:.0f}",
                _quartiles(feed["time_ratio"]),
            )
            for name, feed in record["feeds"].items()
        ),
    )


def _ahead_of_time(record: Record) -> str:
    def number(value: float | None, unit: float, format_: str) -> str:
        return "" if value is None else format(value / unit, format_)

    def row(cell: Record) -> Iterable[str]:
        yield f"{cell['devices']} x {cell['device_kind']}"
        yield step_of(cell)
        yield cell["method"]
        if "failed" in cell:
            yield "failed"
            return
        base = bases.get((cell["devices"], cell["device_kind"], step_of(cell)), {})
        size, accessed = cell["parameter_bytes"], cell["accessed_bytes"]
        more = ratio = None
        if "temporary_bytes" in base:
            more = cell["temporary_bytes"] - base["temporary_bytes"]
        if accessed and base.get("accessed_bytes"):
            ratio = accessed / base["accessed_bytes"]
        yield f"{cell['state_bytes'] / size - 1:.2f}"
        yield number(cell["temporary_bytes"], 1e6, ".0f")
        yield number(more, size, "+.2f")
        yield number(cell["peak_bytes"], 1e6, ".0f")
        yield number(cell["operations"], 1e9, ".1f")
        yield number(accessed, 1e9, ".2f")
        yield number(ratio, 1, ".2f")
        yield f"{cell['collectives']} ({cell['collective_bytes'] / 1e6:.1f} MB)"

    bases = {
        (cell["devices"], cell["device_kind"], step_of(cell)): cell
        for cell in record["cells"]
        if cell["method"] == BASE
    }
    text = _table(
        f"devices | step | method | state (copies) | temporaries (MB) | - {BASE} "
        f"(copies) | peak (MB) | GFLOP | accessed (GB) | / {BASE} | collectives",
        map(row, record["cells"]),
    )
    return f"{text}\n\nA step on one device, {record['kind']}."


def step_of(cell: Record) -> str:
    """The training step that a cell of ``ahead_of_time`` compiles, but its method."""
    step = ", ".join(cell[name] for name in ("model", "precision", "input"))
    return step + (f" {cell['images']:,}" if cell["input"] == "resident" else "")


TABLES: dict[str, Callable[[Record], str]] = {
    "step_overhead": _step_overhead,
    "throughput": _throughput,
    "time_share": _time_share,
    "trainer_overhead": _trainer_overhead,
    "first_step": _first_step,
    "host_input": _host_input,
    "ahead_of_time": _ahead_of_time,
}


def _table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table whose columns are aligned in a terminal, too."""
    lines = [head.split(" | "), *map(list, rows)]
    lines = [line + [""] * (len(lines[0]) - len(line)) for line in lines]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def joined(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines.insert(1, ["-" * widths[0], *(f"{'-' * (w - 1)}:" for w in widths[1:])])
    return "\n".join(
        joined([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )


def _quartiles(values: Mapping[str, float]) -> str:
    text = f"{values['median']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"
    return text.replace(" ", "\N{NO-BREAK SPACE}")
