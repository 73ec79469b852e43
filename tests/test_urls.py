"""Credentials leave URLs before anybody sees them."""

from __future__ import annotations

import os

import pytest

from magic141.urls import settle_credentials, without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:s3cret@127.0.0.1:5000/x", "http://127.0.0.1:5000/x"),
        ("https://s3cret@host/path", "https://host/path"),
        ("postgresql://ada:s3/cr@et@host:5432/mlflow", "postgresql://host:5432/mlflow"),
        ("postgresql+psycopg2://ada:12/s3cret@host/mlflow", "postgresql+psycopg2://host/mlflow"),
        (
            "postgresql://host/db?user=ada&password=s3cret&sslmode=x",
            "postgresql://host/db?user=ada&password=***&sslmode=x",
        ),
        ("https://host/hook?api_key=s3cret", "https://host/hook?api_key=***"),
        (
            "API request to 'http://ada:s3cret@host/api' failed, as did https://bob:s3cret@other",
            "API request to 'http://host/api' failed, as did https://other",
        ),
    ],
)
def test_credentials_are_taken_out(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/ada@work/mlflow.db",
        "http://host:5000/users/@me",
        "models:/magic141@champion is version 3, see http://host:5000/#/x?a=b",
        "a line, and ada@example.org",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert without_credentials(text) == text


def test_credentials_move_to_the_variables_that_clients_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "NAME", "PASSWORD", "BOTH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("URL", "http://ada:s3%40cret@host:5000/api")
    settle_credentials("URL", "NAME", "PASSWORD")
    assert [os.environ[name] for name in ("URL", "NAME", "PASSWORD")] == ["http://host:5000/api", "ada", "s3@cret"]
    monkeypatch.setenv("URL", "https://ada:other@host/api")
    settle_credentials("URL", "BOTH")
    settle_credentials("URL", "NAME", "PASSWORD")
    assert [os.environ[name] for name in ("URL", "BOTH", "PASSWORD")] == ["https://host/api", "ada:other", "s3@cret"]
    for untouched in ("sqlite:////a/b.db", "postgresql://ada:s3cret@host/db", "http://host:5000"):
        monkeypatch.setenv("URL", untouched)
        settle_credentials("URL", "NAME", "PASSWORD")
        assert os.environ["URL"] == untouched
