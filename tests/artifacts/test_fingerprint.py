"""The fingerprint sees the code that decides a result, and nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from magic141.artifacts.fingerprint import CodeStamp, edited_modules, fingerprint_modules, module_digests
from magic141.errors import UserError


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
    before, narrow = fingerprint_modules(["fakelib.entry"]), fingerprint_modules(["fakelib.entry"], ["fakelib.helper"])
    _rewrite(package / "helper.py", '"""New."""\n# comment\nVALUE   =   1\n')
    assert fingerprint_modules(["fakelib.entry"]) == before
    _rewrite(package / "helper.py", "VALUE = 2\n")
    assert fingerprint_modules(["fakelib.entry"], ["fakelib.helper"]) == narrow


def test_every_python_gives_the_same_digest(package: Path) -> None:
    """Python 3.12 parses functions, classes and joined f-strings into more than 3.11 does."""
    _rewrite(package / "helper.py", 'class Shown:\n    def text(self, x):\n        return f"{x}" ""\n')
    assert module_digests(["fakelib.helper"])["fakelib.helper"].startswith("1a4534c5f635ee77")


def test_fingerprint_covers_files_beside_modules(package: Path) -> None:
    (package / "page.j2").write_text("<p>")
    before = fingerprint_modules(["fakelib:page.j2"])
    _rewrite(package / "page.j2", "<b>")
    assert fingerprint_modules(["fakelib:page.j2"]) != before
    with pytest.raises(ValueError, match="no such file"):
        fingerprint_modules(["fakelib.absent"])


def test_a_stamp_names_the_modules_that_are_other_ones_or_missing(package: Path) -> None:
    code = CodeStamp.of(["fakelib.entry"])
    code.require()
    digests = dict(code.digests)
    other = CodeStamp(tuple({**digests, "fakelib.helper": "0", "fakelib.absent": "1"}.items()))
    with pytest.raises(UserError, match=r"machine \S+: fakelib.helper, fakelib.absent differ .* install the driver's"):
        other.require()
    many = CodeStamp(tuple((f"fakelib.absent{number}", "0") for number in range(7)))
    assert "fakelib.absent4 and 2 more differ" in str(many.trouble())


def test_code_that_was_edited_since_the_first_look_is_named(package: Path) -> None:
    original = (package / "helper.py").read_text()
    assert edited_modules(["fakelib.entry"]) == []
    _rewrite(package / "helper.py", "VALUE = 2\n")
    assert edited_modules(["fakelib.entry"]) == ["fakelib.helper"]
    assert edited_modules(["fakelib.entry"], ["fakelib.helper"]) == []
    _rewrite(package / "helper.py", original)
    assert edited_modules(["fakelib.entry"]) == []


def _rewrite(path: Path, text: str) -> None:
    stamp = path.stat().st_mtime_ns + 1_000_000
    path.write_text(text)
    os.utime(path, ns=(stamp, stamp))
