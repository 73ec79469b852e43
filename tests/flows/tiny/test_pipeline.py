"""The pipeline as a flow: order, reuse, until, refresh, plan, failure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from mlflow import MlflowClient
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

import tasks.pipeline
from flows.command_line.unchanged import first_to_run, run_unchanged
from flows.orchestration import cancellation
from flows.pipeline import pipeline, rerun
from flows.planning.plan import make_plan
from flows.records.session import Outcome
from magic141.config import load_config
from magic141.errors import UserError
from tasks.stage import Stage, StageCall
from tests.flows.tiny.stages import ALL, after, broken_at
from tests.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.slow


def test_whole_pipeline_publishes_and_scores(outcome: Outcome, config: str) -> None:
    assert outcome.reused == ()
    assert Path(str(outcome.report)).read_text() == "<html>"
    client = MlflowClient(outcome.tracking_uri)
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert "report.html" in {file.path for file in client.list_artifacts(outcome.run_id)}
    assert run.data.tags["mlflow.note.content"].startswith(f"**{outcome.headline}**")
    assert outcome.headline == "student_4: motion 0.800 (0.900)"
    assert run.data.metrics["student/motion"] == 0.8
    assert run.data.metrics["scores/teacher_4/motion"] == 0.9
    assert "prefect.flow_run_id" in run.data.tags
    assert run.data.params["distill_dmd2.a_weak"] == str(load_config(Path(config)).distill_dmd2.a_weak)
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{outcome.run_id}'")
    assert sorted(child.data.tags["magic141.stage"] for child in children) == sorted(ALL)
    assert client.get_model_version_by_alias("magic141", "candidate").version


@pytest.mark.parametrize(
    ("overrides", "runs"),
    [
        ([], []),
        (["evaluate.frechet_dimensions=16"], ["evaluate", "report"]),
        (["report.title=Other"], ["report"]),
        (["quantize.exclude=[proj_out]"], ["quantize", "generate", "evaluate", "report"]),
        (
            ["distill_dmd2.a_weak=0.25"],
            ["distill_dmd2", "quantize", "generate", "evaluate", "report", "publish"],
        ),
        (["pretrain_i2v.placement.engine=deepspeed", "pretrain_i2v.placement.zero_stage=0"], []),
    ],
)
def test_a_change_runs_what_depends_on_it_and_the_plan_says_so(
    outcome: Outcome, config: str, overrides: list[str], runs: list[str]
) -> None:
    first = next(iter(runs), None)
    plan = {row.stage: row for row in make_plan(load_config(Path(config), overrides), tasks.pipeline.STAGES)}
    assert [name for name, row in plan.items() if row.action == "run"] == [n for n in ALL if n in runs]
    if first and overrides:
        assert overrides[0].split("=")[0].split(".")[-1] in plan[first].why
    assert list(pipeline(config, overrides).reused) == after(*runs)


def test_prefect_names_the_run_and_tells_reused_stages_from_others(outcome: Outcome, config: str) -> None:
    again = pipeline(config, ["report.title=Seen in Prefect"])
    flow_run_id = MlflowClient(again.tracking_uri).get_run(again.run_id).data.tags["prefect.flow_run_id"]
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(flow_run_id)).name == f"{Path(config).stem} · title=Seen in Prefect"
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run_id)]))
        expected = {**dict.fromkeys(ALL, "Reused"), "report": "Completed"}
        # Prefect records the states of tasks a moment later
        wait_for(lambda: named_states(client.read_task_runs(flow_run_filter=of_run)) == expected)


def named_states(runs: Iterable[TaskRun]) -> dict[str, str | None]:
    return {run.name.rpartition("-")[0]: run.state.name for run in runs if run.state}


def test_a_run_with_nothing_to_do_needs_no_orchestrator(outcome: Outcome, config: str) -> None:
    stages = tasks.pipeline.STAGES
    assert first_to_run(load_config(Path(config)), stages) is None
    again = run_unchanged(load_config(Path(config)), stages)
    assert list(again.reused) == ALL
    assert again.report == outcome.report
    first, second = (MlflowClient(outcome.tracking_uri).get_run(run.run_id) for run in (outcome, again))
    assert second.info.status == "FINISHED"
    assert "prefect.flow_run_id" not in second.data.tags
    assert second.data.metrics["student/motion"] == first.data.metrics["student/motion"]
    work = first_to_run(load_config(Path(config), ["report.title=Not made yet"]), stages)
    assert work is not None
    assert work.name == "report"


def test_a_result_altered_meanwhile_is_made_again_without_an_orchestrator_too(outcome: Outcome, config: str) -> None:
    run = MlflowClient(outcome.tracking_uri).get_run(outcome.run_id)
    folder = Path(json.loads(run.data.tags["magic141.artifact.quantize"])["uri"])
    (folder / "result.json").write_text("something else")
    again = run_unchanged(load_config(Path(config)), tasks.pipeline.STAGES)
    assert list(again.reused) == after("quantize")


def test_until_and_refresh(outcome: Outcome, config: str) -> None:
    assert list(pipeline(config, until="build_index").reused) == ["prepare_data", "train_clip", "build_index"]
    assert list(pipeline(config, refresh=["train_clip"]).reused) == after("train_clip")
    for arguments in ({"until": "destill_cfg"}, {"refresh": ["destill_cfg"]}):
        with pytest.raises(UserError, match="no such stage; did you mean 'distill_cfg'"):
            pipeline(config, **arguments)


def test_a_failed_stage_fails_the_parent_run(
    home: Path, config: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.pipeline, "STAGES", broken_at(tasks.pipeline.STAGES))
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline(config, ["seed=5"])
    client = MlflowClient(outcome.tracking_uri)
    experiment = client.get_run(outcome.run_id).info.experiment_id
    newest = client.search_runs([experiment], "tags.`magic141.kind` = 'pipeline'", max_results=1)[0]
    assert newest.info.status == "FAILED"


def test_a_run_is_refused_what_a_later_stage_would_be_refused_hours_later(outcome: Outcome, config: str) -> None:
    gpus = ["distill_cfg.placement.gpus_per_worker=1", "generate.num_workers=3", "generate.gpus_per_worker=1"]
    assert pipeline(config, gpus).reused == tuple(ALL)  # stages that are reused ask for nothing
    with pytest.raises(UserError) as refused:
        pipeline(config, [*gpus, "seed=11"])
    first, second = str(refused.value).splitlines()
    assert first.startswith("distill_cfg.placement.num_workers = 2: with gpus_per_worker = 1 they take 2 GPUs")
    assert second.startswith("generate.num_workers = 3: with gpus_per_worker = 1 they take 3 GPUs")
    with pytest.raises(UserError, match=r"^generate\.num_workers = 3: "):
        rerun(str(Path(config).parent), outcome.run_id, "generate", gpus[1:], refresh=["generate"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster may have them, or grow
        assert pipeline(config, [*gpus, "seed=11"], until="build_index").reused == ()


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("train_clip.model=ViT-L-15", r"^train_clip\.model = ViT-L-15: open_clip does not know it"),
        ("train_clip.pretrained=laion9b", r"^train_clip\.pretrained = laion9b: neither a file .* a tag of ViT-L-14"),
    ],
)
def test_a_clip_model_that_there_is_not_is_refused_before_the_corpus_is_prepared(
    wrong: str, line: str, config: str, home: Path, outcome: Outcome
) -> None:
    made = set((home / "artifacts" / "prepare_data").iterdir())
    with pytest.raises(UserError, match=line):
        pipeline(config, ["seed=12", "train_clip.kind=pretrained", "train_clip.pretrained=openai", wrong])
    assert set((home / "artifacts" / "prepare_data").iterdir()) == made


@pytest.mark.parametrize(("until", "at_work", "seed"), [(None, False, 99), ("train_clip", False, 97), (None, True, 95)])
def test_a_run_that_is_cancelled_in_prefect_ends_in_its_stage_or_after_it(
    until: str | None, at_work: bool, seed: int, outcome: Outcome, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker has started it, which would end it."""
    monkeypatch.setattr(cancellation, "LOOK_EVERY_S", 0.2 if at_work else 1000.0)

    def newest() -> FlowRun:
        with get_client(sync_client=True) as client:
            (run,) = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
            return run

    def cancelling(stage: Stage) -> Stage:
        def work(call: StageCall) -> None:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(newest().id, State(type=StateType.CANCELLING), force=True)
            if at_work:
                time.sleep(PATIENCE_S)
                raise AssertionError("nothing has ended the stage")
            stage.run(call)

        return replace(stage, run=work) if stage.name == "train_clip" else stage

    monkeypatch.setattr(tasks.pipeline, "STAGES", tuple(cancelling(stage) for stage in tasks.pipeline.STAGES))
    with pytest.raises(UserError, match="the run was cancelled in Prefect; finished stages are kept"):
        pipeline(config, [f"seed={seed}"], until)
    assert newest().state_type == StateType.CANCELLED, "neither for ever Cancelling nor failed"
