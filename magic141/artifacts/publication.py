"""Publishes results as artifacts: written to a staging folder, named by content, visible only when complete."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.file_records import record_path

DIGEST_CHARS = 12


class Published(NamedTuple):
    """The folder of an artifact, and its content digest."""

    path: Path
    digest: str


@contextmanager
def staging(final: Path) -> Iterator[Path]:
    """An empty folder beside `final` to write an artifact into; removed at the end unless it was published."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _clear_staging(final)  # left by a killed worker: the caller holds the key's lock
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
    """Publishes a staging folder as `place` plus its digest, beside other contents of the same key.

    Args:
        folder: the finished staging folder.
        place: named by the stage key; the digest is appended.
        volatile: names that do not count in the digest.
    """
    digest = digest_folder(folder, volatile, record_path(folder))
    final = place.with_name(f"{place.name}-{digest[:DIGEST_CHARS]}")
    if record_path(folder).exists():
        record_path(folder).replace(record_path(final))
    publish(folder, final)
    return Published(final, digest)


def is_published_whole(folder: Path, volatile: Iterable[str] = ()) -> bool:
    """Whether a folder has the content that its name says, which `publish_by_content` gave it."""
    digest = folder.name.rpartition("-")[2]
    return len(digest) == DIGEST_CHARS and digest_folder(folder, volatile, record_path(folder)).startswith(digest)


def publish(folder: Path, final: Path) -> None:
    """Makes a finished staging folder visible as `final` by renaming it; replaces an older `final`.

    All of it is on the disk before it is visible: a machine that loses its power would keep the name of a file whose
    content it had only in memory.
    """
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            _to_disk(path)
    old = final.parent / f".old-{final.name}"
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    folder.replace(final)
    _to_disk(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk; some file systems cannot say so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(handle)


@contextmanager
def written_aside(final: Path) -> Iterator[Path]:
    """An empty folder that becomes `final` (replacing it) only if the block ends without an error."""
    with staging(final) as folder:
        yield folder
        publish(folder, final)


def link_or_copy(source: str, target: str) -> str:
    """Hard-links a file, or copies it if that is impossible; files of artifacts never change. For `shutil.copytree`."""
    content = os.path.realpath(source)  # checkpoints often consist of symbolic links, which os.link would not follow
    try:
        os.link(content, target)
    except OSError:
        shutil.copy2(source, target)
    return target
