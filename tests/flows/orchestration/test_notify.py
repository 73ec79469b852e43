"""A failed run is posted to a webhook whose address nobody reads in a log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, PREFECT_UI_URL, temporary_settings
from prefect.states import Crashed, Failed

from flows.evaluation import evaluation
from flows.orchestration.cancellation import TEXT, end_as_cancelled
from flows.orchestration.notify import URL_VARIABLE, message, notify
from flows.orchestration.server import EMBEDDED_VARIABLE
from flows.pipeline import pipeline, rerun
from flows.sweep import sweep
from tests.flows.conftest import Webhook

ERROR = "Flow run encountered an exception: OSError: http://ada:s3cret@host is down\nTraceback: line 2"


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("MAGIC141_HOME", EMBEDDED_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False, PREFECT_UI_URL: "http://ui"}):
        yield


def run(deployed: bool = False, **parameters: Any) -> FlowRun:
    return FlowRun(name="calm-owl", flow_id=uuid4(), parameters=parameters, deployment_id=uuid4() if deployed else None)


def test_the_message_says_what_where_why_and_how_to_go_on(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, f"{webhook.url}/hooks/s3cret")
    failed = run(config="my demo.yaml", overrides=["seed=1", "name=x"], until=None, refresh=["publish"])
    notify(pipeline, failed, Failed(message=ERROR))
    assert webhook.posts == [
        {
            "type": "application/json",
            "text": "magic141: run calm-owl failed\n"
            f"http://ui/runs/flow-run/{failed.id}\n"
            "Flow run encountered an exception: OSError: http://host is down\n"
            "to resume: magic141 run 'my demo.yaml' --set seed=1 --set name=x --refresh publish",
        }
    ]


def test_a_run_that_was_cancelled_is_no_failure(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, webhook.url)
    notify(pipeline, run(config="demo.yaml"), Failed(message=f"CancelledInPrefectError: {TEXT}"))
    assert webhook.posts == []


def test_a_run_without_servers_resumes_in_its_workspace_and_has_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    monkeypatch.setenv(EMBEDDED_VARIABLE, "1")
    lines = message(pipeline.name, run(config="demo.yaml"), Failed(message="no")).splitlines()
    assert lines == [
        "magic141: run calm-owl failed",
        "no",
        f"to resume: magic141 run demo.yaml --workspace {tmp_path}",
    ]
    given = message(evaluation.name, run(run_id="1f", workspace="/w"), Failed(message="no"))
    assert given.endswith("to resume: magic141 eval --run 1f --workspace /w")


def test_other_runs_resume_in_their_own_way() -> None:
    judged = message(evaluation.name, run(model="models:/magic141@champion", workspace=None), Failed(message="no"))
    assert judged.endswith("to resume: magic141 eval --model models:/magic141@champion")
    deployed = run(deployed=True, config="demo.yaml")
    crashed = message(pipeline.name, deployed, Crashed(message=None))
    assert crashed.splitlines()[0] == "magic141: run calm-owl crashed"
    assert crashed.endswith(f"to resume: prefect flow-run retry {deployed.id}")
    assert "resume" not in message("another flow", run(), Failed(message="no"))
    mistaken: State[Any] = Failed(
        message="Flow run encountered an exception: UserError: data.path = videos: no usable clip"
    )
    assert message(pipeline.name, deployed, mistaken).endswith(
        f"correct this, then: prefect flow-run retry {deployed.id}"
    )


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("{webhook}/broken/s3cret", "was not sent: HTTP 500"),
        ("http://127.0.0.1:9/s3cret", "was not sent: URLError: [Errno 111] Connection refused"),
        ("s3cret", "was not sent: ValueError"),
        ("http://127.0.0.1/s3cret with blanks", "was not sent: InvalidURL"),
    ],
)
def test_a_post_that_fails_is_logged_without_the_address(
    webhook: Webhook, address: str, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(URL_VARIABLE, address.format(webhook=webhook.url))
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    notify(pipeline, run(), Failed(message="no"))
    assert line in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("flow", [pipeline, rerun, evaluation, sweep])
def test_every_flow_notifies_when_it_fails_or_crashes(flow: Flow[..., Any]) -> None:
    assert (flow.on_failure_hooks, flow.on_crashed_hooks) == ([end_as_cancelled, notify], [notify])
