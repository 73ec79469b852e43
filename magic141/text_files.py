"""Text files of records: JSON lines, and files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


def replace_text(file: Path, text: str) -> None:
    """Writes a file aside and renames it: who reads it meanwhile, or after a kill, finds the old one or the new."""
    with replacing(file) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file`, of its type, to write to; it becomes `file` at the end, and is removed after an error."""
    aside = file.with_name(f".{uuid4().hex}{file.suffix[:8]}")  # a name that every file system takes
    try:
        yield aside
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """A line of JSON per row."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return list(each_json_line(file))


def each_json_line(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines, one at a time."""
    with file.open(encoding="utf-8") as lines:  # not `splitlines`, which also cuts where a caption has a U+2028
        yield from map(json.loads, lines)
