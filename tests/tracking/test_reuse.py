"""What was computed before: found, passed over, kept by pipeline runs; refreshes that go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from magic141.artifacts.references import ArtifactRef
from magic141.tracking import Tracker, begun_refresh, find_reusable
from magic141.tracking.tags import TAG_ARTIFACT, TAG_HOST
from tests.tracking.made import make_artifact, make_file


def test_finished_artifact_is_found_and_an_altered_one_is_not(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "train", "key-a")
    assert find_reusable(tracker, "train", "key-a").ref == ref
    (ref.path / "file.txt").write_text("tampered")
    found = find_reusable(tracker, "train", "key-a")
    assert found.ref is None
    assert found.note is not None
    assert "altered behind the finished run" in found.note
    (ref.path / "file.txt").unlink()
    ref.path.rmdir()
    assert "deleted" in str(find_reusable(tracker, "train", "key-a").note)
    assert find_reusable(tracker, "train", "unknown") == type(found)(None, None)


def test_a_result_that_this_user_cannot_reach_is_passed_over_for_one_that_is_reachable(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = make_artifact(tracker, "train", "key-l")
    theirs = make_artifact(tracker, "train", "key-l")
    closed = tracker.workspace / "home of another"
    shutil.move(theirs.path, closed / "theirs")
    tracker.client.set_tag(
        theirs.run_id, TAG_ARTIFACT, theirs.model_copy(update={"uri": str(closed / "theirs")}).model_dump_json()
    )
    is_dir = Path.is_dir

    def enter(path: Path) -> bool:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", enter)
    for verify in (True, False):
        found = find_reusable(tracker, "train", "key-l", verify=verify)
        assert found.ref is None
        assert f"of run {theirs.run_id}, is not readable for this user" in str(found.note)
    make_file(mine.path)
    assert find_reusable(tracker, "train", "key-l").ref == mine


def test_a_result_on_another_machine_was_not_deleted(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "train", "key-m")
    shutil.rmtree(ref.path)
    tracker.client.set_tag(ref.run_id, TAG_HOST, "node-7")
    note = find_reusable(tracker, "train", "key-m").note
    assert note == f"its artifact {ref.uri} is not on this machine: node-7 made it, in run {ref.run_id}: computed here"


def test_a_pipeline_run_keeps_a_result_whose_own_run_was_deleted(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "train", "key-n")
    maker = tracker.get_run(ref.run_id).data.tags["mlflow.parentRunId"]
    other = tracker.start_parent("another config", "pipeline", {})
    tracker.set_artifact(other.run_id, ref, reused=True)
    for run_id in (ref.run_id, maker):
        tracker.client.delete_run(run_id)
    assert find_reusable(tracker, "train", "key-n").ref == ref
    tracker.client.delete_run(other.run_id)
    assert find_reusable(tracker, "train", "key-n").ref is None


def test_a_refresh_is_over_once_a_finished_run_has_its_result_whatever_that_asked_for(tracker: Tracker) -> None:
    asking = tracker.start_parent("demo", "pipeline", {})
    again = tracker.start_stage("train", "key-o", asking.run_id, refresh=True)
    again.close("FINISHED")
    asking.close("FAILED")  # at a later stage
    assert begun_refresh(tracker, "train", "key-o").info.run_id == again.run_id  # type: ignore[union-attr]
    ref = ArtifactRef(stage="train", key="key-o", uri="/nowhere", digest="d", run_id=again.run_id)
    corrected = tracker.start_parent("demo", "pipeline", {})  # without --refresh
    tracker.set_artifact(corrected.run_id, ref, reused=True)
    assert begun_refresh(tracker, "train", "key-o") is not None
    corrected.close("FINISHED")
    assert begun_refresh(tracker, "train", "key-o") is None


def test_a_refresh_stays_over_when_the_run_that_took_its_result_is_deleted(tracker: Tracker) -> None:
    asking = tracker.start_parent("demo", "pipeline", {})
    again = tracker.start_stage("train", "key-r", asking.run_id, refresh=True)
    ref = ArtifactRef(stage="train", key="key-r", uri=str(tracker.workspace), digest="d", run_id=again.run_id)
    again.artifact(ref)
    again.close("FINISHED")
    tracker.set_artifact(asking.run_id, ref, reused=False)
    asking.close("FINISHED")
    assert begun_refresh(tracker, "train", "key-r") is None
    tracker.client.delete_run(asking.run_id)
    assert begun_refresh(tracker, "train", "key-r") is None


def test_an_unfinished_refresh_is_seen_from_every_experiment(tracker: Tracker) -> None:
    again = tracker.start_stage("train", "key-s", "parent", refresh=True)
    again.close("KILLED")
    begun = begun_refresh(Tracker(tracker.workspace, "another"), "train", "key-s")
    assert begun
    assert begun.info.run_id == again.run_id


def test_a_refresh_whose_result_is_in_another_workspace_is_not_continued_here(tracker: Tracker) -> None:
    again = tracker.start_stage("train", "key-t", "parent", refresh=True)
    again.artifact(ArtifactRef(stage="train", key="key-t", uri="/gone", digest="d", run_id=again.run_id))
    again.close("FINISHED")
    assert begun_refresh(tracker, "train", "key-t") is None


def test_failed_runs_are_not_reused(tracker: Tracker) -> None:
    parent = tracker.start_parent("demo", "pipeline", {})
    run = tracker.start_stage("train", "key-b", parent.run_id)
    run.close("FAILED")
    assert find_reusable(tracker, "train", "key-b").ref is None
    assert tracker.get_run(run.run_id).info.status == "FAILED"
    assert tracker.get_run(run.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_a_result_is_found_behind_any_number_of_newer_ones_that_are_gone(tracker: Tracker) -> None:
    """As of nightly runs of other machines in one store."""
    mine = make_artifact(tracker, "train", "key-many")
    parent = tracker.start_parent("demo", "pipeline", {})
    for number in range(60):
        run = tracker.start_stage("train", "key-many", parent.run_id)
        run.artifact(mine.model_copy(update={"uri": f"/gone/{number}", "run_id": run.run_id}))
        run.close("FINISHED")
    assert find_reusable(tracker, "train", "key-many").ref == mine


def test_an_artifact_of_a_run_that_did_not_finish_is_not_reused(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "train", "key-q")
    for run_id in (tracker.get_run(ref.run_id).data.tags["mlflow.parentRunId"], ref.run_id):
        tracker.client.delete_run(run_id)
    killed = tracker.start_stage("train", "key-q", "parent")
    killed.artifact(ref.model_copy(update={"run_id": killed.run_id}))
    killed.close("KILLED")
    assert find_reusable(tracker, "train", "key-q").ref is None
