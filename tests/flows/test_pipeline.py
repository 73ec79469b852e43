"""The flows on a small pipeline: order, reuse, until, refresh, plan, evaluation of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.testing.utilities import prefect_test_harness

import tasks.pipeline
from flows.comparison import compare
from flows.evaluation import evaluation
from flows.notify import URL_VARIABLE
from flows.pipeline import pipeline, rerun
from flows.plan import as_json, make_plan, plan_of
from flows.promotion import promote, rollback
from flows.resume import is_resumable
from flows.session import Outcome
from flows.sweep import SweepFailed, sweep
from flows.unchanged import run_unchanged
from magic141.artifacts import digest_folder
from magic141.config import load_config
from magic141.frozen import UserError
from magic141.tracking import open_store
from tasks.stage import Stage, StageCall
from tests.flows.conftest import Webhook
from tests.models.tiny import INFO

pytestmark = pytest.mark.slow
MISSING = {"value": None, "reason": "no clips"}
SCORES = {
    "variants": [
        {"name": "teacher_4", "scores": {"motion": {"value": 0.9, "reason": None}}},
        {
            "name": "student_4",
            "scores": {"motion": {"value": 0.8, "reason": None}, "fd": MISSING},
        },
    ]
}


COUNTED = INFO.model_copy(update={"num_clips": {"train": 6000}})


def fake(stage: Stage) -> Stage:
    """The stage with its own key and inputs, but a tiny piece of work that reads what it is given."""

    def work(call: StageCall) -> None:
        inputs = {name: digest_folder(folder) for name, folder in call.inputs.items()}
        settings = {name: str(value) for name, value in stage.settings(call.config).items()}
        (call.out / "result.json").write_text(json.dumps([stage.name, inputs, settings, call.seed]))
        if stage.name == "prepare_data":
            (call.out / "dataset.json").write_text(COUNTED.model_dump_json())
        if stage.name == "distill_dmd2":
            call.log.summary({"collapsed": 0})
        if stage.name == "evaluate":
            (call.out / "scores.json").write_text(json.dumps(SCORES))
        if stage.name == "report":
            (call.out / "report.html").write_text("<html>")

    return replace(stage, run=work, modules=("magic141.frozen",))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    stages = tuple(fake(stage) for stage in tasks.pipeline.STAGES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAGIC141_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        patch.setattr(tasks.pipeline, "STAGES", stages)
        with prefect_test_harness(server_startup_timeout=180):
            yield folder


@pytest.fixture(scope="module")
def config(home: Path) -> str:
    (home / "config.yaml").write_text("name: tiny\n")
    return str(home / "config.yaml")


@pytest.fixture(scope="module")
def outcome(config: str) -> Outcome:
    return pipeline(config)


ALL = [stage.name for stage in tasks.pipeline.STAGES]


def after(*stages: str) -> list[str]:
    return [name for name in ALL if name not in stages]


def test_whole_pipeline_publishes_and_scores(outcome: Outcome, config: str) -> None:
    assert outcome.reused == ()
    assert Path(str(outcome.report)).read_text() == "<html>"
    client = MlflowClient(outcome.tracking_uri)
    run = client.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
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


GATE = [{"metric": "student/motion", "better": "higher", "tolerance": 0.0}]


def test_the_gate_decides_what_becomes_the_champion(outcome: Outcome, home: Path) -> None:
    gate, unknown = ([f"publish.gate={json.dumps([GATE[0] | {'metric': m}])}"] for m in ("student/motion", "student/x"))
    with pytest.raises(UserError, match=r"publish\.gate: metric student/x: .* known: student/motion"):
        promote(home, "models:/magic141@candidate", unknown)
    first = promote(home, "models:/magic141@candidate", gate)
    assert (first.promoted, first.champion) == (True, "models:/magic141@champion")
    with pytest.raises(UserError, match="already; nothing to do"):
        promote(home, first.champion, gate)
    with pytest.raises(UserError, match="no earlier promotion"):
        rollback(home, "models:/magic141@candidate")


def test_runs_are_compared_by_their_ids(outcome: Outcome, config: str, home: Path, tmp_path: Path) -> None:
    other = pipeline(config, ["report.title=other"])
    scores, fields = compare(home, [outcome.run_id, other.run_id], "student_4", tmp_path / "page.html")
    assert scores.row_count >= 1
    assert list(fields.columns[0].cells) == ["report.title"]
    assert (tmp_path / "page.html").is_file()
    mistakes = {("x",): "two or more", ("x", "y"): "no such run"}
    for ids, line in mistakes.items():
        with pytest.raises(UserError, match=line):
            compare(home, ids, "student_4", None)
    with pytest.raises(UserError, match="--variant nobody: no run has scores"):
        compare(home, [outcome.run_id, other.run_id], "nobody", None)


def test_a_run_with_nothing_to_do_needs_no_orchestrator(outcome: Outcome, config: str) -> None:
    stages = tasks.pipeline.STAGES
    released: list[bool] = []
    again = run_unchanged(load_config(Path(config)), stages, lambda: released.append(True))
    assert released == [True], "others wait for a server that starts"
    assert again is not None
    assert list(again.reused) == ALL
    assert again.report == outcome.report
    first, second = (MlflowClient(outcome.tracking_uri).get_run(run.run_id) for run in (outcome, again))
    assert second.info.status == "FINISHED"
    assert "prefect.flow_run_id" not in second.data.tags
    assert second.data.metrics["student/motion"] == first.data.metrics["student/motion"]
    assert run_unchanged(load_config(Path(config), ["report.title=Not made yet"]), stages, pytest.fail) is None


def test_a_result_altered_meanwhile_is_made_again_without_an_orchestrator_too(outcome: Outcome, config: str) -> None:
    run = MlflowClient(outcome.tracking_uri).get_run(outcome.run_id)
    folder = Path(json.loads(run.data.tags["magic141.artifact.quantize"])["uri"])
    (folder / "result.json").write_text("something else")
    again = run_unchanged(load_config(Path(config)), tasks.pipeline.STAGES, lambda: None)
    assert again is not None
    assert list(again.reused) == after("quantize")


def test_until_and_refresh(outcome: Outcome, config: str) -> None:
    assert list(pipeline(config, until="build_index").reused) == ["prepare_data", "train_clip", "build_index"]
    assert list(pipeline(config, refresh=["train_clip"]).reused) == after("train_clip")
    for arguments in ({"until": "destill_cfg"}, {"refresh": ["destill_cfg"]}):
        with pytest.raises(UserError, match="no such stage; did you mean 'distill_cfg'"):
            pipeline(config, **arguments)


def test_a_nightly_evaluation_waits_for_a_first_champion(outcome: Outcome, home: Path, tmp_path: Path) -> None:
    for workspace, model in ((home, "models:/magic141@nobody"), (tmp_path, "models:/magic141@champion")):
        state = evaluation(str(workspace), model=model, if_there=True, return_state=True)
        assert (state.name, state.message) == ("Skipped", f"{model} names nothing yet")
        with pytest.raises(UserError):
            evaluation(str(workspace), model=model)


def test_evaluation_of_a_run_or_model_runs_only_the_judging_stages(outcome: Outcome, home: Path) -> None:
    assert evaluation(str(home), run_id=outcome.run_id).reused == ("generate", "evaluate", "report")
    judged = evaluation(str(home), model="models:/magic141/1", overrides=["generate.num_seeds=1"], if_there=True)
    assert judged.reused == ()
    tracker = open_store(home)
    run = tracker.get_run(judged.run_id)
    assert run.data.tags["origin_run"] == outcome.run_id
    newest, *_ = tracker.registry.runs_with(tracker.artifacts_of(run)["distill_dmd2"])
    assert newest.info.run_id == judged.run_id  # this is how a promotion finds it


def test_any_stage_runs_again_on_an_earlier_run(outcome: Outcome, home: Path) -> None:
    changed = rerun(str(home), outcome.run_id, "distill_dmd2", ["distill_dmd2.a_weak=0.125", "seed=7"], "quantize")
    client = MlflowClient(changed.tracking_uri)
    tags = client.get_run(changed.run_id).data.tags
    assert changed.reused == ()
    assert tags["origin_run"] == outcome.run_id
    assert tags["reused.distill_cfg"] == client.get_run(outcome.run_id).data.tags.get(
        "reused.distill_cfg", json.loads(tags["magic141.artifact.distill_cfg"])["run_id"]
    )
    # the new run is as good an origin as the old one, also for a stage before those that ran
    earlier = rerun(str(home), changed.run_id, "pretrain_i2v", ["seed=0"], "distill_cfg")
    assert list(earlier.reused) == ["pretrain_i2v", "distill_cfg"]
    # publish samples by this field, too, but does not run here
    rerun(str(home), outcome.run_id, "distill_dmd2", ["distill_dmd2.sampler=euler"], "quantize")
    again = rerun(str(home), "models:/magic141/1")
    assert list(again.reused) == ALL


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("distill_dmd2", ["pretrain_i2v.num_steps=3"]), "pretrain_i2v is kept from run .*; start with --from"),
        (("distill_dmd2", ["model.num_layers=3"]), "pretrain_t2v is kept from run"),
        (("quantize", [], "distill_cfg"), "--from quantize: comes after --until distill_cfg"),
        (("quantise", []), "did you mean 'quantize'"),
        (("pretrain_i2v", ["pretrain_i2v.base=/nowhere"]), "pretrain_i2v.base = /nowhere: no such folder"),
    ],
)
def test_a_rerun_keeps_what_it_does_not_run(
    outcome: Outcome, home: Path, arguments: tuple[Any, ...], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        rerun(str(home), outcome.run_id, *arguments)


def test_plan_of_a_rerun_says_what_it_asks_for(outcome: Outcome, home: Path) -> None:
    plan = plan_of(home, None, outcome.run_id, "distill_dmd2", None, overrides=["distill_dmd2.num_steps=600"])
    first, *_, last = rows = json.loads(as_json(list(plan)))
    assert [row["stage"] for row in rows] == ALL[ALL.index("distill_dmd2") :]
    assert (first["action"], first["changes"]) == ("run", ["distill_dmd2.num_steps: 300 -> 600"])
    assert first["estimate"]["resources"] == "2 x 1 CPU (ddp)"
    assert first["estimate"]["memory_gb"] > 0
    assert last["estimate"]["resources"] == "this process"


def test_a_sweep_shares_stages_and_survives_a_member_that_fails(
    outcome: Outcome, config: str, home: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.pipeline, "STAGES", _broken(tasks.pipeline.STAGES, at_seed=9))
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
    assert {file.path for file in client.list_artifacts(swept.run_id)} == {"sweep.json", "sweep.html"}
    for member in done:
        tags = client.get_run(str(member.run_id)).data.tags
        assert tags["mlflow.parentRunId"] == swept.run_id
    assert evaluation(str(home), run_id=done[0].run_id).reused == ("generate", "evaluate", "report")


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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"run_id": "nonsense"}, "run nonsense: no such run"),
        ({"model": "models:/magic141@nobody"}, "not in the registry"),
        ({}, "give either --run ID or --model URI"),
    ],
)
def test_evaluation_of_what_does_not_exist(outcome: Outcome, home: Path, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        evaluation(str(home), **arguments)


def test_evaluation_keeps_the_models(outcome: Outcome, home: Path) -> None:
    with pytest.raises(UserError, match="distill_dmd2 is kept from run"):
        evaluation(str(home), run_id=outcome.run_id, overrides=["distill_dmd2.num_steps=3"])


def test_a_failed_stage_fails_the_parent_run(
    home: Path, config: str, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.pipeline, "STAGES", _broken(tasks.pipeline.STAGES))
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline(config, ["seed=5"])
    client = MlflowClient(outcome.tracking_uri)
    experiment = client.get_run(outcome.run_id).info.experiment_id
    newest = client.search_runs([experiment], "tags.`magic141.kind` = 'pipeline'", max_results=1)[0]
    assert newest.info.status == "FAILED"


def _broken(stages: tuple[Stage, ...], at_seed: int = 5) -> tuple[Stage, ...]:
    """The stages with a train_clip that fails at one seed."""

    def broken(stage: Stage) -> Stage:
        def work(call: StageCall) -> None:
            if call.seed == at_seed:
                raise RuntimeError("out of memory")
            stage.run(call)

        return replace(stage, run=work) if stage.name == "train_clip" else stage

    return tuple(broken(stage) for stage in stages)
