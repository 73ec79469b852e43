"""What a kill may leave behind where Ray keeps checkpoints, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest

from magic141.errors import UserError
from magic141.training import ray_checkpoints
from magic141.training.ray_checkpoints import LIST_FILE, RayStore, require_readable_list


def test_a_list_that_was_cut_short_is_told_before_anything_starts(tmp_path: Path) -> None:
    require_readable_list(tmp_path)  # the first launch
    (tmp_path / LIST_FILE).write_text("{}")
    require_readable_list(tmp_path)
    (tmp_path / LIST_FILE).write_text("")
    with pytest.raises(UserError, match=f"{LIST_FILE}: Ray's list .* is damaged; delete the folder"):
        require_readable_list(tmp_path)


def test_what_a_killed_worker_was_writing_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ray_checkpoints, "_committed_checkpoints", list)
    killed, other = RayStore(tmp_path / "run", 0, "first"), RayStore(tmp_path / "run", 1, "first")
    with pytest.raises(KeyboardInterrupt):
        killed.save(1, _interrupted)
    assert list(tmp_path.iterdir()) == [], "it could clear up"
    for store in (killed, other):
        store._aside.mkdir()
    with RayStore(tmp_path / "run", 0, "second").latest() as found:
        assert found is None
    assert list(tmp_path.iterdir()) == [other._aside]


def _interrupted(folder: Path) -> None:
    (folder / "weights").write_bytes(b"half of th")
    raise KeyboardInterrupt
