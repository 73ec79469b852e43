"""Content digests: of files, of folders, and of what a user owns."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from magic141.artifacts.file_records import file_digests
from magic141.errors import UserError

CHUNK_BYTES = 1 << 20
FileSelection = Callable[[Path, list[Path]], list[Path]]  # of the files in a folder
SMALL_SOURCE_BYTES = 256 << 20
MISSING = "missing"


def digest_folder(folder: Path, volatile: Iterable[str] = (), record: Path | None = None) -> str:
    """sha256 over the relative names and contents of all files below `folder`, except the `volatile` names.

    Args:
        folder: the folder to digest.
        volatile: names that do not count.
        record: file that caches the digests of a large folder's files (`record_path`), to read only changed ones.
    """
    skipped = set(volatile)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if path.relative_to(folder).as_posix() not in skipped]
    return _digest_files(folder, kept, record)


def digest_file(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_source(path: Path, select: FileSelection | None = None) -> str:
    """Digest of a file or folder that the user owns: of its content if small, else of names, sizes and times.

    A path that does not exist digests to 'missing', so that a plan can be made before the data is there.

    Args:
        path: the file or folder.
        select: those of a folder's files that count, given the folder and all of them.
    """
    if not path.exists():
        return MISSING
    files = [path] if path.is_file() else source_files(path)
    if select is not None and path.is_dir():
        files = select(path, files)
    if sum(file.stat().st_size for file in files) <= SMALL_SOURCE_BYTES:
        return digest_file(path) if path.is_file() else _digest_files(path, files)
    stats = [(file.relative_to(path).as_posix(), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256_text(canonical_json(stats))


def source_files(folder: Path) -> list[Path]:
    """All files below a folder that the user owns, sorted; follows links to folders, skips names that begin with a dot.

    A folder that can be reached in several ways counts once, and not through a link if there is another way.

    Raises:
        UserError: if a folder cannot be listed, so that what it holds would be missing without a word.
    """
    files: list[Path] = []
    seen: set[Path] = set()
    starts = [folder]
    for start in starts:
        for root, folders, names in os.walk(start, onerror=_refuse_unlisted):
            here = Path(root)
            if here.resolve() in seen:
                folders.clear()
                continue
            seen.add(here.resolve())
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [here / name for name in folders if (here / name).is_symlink()]
            files += [here / name for name in names if not name.startswith(".")]
    return sorted(path for path in files if path.is_file())


def _refuse_unlisted(error: OSError) -> None:
    if Path(error.filename).name != "lost+found":  # of a whole file system
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable, or move it away")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256_text(text: str) -> str:
    """sha256 of a string; names of files that are not UTF-8 count by their bytes."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _digest_files(folder: Path, files: Iterable[Path], record: Path | None = None) -> str:
    named = {path.relative_to(folder).as_posix(): path for path in files}
    digests = file_digests(digest_file, named, record)
    return sha256_text("\n".join(f"{name}\0{digest}" for name, digest in zip(named, digests, strict=True)))
