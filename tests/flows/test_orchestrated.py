"""What Prefect's artifacts say about MLflow's runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows import orchestrated
from flows.orchestrated import run_as_tasks, run_link
from flows.session import Outcome, Session


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("http://host:5000", "MLflow run [1f](http://host:5000/#/runs/1f)"),
        ("https://ada:s3cret@host/mlflow/", "MLflow run [1f](https://host/mlflow/#/runs/1f)"),
        ("sqlite:////home/ada/mlflow.db", "MLflow run `1f`"),
    ],
)
def test_a_run_on_a_server_is_a_link_to_its_page(uri: str, line: str) -> None:
    assert run_link(uri, "1f") == line


def test_the_table_of_scores_links_to_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[dict[str, Any]] = []
    monkeypatch.setattr(orchestrated, "create_table_artifact", lambda **values: tables.append(values))
    outcome = Outcome(run_id="1f", tracking_uri="http://host:5000", report=None, seconds=1.0, reused=())
    session = SimpleNamespace(context=None, run_stages=lambda *_: outcome, scores=lambda: [{"variant": "student_4"}])
    assert run_as_tasks(cast(Session, session), []) == outcome
    assert [table["description"] for table in tables] == [run_link("http://host:5000", "1f")]
