"""`magic141 gc`: removes folders that no run refers to any more, such as artifacts of runs deleted in MLflow.

It only removes folders whose names have our form, with a stage key that a store of this workspace knows.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from magic141.artifacts.file_records import record_path
from magic141.artifacts.publication import DIGEST_CHARS
from magic141.tracking import ArtifactName, References, Work, references, unasked_stores
from tasks.run_stage import KEY_CHARS, lock_file
from tasks.stage import RUN_DIR_CHARS

AT_ONCE = 100  # folders locked at the same time; each lock is an open file
_ARTIFACT = re.compile(rf"([0-9a-f]{{{KEY_CHARS}}})(-[0-9a-f]{{{DIGEST_CHARS}}})?")
_ASIDE = re.compile(rf"\.(?:staging|old)-([0-9a-f]{{{KEY_CHARS}}})(-[0-9a-f]+)*")
_CHECKPOINTS = re.compile(rf"(.+)-([0-9a-f]{{{RUN_DIR_CHARS}}})")


@dataclass(frozen=True)
class CheckedFolder:
    """A folder whose name has our form, and the recorded work on its key; empty if no store knows the key."""

    path: Path
    stage: str
    work: tuple[Work, ...]


@dataclass(frozen=True)
class Leftover:
    """A folder that can go.

    Attributes:
        candidate: the folder.
        why: what it is, such as an artifact of no run.
        num_bytes: its size; a file with several hard links counts by its share.
        error: why it could not be removed.
    """

    candidate: CheckedFolder
    why: str
    num_bytes: int
    error: str = ""

    @property
    def path(self) -> Path:
        """The folder's path."""
        return self.candidate.path


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        leftovers: folders that can go.
        num_unknown: folders left alone because another store may need them.
        unasked: stores that were used with the workspace and were not asked.
    """

    leftovers: tuple[Leftover, ...]
    num_unknown: int
    unasked: tuple[str, ...] = ()


def find_leftovers(workspace: Path) -> Findings:
    """Finds artifacts, half-written ones and checkpoints that no run or registered model refers to; removes nothing.

    Deleted runs, which MLflow could restore, do not count. Folders that a running stage works on are left out.

    Raises:
        UserError: if there is no store.
    """
    known = references(workspace)
    candidates = list(_candidates(workspace, known))
    found = [leftover for one in candidates if one.work and (leftover := _leftover(workspace, one, known))]
    num_unknown = sum(not candidate.work for candidate in candidates)
    if unasked := unasked_stores(workspace):
        return Findings((), num_unknown + len(found), unasked)
    return Findings(tuple(found), num_unknown)


def remove(workspace: Path, leftovers: Sequence[Leftover]) -> Iterator[Leftover]:
    """Removes and yields those that are still unreferenced; meanwhile no stage can start on them."""
    for start in range(0, len(leftovers), AT_ONCE):
        with ExitStack() as stack:
            part = leftovers[start : start + AT_ONCE]
            locked = [leftover for leftover in part if _lock(stack, workspace, leftover.candidate)]
            known = references(workspace)  # read under the locks: folders reused since they were listed stay
            for leftover in locked:
                if _why(leftover.candidate, known):
                    yield replace(leftover, error=_remove(leftover.path))


def _candidates(workspace: Path, known: References) -> Iterator[CheckedFolder]:
    for path in _folders(workspace, "artifacts/*/*"):
        if match := _ARTIFACT.fullmatch(path.name) or _ASIDE.fullmatch(path.name):
            yield CheckedFolder(path, path.parent.name, _work(known, path.parent.name, match[1]))
    for path in _folders(workspace, "training/*"):
        if match := _CHECKPOINTS.fullmatch(path.name):
            yield CheckedFolder(path, match[1], _work(known, match[1], match[2]))


def _folders(workspace: Path, pattern: str) -> list[Path]:
    """Matching folders, without symbolic links: those were moved elsewhere on purpose."""
    return sorted(path for path in workspace.glob(pattern) if path.is_dir() and not path.is_symlink())


def _work(known: References, stage: str, key: str) -> tuple[Work, ...]:
    return tuple(work for work in known.work_ever if work.stage == stage and work.key.startswith(key))


def _why(candidate: CheckedFolder, known: References) -> str | None:
    """Why a folder can go; None if it cannot."""
    path = candidate.path
    if path.parent.name == "training":
        return None if known.work.intersection(candidate.work) else "checkpoints of no run"
    if not path.name.startswith("."):
        return None if ArtifactName(candidate.stage, path.name) in known.folders else "artifact of no run"
    whole = path.with_name(path.name.removeprefix(".old-"))
    return "half-written by a killed run" if whole == path or whole.exists() else None


def _leftover(workspace: Path, candidate: CheckedFolder, known: References) -> Leftover | None:
    why = _why(candidate, known)
    with ExitStack() as stack:
        if why and (not os.access(workspace, os.W_OK) or _lock(stack, workspace, candidate)):
            return Leftover(candidate, why, _num_bytes(candidate.path))
    return None


def _lock(stack: ExitStack, workspace: Path, candidate: CheckedFolder) -> bool:
    """Takes the locks of all keys that a folder may belong to; False if a stage holds one of them."""
    try:
        for work in candidate.work:
            stack.enter_context(
                FileLock(lock_file(workspace, *work), timeout=0, is_singleton=True, fallback_to_soft=False)
            )
    except Timeout:
        return False
    return True


def _remove(path: Path) -> str:
    """Removes a folder; returns what went wrong, or an empty text."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        return str(error)
    with suppress(FileNotFoundError):
        record_path(path).unlink()
    return ""


def _num_bytes(path: Path) -> int:
    found = (file.lstat() for file in path.rglob("*") if file.is_file())
    return sum(stat.st_size // stat.st_nlink for stat in found)
