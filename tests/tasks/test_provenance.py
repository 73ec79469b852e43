"""Which code a record says it was made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import provenance


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    provenance.git_commit.cache_clear()
    yield
    provenance.git_commit.cache_clear()


@pytest.mark.parametrize(("variable", "commit"), [("4f2a", "4f2a"), ("", None)])
def test_an_image_has_no_repository_but_knows_its_commit(
    variable: str, commit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("MAGIC141_COMMIT", variable)
    assert provenance.git_commit() == commit


def test_a_repository_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_described", lambda: "9c1e-dirty")
    monkeypatch.setenv("MAGIC141_COMMIT", "4f2a")
    assert provenance.git_commit() == "9c1e-dirty"
