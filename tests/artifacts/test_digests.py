"""Digests see content and names, not place and time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from magic141.artifacts import digests
from magic141.artifacts.digests import digest_folder, digest_source, source_files
from magic141.errors import UserError


def test_digest_ignores_place_and_time_but_not_content_or_names(folder: Path, tmp_path: Path) -> None:
    before = digest_folder(folder)
    os.utime(folder / "one.txt", (1, 1))
    moved = folder.replace(tmp_path / "b")
    assert digest_folder(moved) == before
    (moved / "one.txt").rename(moved / "uno.txt")
    renamed = digest_folder(moved)
    (moved / "uno.txt").write_text("3")
    assert len({before, renamed, digest_folder(moved)}) == 3


def test_volatile_files_do_not_count(folder: Path) -> None:
    before = digest_folder(folder, ("sub/two.txt",))
    (folder / "sub" / "two.txt").write_text("took 3 s")
    assert digest_folder(folder, ("sub/two.txt",)) == before


def test_source_digest_follows_content(folder: Path) -> None:
    assert digest_source(folder / "nowhere") == "missing"
    before = digest_source(folder)
    (folder / "new.mp4").write_bytes(b"video")
    assert digest_source(folder) != before


def test_a_large_source_is_told_by_names_sizes_and_times_and_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SMALL_SOURCE_BYTES", 0)
    monkeypatch.setattr(digests, "digest_file", lambda path: pytest.fail(f"{path} was read"))
    found = [digest_source(folder)]
    os.utime(folder / "one.txt", (1, 1))  # as of another video of the same size
    found.append(digest_source(folder))
    (folder / "one.txt").write_text("12")
    os.utime(folder / "one.txt", (1, 1))
    found.append(digest_source(folder))
    (folder / "one.txt").rename(folder / "uno.txt")
    found.append(digest_source(folder))
    assert len(set(found)) == 4
    assert digest_source(folder) == found[-1]


def test_source_digest_sees_through_links_and_not_what_begins_with_a_dot(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (folder / "link").symlink_to(tmp_path / "disk")
    before = digest_source(folder)
    (folder / ".DS_Store").touch()
    assert digest_source(folder) == before == digest_folder(folder, (".DS_Store",))
    (tmp_path / "disk" / "new.mp4").touch()
    assert digest_source(folder) != before


def test_source_files_of_a_folder_are_taken_once_and_loops_end(folder: Path) -> None:
    (folder / "again").symlink_to("sub")
    (folder / "sub" / "loop").symlink_to(folder)
    assert source_files(folder) == [folder / "one.txt", folder / "sub" / "two.txt"]


def test_a_folder_that_cannot_be_listed_is_no_empty_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its videos would be missing under the digest of all, or without a word."""
    scan = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("/sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    (folder / "sub").mkdir(exist_ok=True)
    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(UserError, match=r"/sub: cannot be listed \(Permission denied\); make it readable"):
        source_files(folder)
