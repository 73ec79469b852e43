"""Caches the digests of a large artifact's files beside it, so that only files that may have changed are read again.

The cache is no part of the artifact and can be deleted at any time: everything is then read once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from magic141.text_files import replace_text

ALWAYS_READ_BYTES = 1 << 30  # artifacts up to this size are read whole at every check
NUM_THREADS = 8  # hashing releases the interpreter's lock


class FileRecord(NamedTuple):
    """Size, modification time and digest of a file when it was read."""

    size: int
    modified_ns: int
    sha256: str


RECORDS = TypeAdapter(dict[str, FileRecord])


def record_path(folder: Path) -> Path:
    """The file, beside an artifact's folder, that caches the digests of its files."""
    return folder.with_name(f"{folder.name}.files.json")


def file_digests(digest: Callable[[Path], str], files: Mapping[str, Path], record: Path | None) -> list[str]:
    """The digest of every file; those that `record` holds with the same size and time are not read.

    Args:
        digest: computes the digest of one file.
        files: name in the artifact -> file.
        record: the cache (`record_path`), which is updated; None reads everything.
    """
    if record is None:
        return _digest_each(digest, files.values())
    stats = {name: path.stat() for name, path in files.items()}  # before reading: what changes meanwhile is read again
    if sum(stat.st_size for stat in stats.values()) <= ALWAYS_READ_BYTES:
        return _digest_each(digest, files.values())
    known = _read(record)
    changed = [name for name, stat in stats.items() if known.get(name, ())[:2] != (stat.st_size, stat.st_mtime_ns)]
    fresh = dict(zip(changed, _digest_each(digest, map(files.__getitem__, changed)), strict=True))
    now = {
        name: FileRecord(stat.st_size, stat.st_mtime_ns, fresh[name] if name in fresh else known[name].sha256)
        for name, stat in stats.items()
    }
    if now != known:
        _write(record, now)
    return [file.sha256 for file in now.values()]


def _digest_each(digest: Callable[[Path], str], files: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(digest, files))


def _read(record: Path) -> dict[str, FileRecord]:
    """The cached records; empty if the file is missing, truncated or of another format."""
    try:
        return RECORDS.validate_json(record.read_bytes())
    except (OSError, ValueError):
        return {}


def _write(record: Path, files: Mapping[str, FileRecord]) -> None:
    with suppress(OSError):  # in a read-only workspace, the next check reads the files again
        replace_text(record, json.dumps(files))
