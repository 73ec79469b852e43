"""The way back from a promotion, which must be open when little else works. The gate is in test_promotion_runs.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from magic141.artifacts.references import ArtifactRef
from magic141.evaluation.config import PublishConfig
from magic141.tracking import Tracker
from tests.ports import free_port


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two promoted versions, whose runs have neither a config nor artifacts that are still there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker(tmp_path_factory.mktemp("home"), "magic141")
    for version in ("1", "2"):
        run = tracker.start_parent("demo", "pipeline", {})
        ref = ArtifactRef(stage="publish", key=version, uri="/deleted", digest="", run_id=run.run_id)
        tracker.registry.register("film", ref, "candidate", {})
        for alias in (PublishConfig().champion, "best"):
            tracker.registry.promote("film", alias, version)
    return tracker.workspace / "mlflow.db"


@pytest.fixture(autouse=True)
def _home(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(database, tmp_path)
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    for variable in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)


def promote(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["promote", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("model", ["models:/film@candidate", "models:/film@nobody", "models:/film/7"])
def test_a_rollback_needs_a_name_and_no_config(model: str) -> None:
    assert promote("--rollback", "--model", model) == (0, "models:/film@champion is version 1 again\n")
    code, output = promote("--rollback", "--model", model)
    assert code == 2
    assert "no earlier promotion" in output


def test_a_rollback_needs_no_server_but_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    assert promote("--rollback", "--model", "models:/film")[1].startswith("error: model models:/film: expected")
    assert promote("--rollback", "--model", "models:/film/1")[0] == 0


def test_another_alias_is_named() -> None:
    arguments = ("--rollback", "--alias", "best", "--model", "models:/film@candidate")
    assert promote(*arguments) == (0, "models:/film@best is version 1 again\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--rollback", "--model", "film"), "model film: expected models:/NAME@ALIAS"),
        (("--rollback", "--set", "publish.champion=best"), "--rollback reads no config; name the alias with --alias"),
        (("--alias", "best"), "--alias best: only with --rollback"),
        (("--rollback", "--model", "models:/nowhere@x"), "model nowhere: not in the registry"),
    ],
)
def test_what_a_rollback_cannot_do_is_told(arguments: tuple[str, ...], line: str) -> None:
    code, output = promote(*arguments)
    assert code == 2
    assert line in output
