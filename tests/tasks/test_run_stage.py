"""The stage contract, with small real stages: key, reuse, record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magic141.config import PipelineConfig
from magic141.errors import UserError
from magic141.tracking import Tracker
from magic141.tracking.tags import TAG_MODEL
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageCall, StageContext
from tests.tasks.stages import FIRST, SECOND, printed, write_seed


def test_same_config_is_reused_and_recorded_on_the_parent(start: Callable[..., StageContext]) -> None:
    first, again = start("seed=1"), start("seed=1")
    made = [run_stage(stage, first) for stage in (FIRST, SECOND)]
    reused = [run_stage(stage, again) for stage in (FIRST, SECOND)]
    assert made == reused
    assert (first.reused, again.reused) == ([], ["first", "second"])
    assert f"reused from run {made[1].run_id}" in printed(again)
    tags = again.tracker.get_run(again.parent_id).data.tags
    assert tags["reused.second"] == made[1].run_id
    assert again.tracker.artifacts_of(again.tracker.get_run(again.parent_id))["second"] == made[1]


def test_files_that_change_before_the_work_begins_are_not_taken_for_those_of_the_key(
    start: Callable[..., StageContext],
) -> None:
    """As while it waits for another pipeline, which may take hours."""
    digests = iter(("old", "new", "new", "new"))
    stage = replace(FIRST, sources=lambda config: {"data.path": next(digests)})
    with pytest.raises(UserError, match=r"^first: data\.path changed since this run began; .* the same command again"):
        run_stage(stage, start("seed=14"))
    run_stage(stage, start("seed=14"))


def test_a_stage_finds_its_other_results_and_what_unfinished_runs_left_unless_it_is_refreshed(
    start: Callable[..., StageContext],
) -> None:
    seen: list[tuple[Path, ...]] = []

    def look(call: StageCall) -> None:
        seen.append(call.earlier)
        write_seed(call)

    stage = replace(FIRST, name="looking", run=look)
    contexts = [start("seed=31"), start("seed=32"), start("seed=32", refresh="looking")]
    left = contexts[0].home / "training" / "looking-0123456789ab"
    left.mkdir(parents=True)
    (contexts[0].home / "training" / "other-0123456789ab").mkdir()
    contexts[0].run_dir("looking", stage.key(contexts[0].config, {}).digest).mkdir()  # its own, which it goes on from
    made = [run_stage(stage, context) for context in contexts]
    assert seen == [(left,), (made[0].path, left), ()]


def write_only_times(call: StageCall) -> None:
    (call.out / "timing.json").write_text("0.1")


@pytest.mark.parametrize(
    ("stage", "makes_a_model"),
    [(SECOND, True), (replace(SECOND, run=write_only_times, volatile=("timing.json",)), False)],
)
def test_a_stage_that_leaves_its_work_out_makes_no_model(
    stage: Stage, makes_a_model: bool, start: Callable[..., StageContext]
) -> None:
    context = start(f"seed={20 + makes_a_model}")
    run_stage(FIRST, context)
    made = run_stage(stage, context)
    assert (TAG_MODEL in context.tracker.get_run(made.run_id).data.tags) == makes_a_model
    assert made.is_empty != makes_a_model


def test_what_another_experiment_made_is_reused_and_stays_as_it_was(
    start: Callable[..., StageContext], tracker: Tracker
) -> None:
    made = run_stage(FIRST, start("seed=12"))
    context = start("seed=12")
    context.tracker = Tracker(tracker.workspace, "other team")
    context.parent_id = context.tracker.start_parent("test", "pipeline", {}).run_id
    assert run_stage(FIRST, context) == made


def test_a_result_is_reused_although_its_pipeline_has_no_record_of_it(start: Callable[..., StageContext]) -> None:
    """As of one that was killed right after the stage, or was deleted."""
    context = start("seed=15")
    made = run_stage(FIRST, context)
    context.tracker.client.delete_run(context.parent_id)
    assert run_stage(FIRST, start("seed=15")) == made


def test_only_what_depends_on_a_change_runs_again(start: Callable[..., StageContext]) -> None:
    for overrides, reused in (
        (("seed=2",), []),
        (("seed=2", "model.mlp_ratio=2"), ["first"]),
        (("seed=2", "data.num_workers=3", "evaluate.frechet_dimensions=8"), ["first", "second"]),
        (("seed=2", "data.num_frames=15"), []),
    ):
        context = start(*overrides)
        for stage in (FIRST, SECOND):
            run_stage(stage, context)
        assert context.reused == reused


def test_deleted_or_altered_artifacts_are_made_again_and_said(start: Callable[..., StageContext]) -> None:
    ref = run_stage(FIRST, start("seed=4"))
    (ref.path / "data.txt").write_text("tampered")
    context = start("seed=4")
    assert run_stage(FIRST, context).digest == ref.digest
    assert context.reused == []
    assert "altered behind the finished run" in printed(context)


def test_the_record_holds_key_inputs_and_environment(start: Callable[..., StageContext]) -> None:
    context = start("seed=5")
    first, second = (run_stage(stage, context) for stage in (FIRST, SECOND))
    record = json.loads(context.tracker.read_file(second.run_id, "stage.json"))
    assert record["key"] == second.key
    assert record["parts"]["inputs"] == {"first": first.digest}
    assert record["modules"] == SECOND.code()
    assert record["inputs"]["first"]["run_id"] == first.run_id
    assert (record["summary"], record["notes"]) == ({"accuracy": 1, "engine": "plain"}, ["copied"])
    assert {"git_commit", "libraries", "machine", "cpu", "device", "seconds"} <= record.keys()
    run = context.tracker.get_run(second.run_id)
    assert run.data.tags.get("mlflow.source.git.commit") == record["git_commit"]
    assert run.data.params["model.mlp_ratio"] == "4.0"
    assert (run.data.metrics["loss"], run.data.metrics["accuracy"], run.data.tags["engine"]) == (0.5, 1.0, "plain")
    assert run.info.status == "FINISHED"


def test_the_version_and_the_content_of_sources_are_in_the_key() -> None:
    changes: list[dict[str, Any]] = [{}, {"version": 2}, *({"sources": lambda _, d=d: {"path": d}} for d in "ab")]
    keys = {replace(FIRST, **change).key(PipelineConfig(), {}).digest for change in changes}
    assert len(keys) == len(changes)


def test_a_stage_is_told_of_its_artifact_whether_it_was_made_or_there(start: Callable[..., StageContext]) -> None:
    told = []
    stage = replace(FIRST, name="telling", on_ready=lambda _, ref: told.append(ref))
    assert [run_stage(stage, start("seed=13")) for _ in range(2)] == told
