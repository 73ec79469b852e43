"""`magic141 gc`: frees what no run refers to any more, such as artifacts whose runs were deleted in MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from magic141.file_records import record_path
from magic141.frozen import UserError
from magic141.tracking import References, open_store, references
from magic141.urls import without_credentials

AT_ONCE = 100  # locks held, each an open file


@dataclass(frozen=True)
class Leftover:
    """A folder that can go.

    Attributes:
        path: where it is.
        why: what it is.
        num_bytes: what it holds.
    """

    path: Path
    why: str
    num_bytes: int


def find_leftovers(workspace: Path) -> list[Leftover]:
    """Artifacts, half-written ones and checkpoints that no run of the workspace's store refers to; nothing is removed.

    Deleted runs, which MLflow could restore, do not count. What a running stage works on is not among them.

    Raises:
        UserError: the store is not the one that this workspace's artifacts were made with.
    """
    tracker = open_store(workspace)
    known = references(tracker.client)
    _require_own_store(workspace, known, tracker.uri)
    with ExitStack() as stack:
        found = [(path, why) for path, why in _unknown(workspace, known) if _lock(stack, workspace, path)]
    return [Leftover(path, why, _num_bytes(path)) for path, why in found]


def remove(workspace: Path, leftovers: Sequence[Leftover]) -> Iterator[Leftover]:
    """Removes those that are still referred to by nothing, and yields them; a stage cannot begin on them meanwhile."""
    tracker = open_store(workspace)
    for start in range(0, len(leftovers), AT_ONCE):
        part = leftovers[start : start + AT_ONCE]
        with ExitStack() as stack:
            locked = [leftover for leftover in part if _lock(stack, workspace, leftover.path)]
            unknown = {path for path, _ in _unknown(workspace, references(tracker.client))}
            for leftover in locked:
                if leftover.path in unknown:
                    _remove(leftover.path)
                    yield leftover


def _unknown(workspace: Path, known: References) -> Iterator[tuple[Path, str]]:
    for path in sorted(workspace.glob("artifacts/*/*/")):
        if path.name.startswith("."):
            yield path, "half-written by a killed run"
        elif path not in known.folders:
            yield path, "artifact of no run"
    for path in sorted(workspace.glob("training/*/")):
        if not any(key.startswith(_key(path)) for key in known.keys):
            yield path, "checkpoints of no run"


def _key(path: Path) -> str:
    """The beginning of the stage key in a folder's name: of an artifact, a staging folder, or checkpoints."""
    if path.parent.name == "training":
        return path.name.rpartition("-")[2]
    return path.name.removeprefix(".staging-").removeprefix(".old-").partition("-")[0]


def _lock(stack: ExitStack, workspace: Path, path: Path) -> bool:
    """Takes the locks of the keys that a folder may belong to; whether no stage holds one."""
    stage = path.name.rpartition("-")[0] if path.parent.name == "training" else path.parent.name
    try:
        for lock in workspace.glob(f"locks/{stage}-{_key(path)}*.lock"):
            stack.enter_context(FileLock(lock, timeout=0, is_singleton=True))
    except Timeout:
        return False
    return True


def _remove(path: Path) -> None:
    shutil.rmtree(path)
    with suppress(FileNotFoundError):
        record_path(path).unlink()


def _num_bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())


def _require_own_store(workspace: Path, known: References, uri: str) -> None:
    """An empty or foreign store would make everything look abandoned."""
    there = [path for path in workspace.glob("artifacts/*/*/") if not path.name.startswith(".")]
    if there and known.deleted_too.isdisjoint(there):
        raise UserError(
            f"{without_credentials(uri)} knows none of the {len(there)} artifacts in {workspace}; expected the store "
            "that they were made with; set MLFLOW_TRACKING_URI to it"
        )
