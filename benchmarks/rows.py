"""Measurements kept as JSON, a row a line, so that a difference of versions shows the rows that changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The rows that are there, none without a file."""
    return json.loads(path.read_text()) if path.is_file() else []


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
