"""JSON lines give back what was written, and a text file is never half there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magic141.text_files import json_lines, name_aside, read_json_lines, replace_text


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


@pytest.mark.parametrize("name", ["clip.mp4", "x" * 251 + ".mp4", "scores"])
def test_every_file_has_a_name_aside(tmp_path: Path, name: str) -> None:
    aside = name_aside(tmp_path / name)
    assert aside.suffix == Path(name).suffix
    assert aside != name_aside(tmp_path / name)
    replace_text(tmp_path / name, "whole")
    assert [file.name for file in tmp_path.iterdir()] == [name]
