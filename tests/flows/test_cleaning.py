"""What no run refers to can go; everything else stays."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from flows import cleaning
from flows.cleaning import Findings, find_leftovers, remove
from flows.cli import app
from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig
from magic141.tracking import Tracker, paging
from tasks.console import StageConsole
from tasks.run_stage import run_stage
from tasks.stage import Stage, StageCall, StageContext


def write(call: StageCall) -> None:
    (call.out / "data.txt").write_text(f"{call.seed}")


STAGE = Stage("first", ("magic141.frozen",), lambda c: {}, write)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "home"


@pytest.fixture
def make(home: Path) -> Callable[[int], ArtifactRef]:
    """Runs a pipeline of one stage."""

    def _make(seed: int) -> ArtifactRef:
        tracker = Tracker(home, "cleaning")
        parent = tracker.start_parent("test", "pipeline", {})
        console = StageConsole(Console(file=io.StringIO()))
        made = run_stage(
            STAGE, StageContext(PipelineConfig(workspace=home, seed=seed), tracker, parent.run_id, console)
        )
        parent.close("FINISHED")
        return made

    return _make


def delete_runs_with(home: Path, ref: ArtifactRef) -> None:
    client = Tracker(home, "cleaning").client
    run = client.get_run(ref.run_id)
    client.delete_run(run.data.tags["mlflow.parentRunId"])
    client.delete_run(ref.run_id)


def test_artifacts_go_with_the_last_run_that_has_them(home: Path, make: Callable[[int], ArtifactRef]) -> None:
    kept, gone = make(1), make(2)
    assert find_leftovers(home).leftovers == ()
    delete_runs_with(home, gone)
    (found,) = find_leftovers(home).leftovers
    assert (found.path, found.why, found.num_bytes) == (gone.path, "artifact of no run", 1)
    assert (gone.state(), kept.state()) == ("intact", "intact")
    assert list(remove(home, [found])) == [found]
    assert (gone.state(), kept.state()) == ("deleted", "intact")
    assert make(2).digest == gone.digest


def test_what_a_later_run_reused_stays_when_its_maker_is_deleted(
    home: Path, make: Callable[[int], ArtifactRef]
) -> None:
    made = make(1)
    assert make(1) == made
    delete_runs_with(home, made)
    assert find_leftovers(home).leftovers == ()


def test_a_registered_model_stays_without_its_runs(home: Path, make: Callable[[int], ArtifactRef]) -> None:
    made = make(1)
    Tracker(home, "cleaning").registry.register("model", made, "candidate", {})
    delete_runs_with(home, made)
    assert find_leftovers(home).leftovers == ()


def test_what_begins_to_be_used_after_it_was_listed_stays(home: Path, make: Callable[[int], ArtifactRef]) -> None:
    made = make(1)
    delete_runs_with(home, made)
    found = find_leftovers(home).leftovers
    assert [leftover.path for leftover in found] == [made.path]
    Tracker(home, "cleaning").registry.register("model", made, "candidate", {})
    assert list(remove(home, found)) == []
    assert made.state() == "intact"


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text("12")
    return path


def paths(home: Path) -> list[Path]:
    return [leftover.path for leftover in find_leftovers(home).leftovers]


def test_half_written_folders_and_lost_checkpoints_go_unless_a_stage_works_on_them(
    home: Path, make: Callable[[int], ArtifactRef]
) -> None:
    kept, gone = make(1), make(2)
    half = folder(gone.path.parent / f".staging-{kept.key[:16]}-1")
    replaced = folder(gone.path.parent / f".old-{kept.path.name}")
    lost, resumable = (folder(home / "training" / f"first-{ref.key[:12]}") for ref in (gone, kept))
    delete_runs_with(home, gone)
    for ref, free in ((kept, {gone.path, lost}), (gone, {half, replaced})):
        shutil.rmtree(home / "locks", ignore_errors=True)
        (home / "locks").mkdir()
        with FileLock(home / "locks" / f"first-{ref.key[:16]}.lock"):
            assert set(paths(home)) == free
    assert set(paths(home)) == {gone.path, lost, half, replaced}
    assert len(list(remove(home, find_leftovers(home).leftovers))) == 4
    assert resumable.is_dir()
    assert kept.state() == "intact"


def test_a_stage_that_begins_after_the_listing_keeps_its_folders(
    home: Path, make: Callable[[int], ArtifactRef]
) -> None:
    gone = make(1)
    delete_runs_with(home, gone)
    found = find_leftovers(home).leftovers
    shutil.rmtree(home / "locks")
    (home / "locks").mkdir()
    with FileLock(home / "locks" / f"first-{gone.key[:16]}.lock"):
        assert list(remove(home, found)) == []
    assert gone.state() == "intact"


def test_an_artifact_that_publishing_had_set_aside_when_it_was_killed_stays(
    home: Path, make: Callable[[int], ArtifactRef]
) -> None:
    made = make(1)
    made.path.replace(made.path.with_name(f".old-{made.path.name}"))
    assert paths(home) == []
    assert make(1).state() == "intact"


def test_what_a_run_made_that_has_not_ended_stays(home: Path, make: Callable[[int], ArtifactRef]) -> None:
    made = make(1)
    client = Tracker(home, "cleaning").client
    parent = client.get_run(made.run_id).data.tags["mlflow.parentRunId"]
    client.delete_run(made.run_id)
    client.update_run(parent, "RUNNING")
    assert paths(home) == []
    client.delete_run(parent)
    assert paths(home) == [made.path]


def test_every_page_of_experiments_runs_and_models_is_read(
    home: Path, make: Callable[[int], ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE", 1)
    made = [make(seed) for seed in range(3)]
    for name in ("newer", "newest"):
        Tracker(home, name).start_parent("test", "pipeline", {})
    registry = Tracker(home, "cleaning").registry
    for ref in made[:2]:
        registry.register("model", ref, "candidate", {})
        delete_runs_with(home, ref)
    assert paths(home) == []


@pytest.mark.parametrize(
    "name",
    [
        "training/first-KEY12.bak",
        "training/first-KEY12-before",
        "training/notes",
        "artifacts/first/KEY16-0123456789ab.bak",
        "artifacts/first/plots",
    ],
)
def test_folders_with_other_names_than_ours_stay(home: Path, make: Callable[[int], ArtifactRef], name: str) -> None:
    gone = make(1)
    delete_runs_with(home, gone)
    folder(home / name.replace("KEY12", gone.key[:12]).replace("KEY16", gone.key[:16]))
    assert paths(home) == [gone.path]


def test_a_workspace_that_is_mounted_elsewhere_knows_its_artifacts(
    home: Path, make: Callable[[int], ArtifactRef]
) -> None:
    make(1)
    moved = home.rename(home.with_name("moved"))
    assert find_leftovers(moved) == Findings((), 0)


def test_large_cleanings_go_in_parts_and_one_bad_folder_stops_nothing(
    home: Path, make: Callable[[int], ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "AT_ONCE", 2)
    made = [make(seed) for seed in range(3)]
    for ref in made:
        delete_runs_with(home, ref)
    linked = made[0].path.rename(home / "elsewhere")
    made[0].path.symlink_to(linked)
    really = shutil.rmtree

    def rmtree(path: Path) -> None:
        if path == made[1].path:
            raise PermissionError("not yours")
        really(path)

    found = find_leftovers(home).leftovers
    monkeypatch.setattr("flows.cleaning.shutil.rmtree", rmtree)
    assert {done.path: done.error for done in remove(home, found)} == {made[1].path: "not yours", made[2].path: ""}
    assert [ref.path.exists() for ref in made] == [True, True, False]


def test_what_another_store_made_is_left_alone_and_counted(
    home: Path, make: Callable[[int], ArtifactRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    made = make(1)
    folder(home / "training" / f"first-{made.key[:12]}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    make(2)
    assert find_leftovers(home) == Findings((), 2, (f"sqlite:///{tmp_path}/other.db",))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert find_leftovers(home) == Findings((), 0)  # of both stores together


def test_an_artifact_whose_runs_are_deleted_in_one_store_stays_for_those_in_the_workspaces_own(
    home: Path, make: Callable[[int], ArtifactRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    again = make(1)
    assert again.path == made.path
    delete_runs_with(home, again)
    assert paths(home) == []


def test_an_artifact_stays_that_a_store_may_need_which_is_not_asked(
    home: Path, make: Callable[[int], ArtifactRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    make(1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    delete_runs_with(home, make(1))
    assert find_leftovers(home) == Findings((), 1, (other,))
    monkeypatch.setenv("MAGIC141_HOME", str(home))  # the command sets it for its process
    said = CliRunner().invoke(app, ["gc", "--workspace", str(home), "--delete"]).output
    assert f"1 left alone, because {other} may need them: if another store did, set MLFLOW_TRACKING_URI to it" in said
    (home / ".stores").unlink()
    assert len(find_leftovers(home).leftovers) == 1


def test_the_command_lists_removes_and_says_how_much(
    home: Path, make: Callable[[int], ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(home))  # --workspace sets it for this process; undone at the end
    gone = make(1)
    folder(home / "artifacts" / "first" / ("0" * 16))
    delete_runs_with(home, gone)
    for options, said in (
        ([], "in all; --delete removes it"),
        (["--delete"], "removed"),
        ([], "nothing to remove in"),
    ):
        result = CliRunner().invoke(app, ["gc", "--workspace", str(home), *options])
        assert result.exit_code == 0, result.output
        assert said in result.output
        assert "1 left alone, because no run of this store, not even a deleted one, made them: " in result.output
        assert (f"artifacts/first/{gone.path.name}: artifact of no run" in result.output) == (said[0] != "n")
    assert gone.state() == "deleted"
