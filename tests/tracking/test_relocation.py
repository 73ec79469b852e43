"""A workspace that was moved or copied goes on where it is now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from magic141.tracking import Tracker, find_reusable
from magic141.tracking.relocation import former_places
from tests.tracking.made import make_artifact


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose path is also the end of the one that it moves to."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "runs"


def made(workspace: Path) -> Tracker:
    tracker = Tracker(workspace, "film")
    ref = make_artifact(tracker, "publish", "key")
    tracker.registry.register("film", ref, "candidate", {})
    log = tracker.start_parent("demo", "pipeline", {})
    log.text("a: 1", "config.yaml")
    log.tags({"note": f"see {workspace}/notes"})
    log.close("FINISHED")
    return tracker


@pytest.mark.parametrize("moved", [True, False])
def test_results_files_and_models_are_found_in_the_new_place(old: Path, tmp_path: Path, moved: bool) -> None:
    made(old)
    new = tmp_path / "project" / "runs"
    (shutil.move if moved else shutil.copytree)(old, new)
    tracker = Tracker(new, "film")
    ref = find_reusable(tracker, "publish", "key").ref
    assert ref
    assert ref.path == new / "artifacts" / "publish" / "key"
    assert tracker.registry.resolve("models:/film@candidate").path == ref.path
    newest = tracker.search("tags.note != ''", 1)[0]
    assert tracker.read_file(newest.info.run_id, "config.yaml") == "a: 1"
    assert newest.data.tags["note"] == f"see {old}/notes"  # what is no path of a record stays as it was
    after = tracker.start_parent("demo", "pipeline", {})
    after.text("b: 2", "config.yaml")
    after.close("FINISHED")
    assert list(new.rglob(f"{after.run_id}/**/config.yaml"))
    assert old.exists() != moved
    assert former_places(new / "mlflow.db", new) == []


@pytest.mark.parametrize(("before", "after"), [("runs", "runs/2024"), ("runs/2024", "runs"), ("runs", "runs/münchen")])
def test_the_new_place_may_be_in_the_former_one_or_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made(tmp_path / before)
    aside = (tmp_path / before).rename(tmp_path / "aside")
    new = tmp_path / after
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(exist_ok=True)
    aside.rename(new)
    tracker = Tracker(new, "film")
    ref = find_reusable(tracker, "publish", "key").ref
    assert ref
    assert ref.path == tracker.registry.resolve("models:/film@candidate").path == new / "artifacts" / "publish" / "key"
    assert tracker.read_file(tracker.search("tags.note != ''", 1)[0].info.run_id, "config.yaml") == "a: 1"
    assert former_places(new / "mlflow.db", new) == []


def test_it_is_said_once(old: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(old)
    new = old.rename(tmp_path / "elsewhere")
    for said in (1, 1):
        Tracker(new, "film")
        assert caplog.text.count(f"was at {old}: its records now name the new place") == said


def test_records_stay_while_somebody_works_there_under_another_path(old: Path, tmp_path: Path) -> None:
    """As where a container has the same folder under a path of its own."""
    running = made(old).start_parent("demo", "pipeline", {})
    new = old.rename(tmp_path / "elsewhere")
    assert find_reusable(Tracker(new, "film"), "publish", "key").ref is None
    new.rename(old)
    running.close("FINISHED")
    new = old.rename(tmp_path / "elsewhere")
    assert find_reusable(Tracker(new, "film"), "publish", "key").ref


def test_a_copy_of_a_workspace_in_use_is_one_of_its_own(old: Path, tmp_path: Path) -> None:
    running = made(old).start_parent("demo", "pipeline", {})
    new = shutil.copytree(old, tmp_path / "copy")
    ref = find_reusable(Tracker(new, "film"), "publish", "key").ref
    assert ref
    assert ref.path.is_relative_to(new)
    running.close("FINISHED")


def test_runs_of_others_in_the_store_hold_nothing_back(old: Path, tmp_path: Path) -> None:
    client = made(old).client
    client.create_run(client.create_experiment("a notebook's"))
    new = old.rename(tmp_path / "elsewhere")
    assert find_reusable(Tracker(new, "film"), "publish", "key").ref


def test_records_of_another_workspace_in_the_same_store_stay(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(old)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}/mlflow.db")
    guest = Tracker(tmp_path / "guest", "guest")
    make_artifact(guest, "publish", "other")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    new = old.rename(tmp_path / "elsewhere")
    assert find_reusable(Tracker(new, "film"), "publish", "key").ref
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/mlflow.db")
    assert find_reusable(Tracker(tmp_path / "guest", "guest"), "publish", "other").ref


@pytest.mark.parametrize("name", ["it's", 'say "so"', "back\\slash", "münchen"])
def test_any_name_of_a_folder_is_found(old: Path, tmp_path: Path, name: str) -> None:
    made(tmp_path / name / "runs")
    new = (tmp_path / name).rename(tmp_path / f"{name} 2") / "runs"
    assert find_reusable(Tracker(new, "film"), "publish", "key").ref


def test_a_store_elsewhere_is_left_alone(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(old)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}/mlflow.db")
    Tracker(tmp_path / "another", "film")
    assert former_places(old / "mlflow.db", old) == []
