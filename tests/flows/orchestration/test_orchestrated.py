"""What Prefect's artifacts say about MLflow's runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.orchestration import orchestrated
from flows.orchestration.orchestrated import run_as_tasks, run_link
from flows.records.session import Outcome, Session


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


def test_the_figures_of_a_run_are_those_of_its_student_and_not_of_a_row_below() -> None:
    rows = {"teacher_25": 0.9, "student_4": 0.8, "student_1": 0.3, "int8_4": 0.7}
    scores = [{"name": name, "scores": {"motion": {"value": value, "reason": None}}} for name, value in rows.items()]
    logged: dict[str, float] = {}
    run = SimpleNamespace(run_id="1f", metrics=logged.update)
    Session(cast(Any, None), cast(Any, run), 0.0)._publish_scores(scores)
    assert (logged["student/motion"], logged["scores/int8_4/motion"]) == (0.8, 0.7)
