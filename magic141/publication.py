"""How a result becomes an artifact: written aside, named by its content, and visible only whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from magic141.artifacts import digest_folder
from magic141.file_records import record_path

DIGEST_CHARS = 12


class Published(NamedTuple):
    """Where an artifact lies, and its content digest."""

    path: Path
    digest: str


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` to write an artifact into; removed on the way out unless it was published."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _clear_staging(final)  # of a killed worker: the caller holds the key's lock
    folder = final.parent / f".staging-{final.name}-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        _clear_staging(final)


def _clear_staging(final: Path) -> None:
    for left in final.parent.glob(f".staging-{final.name}-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for old in final.parent.glob(".old-*"):  # set aside by a worker that was killed while it published
        whole = old.with_name(old.name.removeprefix(".old-"))
        if f"{whole.name}-".startswith(f"{final.name}-"):
            shutil.rmtree(old) if whole.exists() else old.replace(whole)


def publish_by_content(folder: Path, place: Path, volatile: Iterable[str] = ()) -> Published:
    """Publishes a staging folder as `place` and its digest: what had other content under the same key stays beside it.

    Args:
        folder: the finished staging folder.
        place: named by the stage key; the digest is appended.
        volatile: names that do not count in the digest.
    """
    digest = digest_folder(folder, volatile, record_path(folder))
    final = place.with_name(f"{place.name}-{digest[:DIGEST_CHARS]}")
    record_path(final).unlink(missing_ok=True)  # of the same content, written at another time
    if record_path(folder).exists():
        record_path(folder).replace(record_path(final))
    publish(folder, final)
    return Published(final, digest)


def publish(folder: Path, final: Path) -> None:
    """Makes a finished staging folder visible as `final` by renaming; an older `final` is replaced."""
    old = final.parent / f".old-{final.name}"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    folder.replace(final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """An empty folder that becomes `final` (replacing it) only if the block ends without an error."""
    with staging(final) as folder:
        yield folder
        publish(folder, final)


def link_or_copy(source: str, target: str) -> str:
    """A hard link where the file system allows it: files of artifacts never change. For `shutil.copytree`."""
    content = os.path.realpath(source)  # downloaded checkpoints consist of links, and Linux would link the link
    try:
        os.link(content, target)
    except OSError:
        shutil.copy2(source, target)
    return target
