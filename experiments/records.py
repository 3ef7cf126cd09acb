"""Records of runs: one file for a study at a scale, a line a run."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from training.errors import RunError


@dataclasses.dataclass(frozen=True)
class Record:
    """A run that finished or diverged.

    Attributes:
      arm: The name of its arm.
      model: The network.
      seed: The seed, which pairs it with the other arms' runs.
      config: The run's configuration: ``training.settings.config.chosen``,
        without fields that follow by default.
      result: Its ``result.json``: ``best_epoch``, ``validation_loss`` (of that epoch),
        ``test_loss``, ``test_accuracy``, ``test_top1_error``, ``test_top5_error``,
        ``train_seconds``, ``epochs``, ``steps``, ``device``, versions. A run that
        diverged has ``{"diverged": the reason}`` instead.
      history: Its ``metrics.jsonl``, an epoch an entry: ``epoch``, ``step``,
        ``train_loss``, ``train_accuracy``, ``validation_loss``,
        ``validation_accuracy``, ``learning_rate``, norms; with amplification
        ``amplified`` (names of layers), and ``analysis`` (a list of rows) after epochs
        that were analysed.
      measures: Measurements that the study made during the run, by name.
      seconds: How long the run took since it was last resumed, with evaluation and
        observation and without compilation. NaN for records older than this field.
    """

    arm: str
    model: str
    seed: int
    config: dict[str, Any]
    result: dict[str, Any]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    measures: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = math.nan

    @property
    def diverged(self) -> bool:
        """Whether the run ended early because its loss was no longer finite."""
        return "diverged" in self.result

    def to_line(self) -> str:
        """The record as a line of JSON.

        Tables are stored by column, and floats with the digits that restore them
        exactly. There are no null fields, nor fields with their default.
        """
        history = [
            {**m, "analysis": _columns(m["analysis"])} if m.get("analysis") else m
            for m in self.history
        ]
        fields = {**vars(self), "history": _columns(history)}
        if math.isnan(self.seconds):
            del fields["seconds"]
        for name in ("history", "measures"):
            if not fields[name]:
                del fields[name]
        return json.dumps(_without_nulls(fields), separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The record that :meth:`to_line` wrote.

        Raises:
          ValueError: If the line is not JSON, or lacks a field.
        """
        fields = json.loads(line)
        try:
            history = _rows(fields.pop("history", {}))
            for metrics in history:
                if "analysis" in metrics:
                    metrics["analysis"] = _rows(metrics["analysis"])
            return cls(**fields, history=history)
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"not a record: {error}") from error


@dataclasses.dataclass(frozen=True)
class Header:
    """The first line of a file: fields that all its records share.

    Attributes:
      study: The study's name.
      scale: The scale's name.
      models: Its networks.
      fields: Its fields of ``training.settings.config.Config``.
    """

    study: str
    scale: str
    models: list[str]
    fields: Mapping[str, Any]


class RecordFile:
    """Records of a study at one scale, in the order in which the runs finished.

    Lines are only ever appended. The last of several records with the same arm,
    network and seed counts.

    Attributes:
      path: ``FOLDER/records.jsonl``.
    """

    def __init__(self, folder: Path) -> None:
        """Takes a study's folder, which need not exist."""
        self.path = folder / "records.jsonl"

    def read(self) -> list[Record]:
        """All records; see :meth:`read_all`."""
        return self.read_all()[1]

    def append(self, header: Header, record: Record | None = None) -> None:
        """Writes a record to the disk, after the header if the file is new.

        Args:
          header: The file's header; an existing file must have the same.
          record: The record; None to write the header alone.

        Raises:
          RunError: If the file is of another scale, or cannot be written.
        """
        with explained(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            first = json.dumps(vars(header), separators=(",", ":"))
            with self.path.open("ab+") as file:
                file.seek(0)
                content = file.read()
                end = content.rfind(b"\n") + 1
                if end and not _is_same(content[: content.index(b"\n")], first):
                    self._refuse(header)
                # A torn line goes. A file without one keeps what another process may
                # have added by now.
                if end < len(content):
                    file.truncate(end)
                lines = [] if end else [first]
                if record is not None:
                    lines.append(record.to_line())
                file.write("".join(f"{line}\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())

    def read_all(self) -> tuple[Header, list[Record]]:
        """The header and all records.

        A last line without its end was being written when the program was killed: it
        is left out, with a sentence on stderr.

        Raises:
          RunError: If there are no records, or a line is damaged.
        """
        try:
            content = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"{self.path.parent} holds no records ({error.strerror}): run the "
                f"study first"
            ) from error
        except ValueError as error:
            raise RunError(f"{self.path} is damaged ({error})") from error
        *lines, torn = content.split("\n")
        if torn:
            print(
                f"{self.path}: line {len(lines) + 1} is incomplete and left out; its "
                f"run will be repeated",
                file=sys.stderr,
            )
        if not lines:
            raise RunError(f"{self.path} is empty: run the study first")
        header, *records = (self._parse(i, line) for i, line in enumerate(lines))
        last = {(r.arm, r.model, r.seed): r for r in records}
        return header, list(last.values())

    def _parse(self, index: int, line: str) -> Any:
        try:
            return Record.from_line(line) if index else Header(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"line {index + 1} of {self.path} is damaged ({error}): remove it, "
                f"and its run will be repeated"
            ) from error

    def _refuse(self, header: Header) -> None:
        theirs, ours = vars(self.read_all()[0]), vars(header)
        differs = "; ".join(
            f"{name} {json.dumps(theirs[name])} there, {json.dumps(ours[name])} here"
            for name in ours
            if theirs[name] != ours[name]
        )
        raise RunError(
            f"{self.path} is of another scale ({differs}): choose another --out, or "
            f"remove it"
        )


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Says in a sentence that a study's folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror}): choose another --out, or "
            f"free some space; what is recorded remains"
        ) from error


def _is_same(line: bytes, other: str) -> bool:
    """Whether two lines hold the same JSON, in whatever order."""
    with contextlib.suppress(ValueError):
        return bool(json.loads(line) == json.loads(other))
    return False


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table by column; None where a row has no such entry."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return {n: c for n, c in columns.items() if any(x is not None for x in c)}


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The table of :func:`_columns` by row, without entries that are None."""
    return [
        {n: x for n, x in zip(columns, row, strict=True) if x is not None}
        for row in zip(*columns.values(), strict=True)
    ]


def _without_nulls(value: Any) -> Any:
    """Drops null fields of objects at any depth; entries of lists remain."""
    if isinstance(value, Mapping):
        return {n: _without_nulls(v) for n, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(v) for v in value]
    return value
