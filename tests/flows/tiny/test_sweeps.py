"""A sweep: shared stages, members that fail, what is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from mlflow import MlflowClient
from prefect import get_client, runtime
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import State, StateType

import tasks.pipeline
from flows.evaluation import evaluation
from flows.failures.resume import is_resumable
from flows.members import MemberOutcome, MemberRun
from flows.orchestration.cancellation import CancelledInPrefectError
from flows.orchestration.notify import URL_VARIABLE
from flows.pipeline import rerun
from flows.planning.grid import Member
from flows.records.session import Outcome
from flows.sweep import SweepFailed, sweep
from magic141.errors import UserError
from tasks.stage import StageCall
from tests.flows.conftest import Webhook
from tests.flows.tiny.stages import after, broken_at

pytestmark = pytest.mark.slow


def test_a_sweep_shares_stages_and_survives_a_member_that_fails(
    outcome: Outcome, config: str, home: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.pipeline, "STAGES", broken_at(tasks.pipeline.STAGES, at_seed=9))
    monkeypatch.setenv(URL_VARIABLE, webhook.url)
    with pytest.raises(SweepFailed, match=r"^1 of 3 members failed: seed 9: RuntimeError: out of memory") as caught:
        sweep(config, ["quantize.exclude=[proj_out],[x_embedder]"], ["seed=9"])
    assert is_resumable(caught.value)
    member_failed, sweep_failed = (post["text"].splitlines() for post in webhook.posts)
    assert member_failed[0].startswith("magic141: run ")
    assert sweep_failed[0].startswith("magic141-sweep: run ")
    assert "1 of 3 members failed: seed 9" in sweep_failed[-2]
    assert sweep_failed[-1].startswith(f"to resume: magic141 sweep {config} --vary ")
    swept = caught.value.outcome
    *done, failed = swept.members
    assert all(
        set(after("quantize", "generate", "evaluate", "report", "publish")) <= set(member.reused) for member in done
    )
    assert all(member.scores["motion"] == 0.8 for member in done)
    assert "out of memory" in str(failed.error)
    client = MlflowClient(swept.tracking_uri)
    parent = client.get_run(swept.run_id)
    assert (parent.info.status, parent.data.tags["magic141.kind"]) == ("FAILED", "sweep")
    assert parent.info.run_name.endswith(" · sweep of 3")
    assert {file.path for file in client.list_artifacts(swept.run_id)} == {"sweep.json", "sweep.html"}
    assert Path(str(swept.page)).read_text().count("<figcaption>motion ↑") == 1
    for member in done:
        tags = client.get_run(str(member.run_id)).data.tags
        assert tags["mlflow.parentRunId"] == swept.run_id
        assert tags["magic141.overrides"].startswith("--set 'quantize.exclude=[")
    assert evaluation(str(home), run_id=done[0].run_id).reused == ("generate", "evaluate", "report")


def test_a_sweep_that_is_cancelled_in_prefect_ends_with_the_member_at_work(
    outcome: Outcome, config: str, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: set[UUID] = set()

    def work(call: StageCall) -> None:
        swept.add(UUID(str(runtime.flow_run.root_flow_run_id)))
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(min(swept), State(type=StateType.CANCELLING), force=True)
        first.run(call)

    first, *others = tasks.pipeline.STAGES
    monkeypatch.setattr(tasks.pipeline, "STAGES", (replace(first, run=work), *others))
    monkeypatch.setenv(URL_VARIABLE, webhook.url)
    with pytest.raises(CancelledInPrefectError, match="the run was cancelled in Prefect"):
        sweep(config, ["seed=91,92,93"])
    with get_client(sync_client=True) as client:
        (run_id,) = swept
        members = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id]))
        )
        states = [run.state_type for run in (client.read_flow_run(run_id), *members)]
    assert states == [StateType.CANCELLED] * 2, "the sweep and its first member"
    assert webhook.posts == []


def test_a_sweep_whose_members_run_in_processes_of_their_own_ends_as_cancelled_too(
    outcome: Outcome, config: str, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[UUID] = []

    def cancelled(_run: MemberRun, members: Sequence[Member], *_: object) -> list[MemberOutcome]:
        swept.append(UUID(str(runtime.flow_run.id)))
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(swept[0], State(type=StateType.CANCELLED), force=True)  # as a member does
        return [MemberOutcome(label=member.label, error="its process ended with exit code 1") for member in members]

    monkeypatch.setattr("flows.sweep.run_members", cancelled)
    monkeypatch.setenv(URL_VARIABLE, webhook.url)
    with pytest.raises(CancelledInPrefectError):
        sweep(config, ["seed=91,92"], parallel=2)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(swept[0]).state_type == StateType.CANCELLED
    assert webhook.posts == []


def test_a_sweep_publishes_nothing_unless_asked_to(outcome: Outcome, config: str, home: Path) -> None:
    def candidate() -> str:
        return str(MlflowClient(outcome.tracking_uri).get_model_version_by_alias("magic141", "candidate").version)

    before, vary = candidate(), ["distill_dmd2.a_weak=0.03125,0.0625"]
    chosen, _ = sweep(config, vary).members
    assert candidate() == before
    assert list(rerun(str(home), str(chosen.run_id)).reused) == after("publish")
    assert candidate() != before
    assert "publish" in sweep(config, vary, until="publish").members[0].reused


def test_a_sweep_checks_its_variant_before_it_runs_unless_it_stops_before_scores(outcome: Outcome, config: str) -> None:
    with pytest.raises(UserError, match="--variant student_99: member seed 0 has no such variant"):
        sweep(config, ["seed=0,1"], variant="student_99")
    assert not sweep(config, ["seed=0,1"], until="prepare_data", variant="student_99").failed
