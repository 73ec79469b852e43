"""What cannot be written is said before any work, and asking leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.failures.writable import require_output, require_workspace
from magic141.errors import UserError


def test_what_is_there_or_can_be_made_is_accepted_and_nothing_made(tmp_path: Path) -> None:
    require_workspace(tmp_path)
    require_workspace(tmp_path / "a" / "100%")
    require_output(tmp_path / "a" / "video.mp4")
    require_output(Path("/dev/null"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("file", "cannot write into .*file (Not a directory); set --workspace or MAGIC141_HOME"),
        ("file/runs", "cannot write into .*file (Not a directory)"),
        ("link", "cannot write into .*link (No such file or directory)"),
        ("runs?", "SQLite.s URLs cannot name a folder with a .; set --workspace"),
        ("job%2Fmain", "MLflow reads the % in it as an escape, and writes elsewhere; set --workspace"),
        ("/proc/nope", "cannot write into /proc (No such file or directory)"),
    ],
)
def test_no_place_for_a_workspace(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=line.replace("(", r"\(").replace(")", r"\)")) as caught:
        require_workspace(tmp_path / path)
    assert str(caught.value).startswith(f"workspace {tmp_path / path}: ")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("", "is a folder; give the path of a file"),
        ("file/o.mp4", r"cannot write into .*file \(Not a directory\)"),
        ("/proc/x/o.mp4", r"cannot write into /proc \(No such file"),
        ("x" * 300 + ".mp4", "File name too long"),
    ],
)
def test_no_place_for_a_file(tmp_path: Path, path: str, line: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=line) as caught:
        require_output(tmp_path / path)
    assert str(caught.value).startswith(f"--output {tmp_path / path}: ")
