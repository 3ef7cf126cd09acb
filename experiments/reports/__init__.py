"""Sections that only one study's report has, a module a study."""

import json
from pathlib import Path
from typing import Any

from experiments.figures import Picture

# Markdown, a picture, or None for a picture that could not be drawn.
ReportBlock = str | Picture | None


def published(name: str) -> dict[str, Any]:
    """A paper's numbers, from ``experiments/published``."""
    path = Path(__file__).parents[1] / "published" / f"{name}.json"
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
