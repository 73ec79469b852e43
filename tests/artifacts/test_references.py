"""References know whether their artifact is as it was; keys see everything that decides a result."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from magic141.artifacts import file_records
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.file_records import record_path
from magic141.artifacts.references import ArtifactRef, StageKey, flatten
from tests.files_read import files_read

KEY = StageKey(stage="s", version=1, code="c", config={"a": {"b": 1}}, inputs={"x": "d"}, seed=0)


def test_ref_knows_whether_its_folder_is_intact(folder: Path) -> None:
    ref = ArtifactRef(stage="s", key="k", uri=str(folder), digest=digest_folder(folder), run_id="r")
    assert ref.state() == "intact"
    (folder / "one.txt").write_text("other")
    assert ref.state() == "altered"
    assert ref.model_copy(update={"uri": str(folder / "gone")}).state() == "deleted"


def test_a_folder_of_somebody_else_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> str:
        raise PermissionError(13, "Permission denied", str(folder))

    ref = ArtifactRef(stage="s", key="k", uri=str(folder), digest="", run_id="r")
    assert ref.is_open
    monkeypatch.setattr("magic141.artifacts.references.digest_folder", refuse)
    assert ref.state() == "closed"
    assert not ref.model_copy(update={"uri": str(folder / "gone")}).is_open
    for lacking in (os.R_OK, os.X_OK):
        monkeypatch.setattr(os, "access", lambda path, mode, lacking=lacking: not mode & lacking)
        assert not ref.is_open


@pytest.fixture
def large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactRef:
    """An artifact of a size that is not read whole at every check; it was checked once."""
    monkeypatch.setattr(file_records, "ALWAYS_READ_BYTES", 0)
    ref = ArtifactRef(stage="s", key="k", uri=str(folder), digest=digest_folder(folder), run_id="r")
    assert ref.state() == "intact"
    return ref


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    return files_read(monkeypatch, "magic141.artifacts.digests")


def test_large_artifacts_are_read_once_and_then_only_what_changed(large: ArtifactRef, read: list[str]) -> None:
    assert large.state() == "intact"
    assert read == []
    os.utime(large.path / "one.txt", (1, 1))
    assert (large.state(), large.state()) == ("intact", "intact")
    assert read == ["one.txt"]
    (large.path / "one.txt").write_text("3")
    assert large.state() == "altered"


def test_files_that_are_missing_or_new_in_a_large_artifact_are_noticed(large: ArtifactRef) -> None:
    (large.path / "new.txt").touch()
    assert large.state() == "altered"
    (large.path / "new.txt").unlink()
    assert large.state() == "intact"
    (large.path / "one.txt").unlink()
    assert large.state() == "altered"


@pytest.mark.parametrize("torn", ['{"one.txt": [1, 2', '{"one.txt": {}}', "[]", ""])
def test_a_torn_record_of_digests_is_made_anew(large: ArtifactRef, read: list[str], torn: str) -> None:
    record = record_path(large.path)
    whole = record.read_text()
    record.write_text(torn)
    assert large.state() == "intact"
    assert sorted(read) == ["one.txt", "two.txt"]
    assert record.read_text() == whole
    assert sorted(path.name for path in large.path.parent.iterdir()) == ["a", "a.files.json"]


def test_small_artifacts_are_read_whole_and_leave_nothing_beside_them(folder: Path, read: list[str]) -> None:
    ref = ArtifactRef(stage="s", key="k", uri=str(folder), digest=digest_folder(folder), run_id="r")
    read.clear()
    assert ref.state() == "intact"
    assert sorted(read) == ["one.txt", "two.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "change",
    [{"stage": "t"}, {"version": 2}, {"code": "d"}, {"config": {"a": {"b": 2}}}, {"inputs": {"x": "e"}}, {"seed": 1}],
)
def test_every_part_changes_the_key(change: dict[str, object]) -> None:
    other = KEY.model_copy(update=change)
    assert other.digest != KEY.digest
    assert len(other.difference(KEY)) == 1


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ({"a": {"b": 2}}, ["config.a.b: 1 -> 2"]),
        ({"a": {}}, ["config.a.b: 1 -> null"]),
        ({"a": {"b": 1}, "c": "x"}, ['config.c: null -> "x"']),
        ({"a": None}, ['config.a: {"b": 1} -> null']),
        ({"a": {"b": "0123456789" * 5}}, ["config.a.b: 1 -> 01234567…"]),
    ],
)
def test_difference_names_the_fields(config: dict[str, object], lines: list[str]) -> None:
    assert KEY.model_copy(update={"config": config}).difference(KEY) == lines


def test_a_section_that_was_not_set_differs_as_a_whole() -> None:
    unset = KEY.model_copy(update={"config": {"a": None}})
    assert KEY.difference(unset) == ['config.a: null -> {"b": 1}']


def test_nested_fields_are_named_with_their_sections() -> None:
    values = {"seed": 0, "data": {"fps": 8, "codec": {"kind": "tiny"}, "none": {}}}
    assert dict(flatten(values)) == {"seed": 0, "data.fps": 8, "data.codec.kind": "tiny"}


def test_a_key_that_was_recorded_and_read_again_is_the_same() -> None:
    key = KEY.model_copy(update={"config": {"path": Path("videos"), "range": (1.0, 3.0)}})
    read = StageKey.model_validate_json(key.model_dump_json())
    assert read.digest == key.digest
    assert read.difference(key) == key.difference(read) == []
