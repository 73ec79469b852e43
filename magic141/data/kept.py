"""What of a stage's work survives a crash: records that are there whole or not at all, and what the probe found."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from magic141.artifacts.digests import canonical_json, sha256_text
from magic141.text_files import replace_text

PROBES_A_PIECE = 256  # results that a kill may lose at most
SECONDS_A_PIECE = 60.0  # after which the results so far reach the disk


def write_record(path: Path, value: object) -> None:
    """Writes a JSON value with its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256_text(canonical_json(value))
    replace_text(path, json.dumps({"sha256": digest, "value": value}))  # fields stay in order: they become a manifest's


def read_record(path: Path) -> Any:
    """The value of a record; None if there is none, or one that is torn or altered."""
    try:
        record = json.loads(path.read_bytes())
        value, digest = record["value"], record["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if sha256_text(canonical_json(value)) == digest else None


class ProbeRecords:
    """Files and what probing found: a list of what is known of a usable one, or the reason why one cannot be used.

    Lists are kept piece by piece, reasons only once clips are cut without these files: until then, a file that a disk
    did not give for a while is probed again by the next attempt.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found: dict[str, list[Any] | str] = {}
        pieces = [read_record(path) or {} for path in sorted(folder.glob("*.json"))]
        for piece in pieces:
            self.found.update(piece)
        self._num_pieces, self._num_read = len(pieces), len(self.found)
        self._new: dict[str, list[Any]] = {}
        self._written = time.monotonic()

    def add(self, file: str, result: list[Any] | str) -> None:
        """Adds a result; these reach the disk several at a time."""
        self.found[file] = result
        if not isinstance(result, str):
            self._new[file] = result
        if len(self._new) >= PROBES_A_PIECE or time.monotonic() > self._written + SECONDS_A_PIECE:
            self._flush()

    @contextmanager
    def flushed_at_the_end(self) -> Iterator[None]:
        """All that was added reaches the disk in the end, even if what is inside fails."""
        try:
            yield
        finally:
            self._flush()

    def settle(self) -> None:
        """Keeps everything: from here on, every attempt cuts the same clips."""
        if len(self.found) > self._num_read:
            self._write(self.found)

    def _flush(self) -> None:
        if self._new:
            self._write(self._new)
        self._new = {}
        self._written = time.monotonic()

    def _write(self, results: Mapping[str, list[Any] | str]) -> None:
        write_record(self._folder / f"{self._num_pieces:05d}.json", results)
        self._num_pieces += 1
