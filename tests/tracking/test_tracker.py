"""Opening a store, and looking things up in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from magic141.errors import UserError
from magic141.tracking import Tracker, find_reusable, run_files, store_exists
from magic141.tracking.store_address import tracking_uri
from tests.tracking.made import make_artifact


def test_looking_for_results_creates_no_experiment(tracker: Tracker) -> None:
    make_artifact(tracker, "train", "key-0")
    looking = Tracker(tracker.workspace, "a typo")
    assert looking.records("train", limit=1) == []
    looking.close_stale()
    assert find_reusable(looking, "train", "never").ref is None
    assert tracker.client.get_experiment_by_name("a typo") is None
    assert looking.search("", everywhere=True)
    assert looking.search("", 1_000_000, everywhere=True), "more than the store gives at once"


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


def test_a_deleted_run_is_found_by_the_beginning_of_its_id_as_by_the_whole(tracker: Tracker) -> None:
    run_id = tracker.start_parent("gone", "pipeline", {}).run_id
    tracker.client.delete_run(run_id)
    assert [tracker.get_run(known).info.lifecycle_stage for known in (run_id, run_id[:8])] == ["deleted", "deleted"]


def test_a_run_is_found_by_the_beginning_of_its_id_if_no_other_begins_so(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [tracker.start_parent(name, "pipeline", {}).run_id for name in ("one", "two")]
    for run_id in ids:
        assert tracker.get_run(run_id[:8]).info.run_id == run_id
    with pytest.raises(UserError, match=f"run {ids[0][:5]}: no such run"):
        tracker.get_run(ids[0][:5])
    monkeypatch.setattr(tracker, "search", lambda *_, **__: [tracker.client.get_run(run_id) for run_id in ids])
    with pytest.raises(UserError, match=rf"run abcdef: several ids begin so: {ids[0]} \(one\), {ids[1]} \(two\); give"):
        tracker.get_run("abcdef")


def test_a_file_that_cannot_be_fetched_is_not_a_missing_one(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.start_parent("demo", "pipeline", {})
    run.text("name: demo", "config.yaml")
    assert tracker.read_file(run.run_id, "config.yaml") == "name: demo"

    def refuse(**_: str) -> str:
        raise MlflowException("HTTP 503 of the artifact store")

    monkeypatch.setattr(run_files, "download_artifacts", refuse)
    with pytest.raises(MlflowException, match="503"):
        tracker.read_file(run.run_id, "config.yaml")


RACER = """
import sys
from pathlib import Path
from magic141.tracking import Tracker
print("ready", flush=True)
sys.stdin.readline()
print(Tracker(Path(sys.argv[1]), "new").client.get_experiment("0").name)
"""


@pytest.mark.slow
def test_a_new_store_survives_two_runs_that_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    command, pipe = [sys.executable, "-c", RACER, str(tmp_path)], subprocess.PIPE
    both = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in both if process.stdout] == ["ready\n"] * 2
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?timeout=60")
    assert not store_exists(tmp_path)
    (tmp_path / "mlflow.db").touch()
    assert store_exists(tmp_path)
    (tmp_path / "mlflow.db").unlink()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(tmp_path) == "http://127.0.0.1:1"
    assert store_exists(tmp_path)


def test_a_deleted_experiment_is_named_before_a_run_begins(tracker: Tracker) -> None:
    gone = Tracker(tracker.workspace, "gone")
    gone.client.delete_experiment(gone.experiment_id)
    with pytest.raises(UserError, match=r"experiment = gone: it was deleted in MLflow; restore it .*--set experiment="):
        Tracker(tracker.workspace, "gone").start_parent("demo", "pipeline", {})
    assert Tracker(tracker.workspace, "gone").records("train", limit=1) == []
