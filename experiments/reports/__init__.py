"""What only one study's report has, a module a study: each declares a ``REPORT``."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.figures import Picture
from experiments.table import METRICS, Metric, Table

# Markdown, a picture, or None for a picture that could not be drawn.
ReportBlock = str | Picture | None
Blocks = Callable[[Table], Sequence[ReportBlock]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a study's report has of its own.

    Attributes:
      sections: Makes its sections.
      metrics: What is compared; the first one is charted first.
      results: Makes the results; None for a table of the metrics.
      compared: Makes the table of the arms of which ``claims.csv`` speaks, where those
        are not the study's.
    """

    sections: Blocks
    metrics: Sequence[Metric] = METRICS
    results: Blocks | None = None
    compared: Callable[[Table], Table] = lambda table: table


def published(name: str) -> dict[str, Any]:
    """A paper's numbers, from ``experiments/published``."""
    path = Path(__file__).parents[1] / "published" / f"{name}.json"
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
