"""Commands that are printed find the same workspace again, from the same shell."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.records.commands import command, run_page


@pytest.mark.parametrize(
    ("home", "workspace", "words"),
    [
        (None, "runs", "magic141 runs"),
        (None, "other", "magic141 runs --workspace {}/other"),
        ("elsewhere", "runs", "magic141 runs --workspace {}/runs"),
        ("elsewhere", "elsewhere", "magic141 runs --workspace {}/elsewhere"),
    ],
)
def test_the_workspace_is_named_unless_commands_look_there(
    home: str | None, workspace: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAGIC141_HOME", raising=False)
    if home:
        monkeypatch.setenv("MAGIC141_HOME", str(tmp_path / home))
    assert command("runs", workspace=tmp_path / workspace) == words.format(tmp_path)


def test_a_page_has_the_address_that_browsers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_MLFLOW_UI_URL", "https://mlflow.example.org/")
    assert run_page("http://mlflow.mlflow.svc:5000", "1f") == "https://mlflow.example.org/#/runs/1f"
