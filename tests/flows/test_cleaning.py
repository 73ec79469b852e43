"""What no run refers to can go; everything else stays."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from flows.cleaning import find_leftovers, remove
from magic141.artifacts import ArtifactRef
from magic141.config import PipelineConfig
from magic141.frozen import UserError
from magic141.tracking import Tracker
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
    assert find_leftovers(home) == []
    delete_runs_with(home, gone)
    (found,) = find_leftovers(home)
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
    assert find_leftovers(home) == []


def test_a_registered_model_stays_without_its_runs(home: Path, make: Callable[[int], ArtifactRef]) -> None:
    made = make(1)
    Tracker(home, "cleaning").registry.register("model", made, "candidate", {})
    delete_runs_with(home, made)
    assert find_leftovers(home) == []


def test_what_begins_to_be_used_after_it_was_listed_stays(home: Path, make: Callable[[int], ArtifactRef]) -> None:
    made = make(1)
    delete_runs_with(home, made)
    found = find_leftovers(home)
    assert [leftover.path for leftover in found] == [made.path]
    Tracker(home, "cleaning").registry.register("model", made, "candidate", {})
    assert list(remove(home, found)) == []
    assert made.state() == "intact"


def test_half_written_folders_and_lost_checkpoints_go_unless_a_stage_works_on_them(
    home: Path, make: Callable[[int], ArtifactRef]
) -> None:
    made = make(1)
    key = made.key
    half, lost = home / "artifacts" / "first" / f".staging-{key[:16]}-1", home / "training" / f"first-{'0' * 12}"
    resumable = home / "training" / f"first-{key[:12]}"
    for folder in (half, lost, resumable):
        folder.mkdir(parents=True)
    with FileLock(home / "locks" / f"first-{key[:16]}.lock"):
        assert [leftover.path for leftover in find_leftovers(home)] == [lost]
    found = find_leftovers(home)
    assert [leftover.path for leftover in found] == [half, lost]
    assert len(list(remove(home, found))) == 2
    assert resumable.is_dir()


def test_another_store_is_refused(
    home: Path, make: Callable[[int], ArtifactRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(1)
    other = tmp_path / "other"
    Tracker(other, "cleaning").start_parent("test", "pipeline", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}/mlflow.db")
    with pytest.raises(UserError, match=r"knows none of the 1 artifacts .* set MLFLOW_TRACKING_URI"):
        find_leftovers(home)
    assert made.state() == "intact"
