"""The fingerprint sees the code that decides a result, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from magic141.fingerprint import fingerprint_modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fakelib"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "entry.py").write_text('"""Doc."""\nimport os\nfrom fakelib import helper\nVALUE = helper.VALUE\n')
    (folder / "helper.py").write_text("VALUE = 1\n")
    (folder / "other.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_fingerprint_follows_imports_without_importing(package: Path) -> None:
    before = fingerprint_modules(["fakelib.entry"])
    assert "fakelib" not in sys.modules
    _rewrite(package / "other.py", "VALUE = 2\n")
    assert fingerprint_modules(["fakelib.entry"]) == before
    _rewrite(package / "helper.py", "VALUE = 2\n")
    assert fingerprint_modules(["fakelib.entry"]) != before


def test_fingerprint_ignores_comments_docstrings_and_ignored_modules(package: Path) -> None:
    before, narrow = fingerprint_modules(["fakelib.entry"]), fingerprint_modules(["fakelib.entry"], ["helper"])
    _rewrite(package / "helper.py", '"""New."""\n# comment\nVALUE   =   1\n')
    assert fingerprint_modules(["fakelib.entry"]) == before
    _rewrite(package / "helper.py", "VALUE = 2\n")
    assert fingerprint_modules(["fakelib.entry"], ["helper"]) == narrow


def test_fingerprint_covers_files_beside_modules(package: Path) -> None:
    (package / "page.j2").write_text("<p>")
    before = fingerprint_modules(["fakelib:page.j2"])
    _rewrite(package / "page.j2", "<b>")
    assert fingerprint_modules(["fakelib:page.j2"]) != before
    with pytest.raises(ValueError, match="no such file"):
        fingerprint_modules(["fakelib.absent"])


def _rewrite(path: Path, text: str) -> None:
    stamp = path.stat().st_mtime_ns + 1_000_000
    path.write_text(text)
    os.utime(path, ns=(stamp, stamp))
