"""Stages again on an earlier run: evaluation, any stage, and the plan of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from flows.evaluation import evaluation
from flows.pipeline import pipeline, rerun
from flows.planning.plan import as_json, plan_of
from flows.records.session import Outcome
from flows.sweep import sweep
from magic141.errors import UserError
from magic141.tracking import open_store
from tests.flows.tiny.stages import ALL

pytestmark = pytest.mark.slow


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


def test_a_run_is_compared_with_its_origin_or_with_the_configs_last(outcome: Outcome, home: Path, config: str) -> None:
    last = pipeline(config, ["report.title=last"])
    assert evaluation(str(home), run_id=outcome.run_id).previous == outcome.run_id
    swept = sweep(config, ["report.title=a,b"])
    assert pipeline(config, until="distill_cfg").previous is None
    assert pipeline(config, ["report.title=new"]).previous == last.run_id
    assert pipeline(config, ["name=another"]).previous is None
    member = str(swept.members[0].run_id)
    assert rerun(str(home), member, "report").previous == member


def test_a_configs_name_may_have_quotes(outcome: Outcome, config: str) -> None:
    quoted = ['name=Bob\'s "best" run']
    assert pipeline(config, quoted).previous is None
    assert pipeline(config, [*quoted, "report.title=again"]).previous is not None


def test_an_evaluation_works_in_the_workspace_that_it_is_given(
    outcome: Outcome, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the event of a candidate, whatever the worker's own is."""
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    judged = evaluation(str(home), run_id=outcome.run_id, overrides=["evaluate.frechet_dimensions=3"])
    assert open_store(home).get_run(judged.run_id).data.tags["origin_run"] == outcome.run_id
    assert not any(tmp_path.iterdir())
    assert os.environ["MAGIC141_HOME"] == str(tmp_path)


def test_a_collapsed_student_is_only_taken_by_who_asks_for_it(outcome: Outcome, home: Path, config: str) -> None:
    """The same work: going on in spite of a collapse is no other result, but not everyone's."""
    changed = ["distill_dmd2.a_weak=0.3"]
    pipeline(config, [*changed, "distill_dmd2.collapse.stop=false"], until="distill_dmd2")
    with pytest.raises(UserError, match=r"collapse.stop = true: the student of run \w+ had collapsed at its end"):
        pipeline(config, changed)
    assert "distill_dmd2" in pipeline(config, [*changed, "distill_dmd2.collapse.stop=false"]).reused


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
        (
            ("distill_dmd2", ["pretrain_i2v.num_steps=3"]),
            "pretrain_i2v is kept from run .*; use `magic141 run --run .* --from pretrain_i2v --set ",
        ),
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
    assert first["estimate"]["memory_gib"] > 0
    assert last["estimate"]["resources"] == "this process"
