"""What is found in a source file is kept for as long as its content is the same, and only then."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from magic141.artifacts import source_code
from magic141.artifacts.source_code import Code


class Reader:
    """Reads a module as a new process does, and counts how often it is parsed."""

    def __init__(self, path: Path, parse: Callable[[bytes], Code]) -> None:
        self.path = path
        self.num_parsed = 0
        self._parse = parse

    def parse(self, source: bytes) -> Code:
        self.num_parsed += 1
        return self._parse(source)

    def __call__(self) -> Code:
        source_code._code_of.cache_clear()
        return source_code.code_of(self.path)

    def records(self) -> list[Path]:
        return list(self.path.parent.glob("__pycache__/*"))


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    module = tmp_path / "module.py"
    module.write_text("import os\nfrom pathlib import Path\nRATE = 1\n")
    reader = Reader(module, source_code.parse)
    monkeypatch.setattr(source_code, "parse", reader.parse)
    return reader


def test_a_file_is_parsed_once_by_all_processes(reader: Reader) -> None:
    first = reader()
    assert first.imports == ("os", "pathlib", "pathlib.Path")
    assert reader() == first
    assert reader.num_parsed == 1


def test_the_content_decides_not_the_size_and_time(reader: Reader) -> None:
    """As in images whose files all have one time."""
    first, before = reader(), reader.path.stat()
    reader.path.write_text(reader.path.read_text().replace("1", "2"))
    os.utime(reader.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reader.path.stat().st_size == before.st_size
    assert reader().digest != first.digest


def test_what_another_version_of_the_reader_found_is_not_used(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader()
    monkeypatch.setattr(source_code, "_reader", lambda: b"of another version")
    reader()
    assert reader.num_parsed == 2


@pytest.mark.parametrize("damaged", ["", "{", '{"key": 1}', '["key", ["digest"]]'])
def test_a_damaged_record_is_made_again(reader: Reader, damaged: str) -> None:
    first = reader()
    (record,) = reader.records()
    whole = record.read_text()
    record.write_text(damaged)
    assert reader() == first
    assert record.read_text() == whole


def test_nothing_is_written_where_python_may_not(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert reader() == reader()
    assert reader.records() == []
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (reader.path.parent / "__pycache__").write_text("no folder")  # refuses also a superuser
    assert reader() == reader()
    assert reader.num_parsed == 4
