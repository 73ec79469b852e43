"""What a kill at any moment leaves of a training's checkpoints, and what the next attempt makes of it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from magic141.errors import UserError
from magic141.training import checkpoint_store
from magic141.training.checkpoint import CheckpointInfo, step_of
from magic141.training.checkpoint_store import CheckpointStore
from magic141.training.config import PlacementConfig
from magic141.training.context import TrainContext


def store(run_dir: Path, rank: int = 0) -> CheckpointStore:
    """That of a worker; the others are not waited for."""
    return CheckpointStore(TrainContext(rank, 1, torch.device("cpu"), run_dir, 0, PlacementConfig()))


def started(run_dir: Path) -> CheckpointStore:
    attempt = store(run_dir)
    attempt.latest()
    return attempt


def write(folder: Path) -> None:
    """The smallest checkpoint that is whole."""
    for kind in ("objective", "objective-0", "random-0", "engines/network/engine"):
        file = folder / f"{kind}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, file)
    info = CheckpointInfo(0, "plain", 1, 1, 0, 0.0, 0.0, 0.0, 0)
    (folder / "info.json").write_text(json.dumps(asdict(info)))


def killed(folder: Path) -> None:
    (folder / "objective.pt").write_bytes(b"half of th")
    raise KeyboardInterrupt


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_the_newest_two_are_kept_and_nothing_is_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/temporary/folder")
    attempt = started(tmp_path)
    for step in (-5, 5, 10):
        attempt.save(step, write)
    assert names(tmp_path) == ["step-000005", "step-000010"]
    assert store(tmp_path).latest() == tmp_path / "checkpoints" / "step-000010"


@pytest.mark.parametrize("steps", [(-10, -5), (999_995, 1_000_000)])
def test_the_newest_is_the_one_with_the_most_steps_and_not_the_last_by_name(
    tmp_path: Path, steps: tuple[int, int]
) -> None:
    attempt = started(tmp_path)
    for step in steps:
        attempt.save(step, write)
    found = store(tmp_path).latest()
    assert found is not None
    assert step_of(found.name) == steps[-1]


def test_a_checkpoint_is_visible_once_all_workers_have_written_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(context: TrainContext) -> None:
        """The first worker waits while the second one writes."""
        assert not list(first.folder.glob("step-*"))
        if context.is_main:
            second.save(5, lambda folder: (folder / "objective-1.pt").touch())

    said: dict[type, list[Any]] = {}
    monkeypatch.setattr(checkpoint_store, "gathered", lambda mine, _: said.setdefault(type(mine), [mine]))
    monkeypatch.setattr(checkpoint_store, "barrier", late)
    first, second = started(tmp_path / "run"), store(tmp_path / "run", rank=1)
    second.latest()
    first.save(5, write)
    assert names(tmp_path / "run") == ["step-000005"]
    assert (first.folder / "step-000005" / "objective-1.pt").exists()


def test_what_a_file_server_keeps_of_an_open_file_is_in_nobodys_way(tmp_path: Path) -> None:
    attempt = started(tmp_path)
    attempt.save(5, write)
    (attempt.folder / ".nfs0001").touch()
    assert store(tmp_path).latest() == attempt.folder / "step-000005"


def test_the_list_of_checkpoints_is_looked_up_after_a_change_to_their_folder(tmp_path: Path) -> None:
    """A machine that changed a folder itself asks the file server anew what is in it."""
    folder = started(tmp_path).folder
    os.utime(folder, (1, 1))
    assert store(tmp_path, rank=1).latest() is None
    assert folder.stat().st_mtime > 1


def test_what_a_killed_worker_was_writing_is_removed_by_the_first_of_the_next_attempt(tmp_path: Path) -> None:
    attempt = started(tmp_path)
    attempt.save(5, write)
    with pytest.raises(KeyboardInterrupt):
        attempt.save(10, killed)
    (tmp_path / "checkpoints" / ".old-step-000010").mkdir()  # a damaged one, killed while it was replaced
    for rank, num_left in ((1, 3), (0, 1)):
        found = store(tmp_path, rank).latest()
        assert found == tmp_path / "checkpoints" / "step-000005"
        assert len(names(tmp_path)) == num_left


def test_no_attempt_writes_where_another_one_does(tmp_path: Path) -> None:
    """A worker of an attempt that was given up may still write, hours later."""
    folders: list[Path] = []

    def note(folder: Path) -> None:
        folders.append(folder)
        write(folder)

    for _ in range(2):
        started(tmp_path).save(5, note)
    assert len(set(folders)) == 2
    assert names(tmp_path) == ["step-000005"]


@pytest.mark.parametrize("file", ["engines/network/engine.pt", "objective.pt", "objective-0.pt", "info.json"])
def test_a_checkpoint_that_was_cut_short_is_passed_over_and_later_replaced(tmp_path: Path, file: str) -> None:
    attempt = started(tmp_path)
    for step in (5, 10):
        attempt.save(step, write)
    cut(tmp_path / "checkpoints" / "step-000010" / file)
    second = store(tmp_path)
    assert second.latest() == tmp_path / "checkpoints" / "step-000005"
    second.save(10, write)
    assert store(tmp_path).latest() == tmp_path / "checkpoints" / "step-000010"


def test_damage_to_all_that_was_kept_is_told_and_not_trained_over(tmp_path: Path) -> None:
    attempt = started(tmp_path)
    for step in (5, 10):
        attempt.save(step, write)
    for file in tmp_path.glob("checkpoints/*/objective.pt"):
        file.unlink()
    with pytest.raises(
        UserError, match=r"step-000005, \S+step-000010: damaged, and none is left that is whole; delete"
    ):
        store(tmp_path).latest()


@pytest.mark.parametrize(
    ("others", "newest"),
    [([True, True], "step-000010"), ([True, False], "step-000005"), ([False, True], "step-000010")],
)
def test_all_workers_go_on_from_what_all_of_them_find_whole_of_what_the_first_has_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[bool], newest: str
) -> None:
    attempt = started(tmp_path)
    for step in (5, 10):
        attempt.save(step, write)

    def with_another(mine: Any, context: TrainContext) -> list[Any]:
        """Its machine still remembers the folder as it was before there were checkpoints."""
        return [mine, ("its own", [])] if isinstance(mine, tuple) else [mine, others]

    monkeypatch.setattr(checkpoint_store, "gathered", with_another)
    found = store(tmp_path).latest()
    assert found is not None
    assert found.name == newest
