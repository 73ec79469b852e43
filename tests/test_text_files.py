"""JSON lines give back what was written, and a text file is never half there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magic141.text_files import json_lines, read_json_lines, replace_text, replacing


def test_json_lines_give_back_what_was_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"caption": "a\nb\u2028c"}, {"caption": None}]
    for text in (json_lines(rows), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)):
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
        assert read_json_lines(tmp_path / "rows.jsonl") == rows


def test_a_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    replace_text(file, "first")
    monkeypatch.setattr(Path, "replace", lambda self, target: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        replace_text(file, "second")
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file], "what was written aside is removed"


@pytest.mark.parametrize("name", ["clip.mp4", "x" * 251 + ".mp4", "scores"])
def test_every_file_is_written_aside_under_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    with replacing(tmp_path / name) as one, replacing(tmp_path / name) as other:
        assert one.suffix == other.suffix == Path(name).suffix
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "one")]
