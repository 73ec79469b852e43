"""What a kill may leave behind where Ray keeps checkpoints, without Ray."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from magic141.errors import UserError
from magic141.training import ray_checkpoints
from magic141.training.checkpoint import CheckpointInfo
from magic141.training.ray_checkpoints import LIST_FILE, RayStore, require_readable_list


def test_a_list_that_was_cut_short_is_told_before_anything_starts(tmp_path: Path) -> None:
    require_readable_list(tmp_path)  # the first launch
    (tmp_path / LIST_FILE).write_text("{}")
    require_readable_list(tmp_path)
    (tmp_path / LIST_FILE).write_text("")
    with pytest.raises(UserError, match=f"{LIST_FILE}: Ray's list .* is damaged; delete the folder"):
        require_readable_list(tmp_path)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that workers have reported, newest first, as if Ray had entered each in its list."""
    folders: list[Path] = []

    def report(metrics: dict[str, int], checkpoint: Checkpoint, checkpoint_upload_mode: CheckpointUploadMode) -> None:
        assert checkpoint_upload_mode is CheckpointUploadMode.NO_UPLOAD
        folders.insert(0, Path(checkpoint.path))

    monkeypatch.setattr("ray.train.report", report)
    monkeypatch.setattr(ray_checkpoints, "_committed_folders", lambda: list(folders))
    return folders


def test_a_checkpoint_is_written_and_read_in_its_place(
    tmp_path: Path, reported: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/temporary/folder")
    started(tmp_path).save(5, write)
    (folder,) = tmp_path.iterdir()
    assert reported == [folder]
    assert RayStore(tmp_path, rank=0).latest() == folder


def test_what_a_killed_worker_was_writing_is_removed_by_the_next(tmp_path: Path, reported: list[Path]) -> None:
    killed = started(tmp_path)
    killed.save(5, write)
    with pytest.raises(KeyboardInterrupt):
        killed.save(10, interrupted)
    assert len(list(tmp_path.iterdir())) == 2
    RayStore(tmp_path, rank=1).latest()
    assert len(list(tmp_path.iterdir())) == 2, "one worker removes for all, before any of them writes"
    assert RayStore(tmp_path, rank=0).latest() == reported[0]
    assert list(tmp_path.iterdir()) == reported


def test_the_step_of_a_damaged_checkpoint_is_saved_beside_it(tmp_path: Path, reported: list[Path]) -> None:
    """Ray deletes the damaged one later, by its name, and once only."""
    first = started(tmp_path)
    for step in (5, 10):
        first.save(step, write)
    damaged, whole = reported
    (damaged / "objective.pt").write_bytes(b"half of th")
    second = RayStore(tmp_path, rank=0)
    assert second.latest() == whole
    second.save(10, write)
    assert reported[0].name[:11] == damaged.name[:11]
    assert len({damaged, whole, reported[0]}) == 3


def started(run_dir: Path) -> RayStore:
    store = RayStore(run_dir, rank=0)
    assert store.latest() is None
    return store


def write(folder: Path) -> None:
    """The smallest checkpoint that is whole."""
    for kind in ("objective", "objective-0", "random-0"):
        torch.save({}, folder / f"{kind}.pt")
    info = CheckpointInfo(0, "plain", 1, 0, 0.0, 0.0, 0.0, 0)
    (folder / "info.json").write_text(json.dumps(asdict(info)))


def interrupted(folder: Path) -> None:
    (folder / "objective.pt").write_bytes(b"half of th")
    raise KeyboardInterrupt
