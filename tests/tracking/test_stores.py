"""A store is the same one however its URI is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from magic141.tracking import STORES, Tracker, unasked_stores
from magic141.tracking.stores import note_store, noted_stores


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("http://Host.Example:5000/", "http://host.example:5000"),
        ("https://me:secret@host/Path/", "https://host/Path"),
        ("databricks://Profile", "databricks://Profile"),
        ("postgresql://me:secret@host/Runs", "postgresql://host/Runs"),
    ],
)
def test_a_store_is_noted_once(home: Path, uri: str, name: str) -> None:
    (home / STORES).write_text(f"{uri}\n{name}\n")
    note_store(home, uri)
    note_store(home, "http://another")
    assert noted_stores(home) == [name, "http://another"]


def test_a_server_is_asked_in_either_spelling(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note_store(home, "http://host:5000")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://HOST:5000/")
    assert unasked_stores(home) == ()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5001")
    assert unasked_stores(home) == ("http://host:5000",)


def test_the_workspaces_own_store_is_never_another(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mlflow.db")
    Tracker(home, "film")
    assert not (home / STORES).exists()
    (home / STORES).write_text("sqlite:///runs/mlflow.db\nsqlite:///other.db\n")  # as earlier versions did
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert unasked_stores(home) == (f"sqlite:///{home.parent}/other.db",)
