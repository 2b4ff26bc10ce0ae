"""Rows in a folder of one's own, and silence, for tests of what reads data and says where it is from."""

import json
from pathlib import Path


def silent(line: str) -> None:
    """Takes what would be announced."""


def write(path: Path, rows: list) -> None:
    """A JSON-lines file; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
