"""A new candidate is announced once, with all that its evaluation needs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import flows.orchestration.events
from flows.orchestration.events import announcing_candidate
from flows.orchestration.server import EMBEDDED_VARIABLE
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig
from magic141.tracking import Tracker
from tasks import publish, quantize
from tasks.console import StageConsole
from tasks.stage import StageContext


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker(tmp_path_factory.mktemp("home"), "events")


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGIC141_HOME", raising=False)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        flows.orchestration.events,
        "emit_event",
        lambda event, resource, payload: sent.append({"event": event, **resource, **payload}),
    )
    return sent


def artifact(tracker: Tracker, stage: str, parent: str) -> ArtifactRef:
    folder = tracker.workspace / stage
    folder.mkdir(exist_ok=True)
    run = tracker.start_stage(stage, f"key-{stage}", parent)
    return ArtifactRef(stage=stage, key="k", uri=str(folder), digest=digest_folder(folder), run_id=run.run_id)


def published(tracker: Tracker, student: ArtifactRef | None = None) -> tuple[StageContext, ArtifactRef]:
    """A run whose last stage registers a student: a new one, or one that was there."""
    parent = tracker.start_parent("test", "pipeline", {}).run_id
    context = StageContext(
        PipelineConfig(workspace=tracker.workspace), tracker, parent, StageConsole(Console(file=io.StringIO()))
    )
    context.artifacts["distill_dmd2"] = artifact(tracker, "distill_dmd2", parent)
    ref = student or artifact(tracker, "publish", parent)
    if student:
        context.reused.append("publish")
    with announcing_candidate(context, [publish.STAGE]):
        context.artifacts["publish"] = ref
        assert publish.STAGE.on_ready
        publish.STAGE.on_ready(context, ref)
    return context, ref


def test_a_candidate_is_announced_when_it_is_new_or_the_alias_moves(
    tracker: Tracker, events: list[dict[str, Any]]
) -> None:
    context, first = published(tracker)
    assert events == [
        {
            "event": "magic141.candidate",
            "prefect.resource.id": "magic141.model.magic141",
            "prefect.resource.name": "magic141",
            "model": "models:/magic141/1",
            "alias": "candidate",
            "run_id": context.parent_id,
            "workspace": str(tracker.workspace),
        }
    ]
    published(tracker, first)
    assert len(events) == 1  # the alias stays where it is
    published(tracker)
    published(tracker, first)
    assert [event["model"] for event in events[1:]] == ["models:/magic141/2", "models:/magic141/1"]


def test_a_candidate_whose_run_ended_before_its_event_is_announced_by_the_next(
    tracker: Tracker, events: list[dict[str, Any]]
) -> None:
    context, _ = published(tracker)
    events.clear()
    ref = artifact(tracker, "publish", context.parent_id)
    assert publish.STAGE.on_ready
    publish.STAGE.on_ready(context, ref)  # registered, and then killed
    assert events == []
    published(tracker, ref)
    published(tracker, ref)
    assert len(events) == 1


def test_what_only_an_embedded_server_has_heard_of_is_announced_again(
    tracker: Tracker, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as embedded:
        embedded.setenv(EMBEDDED_VARIABLE, "1")
        _, ref = published(tracker)
    events.clear()
    for _ in range(2):
        published(tracker, ref)
    assert len(events) == 1


def test_a_run_does_not_announce_the_version_of_another(tracker: Tracker, events: list[dict[str, Any]]) -> None:
    context, ref = published(tracker)
    with announcing_candidate(context, [publish.STAGE]):
        context.artifacts["publish"] = ref
        published(tracker)  # meanwhile
    assert [event["run_id"] == context.parent_id for event in events] == [True, False]


def test_runs_that_do_not_publish_announce_nothing(tracker: Tracker, events: list[dict[str, Any]]) -> None:
    context, _ = published(tracker)
    events.clear()
    with announcing_candidate(context, [quantize.STAGE]):
        pass
    with pytest.raises(RuntimeError), announcing_candidate(context, [publish.STAGE]):
        raise RuntimeError("export failed")
    assert events == []


def test_an_event_that_cannot_be_sent_does_not_fail_the_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("http://ada:s3cret@host")

    monkeypatch.setattr(flows.orchestration.events, "emit_event", unreachable)
    context, _ = published(tracker)
    file = context.console.console.file
    assert isinstance(file, io.StringIO)
    assert "no event of the new candidate was sent: ConnectionError" in file.getvalue()
    assert "s3cret" not in file.getvalue()


def test_the_deployments_listen_to_this_event() -> None:
    import yaml

    file = Path(__file__).parents[3] / "infra" / "prefect.yaml"
    waiting = [d for d in yaml.safe_load(file.read_text())["deployments"] if d.get("triggers")]
    assert [d["name"] for d in waiting] == ["evaluate-candidate", "kubernetes-evaluate-candidate"]
    for deployment in waiting:
        (trigger,) = deployment["triggers"]
        assert trigger["expect"] == [flows.orchestration.events.CANDIDATE]
        assert trigger["match"] == {"prefect.resource.id": f"{flows.orchestration.events.RESOURCE}.*"}
        fields = {f"{{{{ event.payload.{name} }}}}" for name in flows.orchestration.events.Candidate.model_fields}
        assert set(trigger["parameters"].values()) <= fields
