"""The tables of the benchmarks page, from the committed records."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def _table(head: str, rows: Iterable[Iterable[object]]) -> str:
    columns = head.split(" | ")
    rule = [":--", *("--:" for _ in columns[1:])]
    lines = [columns, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _interval(values: dict[str, float]) -> str:
    text = f"{values['median']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def step_overhead(record: Record) -> str:
    return _table(
        "optimizer | state | temporaries | time / SGD | added to a training step",
        (
            (
                name,
                f"{arm['state_copies']:.2f}",
                f"{arm['temporary_copies']:.2f}",
                _interval(arm["time_ratio"]),
                f"{arm['training_step_overhead']:+.1%}",
            )
            for name, arm in record["arms"].items()
        ),
    )


def throughput(record: Record) -> str:
    def row(cell: Record) -> Iterable[object]:
        yield f"{cell['model']}, {cell['precision']}"
        for arm in ("jax", "torch eager", "torch compiled"):
            yield f"{cell['arms'][arm]['images_per_second']['median']:.0f}"
        for arm in ("torch eager", "torch compiled"):
            yield _interval(cell["arms"][arm]["speedup"])

    return _table(
        "network | JAX, images/s | PyTorch eager | PyTorch compiled "
        "| JAX / eager | JAX / compiled",
        map(row, record["cells"]),
    )


def trainer_overhead(record: Record) -> str:
    return _table(
        "arm | milliseconds | time / bare step",
        (
            (name, f"{arm['milliseconds']:.0f}", _interval(arm["time_ratio"]))
            for name, arm in record["arms"].items()
        ),
    )


def first_step(record: Record) -> str:
    return _table(
        "compilation cache | seconds until compilation | until the first epoch",
        (
            (name, _interval(arm["to_compiling"]), _interval(arm["to_first_epoch"]))
            for name, arm in record["arms"].items()
        ),
    )


def host_input(record: Record) -> str:
    return _table(
        "feed | images/s | time / resident images",
        (
            (
                name,
                f"{feed['images_per_second']['median']:.0f}",
                _interval(feed["time_ratio"]),
            )
            for name, feed in record["feeds"].items()
        ),
    )


TABLES: tuple[Callable[[Record], str], ...] = (
    step_overhead,
    throughput,
    trainer_overhead,
    first_step,
    host_input,
)


def write_tables(records: Path, folder: Path) -> None:
    """One Markdown file for each record of a CPU, with where it was measured."""
    folder.mkdir(exist_ok=True)
    for table in TABLES:
        path = records / f"{table.__name__}-cpu.json"
        record = json.loads(path.read_text())
        where = (
            f"{record['cores']} cores of an {record['processor']}, "
            f"JAX {record['jax']}, {record['time'][:10]}. "
            f"Record: `benchmarks/records/{path.name}`."
        )
        (folder / f"{table.__name__}.md").write_text(f"{table(record)}\n\n{where}\n")
