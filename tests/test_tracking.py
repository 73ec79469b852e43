"""Tracking against a real SQLite store: reuse, truthful closing, lineage, registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from magic141.artifacts import ArtifactRef, digest_folder
from magic141.frozen import UserError
from magic141.tracking import Tracker, begun_refresh, find_reusable, run_log, store_exists
from magic141.tracking.liveness import STALE_SECONDS
from magic141.tracking.run_log import metric_name
from magic141.tracking.tags import TAG_ARTIFACT, TAG_HEARTBEAT, TAG_HOST, TAG_PID, TAG_PROCESSES
from magic141.tracking.tracker import tracking_uri


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Tracker(tmp_path_factory.mktemp("home"), "tests")


def make_file(folder: Path, text: str = "weights") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file.txt").write_text(text)


def make_artifact(tracker: Tracker, stage: str, key: str, text: str = "weights") -> ArtifactRef:
    folder = tracker.workspace / "artifacts" / stage / key
    make_file(folder, text)
    parent = tracker.start_parent("demo", "pipeline", {})
    run = tracker.start_stage(stage, key, parent.run_id)
    ref = ArtifactRef(stage=stage, key=key, uri=str(folder), digest=digest_folder(folder), run_id=run.run_id)
    run.artifact(ref)
    run.model(ref, tracker.experiment_id, "transformer")
    tracker.set_artifact(parent.run_id, ref, reused=False)
    run.close("FINISHED")
    parent.close("FINISHED")
    return ref


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


def test_looking_for_results_creates_no_experiment(tracker: Tracker) -> None:
    looking = Tracker(tracker.workspace, "a typo")
    assert looking.records("train", limit=1) == []
    assert looking.close_stale() == 0
    assert find_reusable(looking, "train", "never").ref is None
    assert tracker.client.get_experiment_by_name("a typo") is None
    assert looking.search("", everywhere=True)


def test_failed_runs_are_not_reused(tracker: Tracker) -> None:
    parent = tracker.start_parent("demo", "pipeline", {})
    run = tracker.start_stage("train", "key-b", parent.run_id)
    run.close("FAILED")
    assert find_reusable(tracker, "train", "key-b").ref is None
    assert tracker.get_run(run.run_id).info.status == "FAILED"
    assert tracker.get_run(run.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_runs_of_dead_processes_are_closed_as_killed(tracker: Tracker) -> None:
    parent = tracker.start_parent("demo", "pipeline", {})
    alive, dead = (tracker.start_stage("train", "key-c", parent.run_id) for _ in range(2))
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead.tags({"magic141.pid": process.stdout.decode().strip()})
    assert tracker.close_stale_stage("key-c") == 1
    assert tracker.get_run(dead.run_id).info.status == "KILLED"
    assert tracker.get_run(alive.run_id).info.status == "RUNNING"


def test_runs_of_other_machines_are_closed_when_their_heartbeat_has_stopped(tracker: Tracker) -> None:
    silent, beating, older = (tracker.start_stage("train", "key-i", "parent") for _ in range(3))
    now = time.time()
    silent.tags({TAG_PROCESSES: "a-pod-that-is-gone", TAG_HEARTBEAT: f"{now - STALE_SECONDS - 60:.0f}"})
    # a container beside this one, with this host's name: the process id that is unknown here is one of its own
    beating.tags({TAG_PROCESSES: "container", TAG_PID: "4000000", TAG_HEARTBEAT: f"{now - STALE_SECONDS + 60:.0f}"})
    older.tags({TAG_PROCESSES: "a-pod-of-an-earlier-version"})
    tracker.client.delete_tag(older.run_id, TAG_HEARTBEAT)
    tracker.start_parent("demo", "pipeline", {}).close("FINISHED")
    assert [tracker.get_run(run.run_id).info.status for run in (silent, beating, older)] == [
        "KILLED",
        "RUNNING",
        "RUNNING",
    ]
    silent.close("FINISHED")  # it was only out of reach
    assert tracker.get_run(silent.run_id).info.status == "FINISHED"


def test_the_heart_beats_until_the_run_is_closed_and_survives_a_store_that_does_not_answer(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "HEARTBEAT_SECONDS", 0.05)
    run = tracker.start_stage("train", "key-j", "parent")
    assert float(tracker.get_run(run.run_id).data.tags[TAG_HEARTBEAT]) == pytest.approx(time.time(), abs=60)
    with monkeypatch.context() as away:
        away.setattr(tracker.client, "set_tag", raising)
        time.sleep(0.3)
    run.tags({TAG_HEARTBEAT: "0"})
    time.sleep(0.5)
    assert float(tracker.get_run(run.run_id).data.tags[TAG_HEARTBEAT]) > 0
    run.close("FINISHED")
    time.sleep(0.3)  # a beat that was under way
    run.tags({TAG_HEARTBEAT: "0"})
    time.sleep(0.3)
    assert float(tracker.get_run(run.run_id).data.tags[TAG_HEARTBEAT]) == 0


def raising(*_: object) -> None:
    raise MlflowException("no answer")


def test_metrics_params_media_and_lineage_are_kept(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "teacher", "key-d")
    data = ref.model_copy(update={"stage": "prepare_data"})
    run = tracker.start_stage("student", "key-e", "parent")
    for step in range(3):
        run.metrics({"recall@1": step / 2}, step)
    run.params({"student": {"optimizer": {"lr": 0.1}}, "seed": 3})
    run.image("samples/clip", np.zeros((8, 8, 3), np.uint8), step=2)
    run.text("{}", "stage.json")
    run.inputs([ref, data], datasets=("prepare_data",), context="training")
    run.close("FINISHED")
    kept = tracker.get_run(run.run_id)
    assert kept.data.params == {"student.optimizer.lr": "0.1", "seed": "3"}
    history = tracker.client.get_metric_history(run.run_id, metric_name("recall@1"))
    assert [(m.step, m.value) for m in history] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert len(kept.inputs.model_inputs) == len(kept.inputs.dataset_inputs) == 1
    assert any("samples" in file.path for file in tracker.client.list_artifacts(run.run_id, "images"))
    assert tracker.records("student", limit=1) == [{}]


def test_lineage_leaves_out_models_whose_run_was_deleted_for_good(tracker: Tracker) -> None:
    kept = make_artifact(tracker, "teacher", "key-k")
    purged = kept.model_copy(update={"run_id": "0" * 32})
    run = tracker.start_stage("student", "key-l", "parent")
    run.inputs([purged, kept], datasets=(), context="training")
    assert len(tracker.get_run(run.run_id).inputs.model_inputs) == 1


def test_the_machine_is_watched_while_a_stage_runs(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    run = tracker.start_stage("train", "key-h", "parent")
    with run.watching_the_machine():
        time.sleep(0.5)
    assert tracker.get_run(run.run_id).data.metrics["system/system_memory_usage_megabytes"] > 0


def test_registered_model_resolves_by_alias_and_version(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "publish", "key-f")
    assert [tracker.registry.register("net", ref, "candidate", {}) for _ in range(2)] == ["1", "1"]
    other = make_artifact(tracker, "publish", "key-g")
    assert tracker.registry.register("net", other, "candidate", {}) == "2"
    assert tracker.registry.resolve("models:/net@candidate") == other
    assert tracker.registry.resolve("models:/net/1") == ref
    mistakes = {"net": "expected models:/", "models:/net@x": "models:/net@candidate", "models:/a/1": "not in"}
    for uri, line in mistakes.items():
        with pytest.raises(UserError, match=line):
            tracker.registry.resolve(uri)


def test_promotions_are_remembered_and_rolled_back_in_order(tracker: Tracker) -> None:
    registry = tracker.registry
    for number in range(3):
        registry.register("film", make_artifact(tracker, "publish", f"key-film{number}"), "candidate", {})
        registry.promote("film", "champion", str(number + 1), forced=number == 2)
    assert [(p.version, p.action) for p in registry.history("film", "champion")] == [
        ("1", "promote"),
        ("2", "promote"),
        ("3", "forced"),
    ]
    assert registry.rollback("film", "champion") == "2"
    assert registry.rollback("film", "champion") == "1"
    found = registry.alias_version("film", "champion")
    assert found is not None
    assert str(found.version) == "1"
    with pytest.raises(UserError, match="no earlier promotion"):
        registry.rollback("film", "champion")
    assert len(registry.history("film", "champion")) == 5
    assert registry.alias_version("film", "nobody") is None
    assert registry.alias_version("no such model", "champion") is None
    with pytest.raises(UserError, match="model nowhere: not in the registry"):
        registry.history("nowhere", "champion")


def test_a_champion_that_was_set_by_hand_is_rolled_back_to(tracker: Tracker) -> None:
    registry = tracker.registry
    for number in range(3):
        registry.register("scene", make_artifact(tracker, "publish", f"key-scene{number}"), "candidate", {})
    registry.client.set_registered_model_alias("scene", "champion", "1")
    registry.promote("scene", "champion", "2")
    registry.client.set_registered_model_alias("scene", "champion", "3")
    assert [registry.rollback("scene", "champion") for _ in range(2)] == ["2", "1"]
    assert [(p.version, p.action) for p in registry.history("scene", "champion")] == [
        ("1", "outside"),
        ("2", "promote"),
        ("3", "outside"),
        ("2", "rollback"),
        ("1", "rollback"),
    ]


def test_a_rollback_passes_over_versions_that_were_deleted(tracker: Tracker) -> None:
    registry = tracker.registry
    for number in range(4):
        registry.register("cut", make_artifact(tracker, "publish", f"key-cut{number}"), "candidate", {})
        registry.promote("cut", "champion", str(number + 1))
    for version in ("2", "3"):
        registry.client.delete_model_version("cut", version)
    assert registry.rollback("cut", "champion") == "1"
    with pytest.raises(UserError, match="no earlier promotion"):
        registry.rollback("cut", "champion")


def test_a_store_that_refuses_is_not_a_missing_run_or_model(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise MlflowException("failed with error code 401 != 200")

    for name in ("get_run", "get_model_version", "get_registered_model"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    for ask in (
        lambda: tracker.get_run("1f"),
        lambda: tracker.registry.version("models:/film/1"),
        lambda: tracker.registry.history("film", "champion"),
    ):
        with pytest.raises(MlflowException, match="401"):
            ask()


def test_a_failing_store_is_not_a_missing_champion(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> None:
        raise MlflowException("the database is locked")  # INTERNAL_ERROR

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(MlflowException, match="locked"):
        tracker.registry.alias_version("film", "champion")


def test_run_lookup(tracker: Tracker) -> None:
    ref = make_artifact(tracker, "train", "key-h")
    parent = tracker.pipeline_run(ref.run_id)
    assert tracker.artifacts_of(parent) == {"train": ref}
    assert tracker.pipeline_run(parent.info.run_id).info.run_id == parent.info.run_id
    with pytest.raises(UserError, match="run nonsense: no such run"):
        tracker.get_run("nonsense")
    with pytest.raises(UserError, match="has no file"):
        tracker.read_file(ref.run_id, "config.yaml")
    with pytest.raises(UserError, match="has no file"):
        tracker.read_file("nonsense", "config.yaml")


def test_a_file_that_cannot_be_fetched_is_not_a_missing_one(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.start_parent("demo", "pipeline", {})
    run.text("name: demo", "config.yaml")
    assert tracker.read_file(run.run_id, "config.yaml") == "name: demo"

    def refuse(*_: str) -> str:
        raise MlflowException("HTTP 503 of the artifact store")

    monkeypatch.setattr(MlflowClient, "download_artifacts", refuse)
    with pytest.raises(MlflowException, match="503"):
        tracker.read_file(run.run_id, "config.yaml")


RACER = """
import sys, time
from pathlib import Path
from magic141.tracking import Tracker
time.sleep(max(0, float(sys.argv[2]) - time.time()))
print(Tracker(Path(sys.argv[1]), "new").client.get_experiment("0").name)
"""


@pytest.mark.slow
def test_a_new_store_survives_two_runs_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command = [sys.executable, "-c", RACER, str(tmp_path), f"{time.time() + 15}"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["Default\n"] * 2


def test_what_another_run_has_just_created_is_taken(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Tracker(tracker.workspace, "another")
    assert other.experiment_id
    seen: list[object] = [None]
    late = Tracker(tracker.workspace, "another")
    look = late.client.get_experiment_by_name
    monkeypatch.setattr(late.client, "get_experiment_by_name", lambda name: seen.pop() if seen else look(name))
    assert late.experiment_id == other.experiment_id
    tracker.client.create_registered_model("another-net")
    ref = make_artifact(tracker, "publish", "key-m")
    assert tracker.registry.register("another-net", ref, "candidate", {}) == "1"


def test_default_store_is_in_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert not store_exists(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(tmp_path) == "http://127.0.0.1:1"
    assert store_exists(tmp_path)
