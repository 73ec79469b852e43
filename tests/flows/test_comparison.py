"""`magic141 compare` for runs of another machine: what the tracking store holds of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.table import Table

from flows.comparison import compare
from magic141.artifacts.publication import DIGEST_CHARS
from magic141.artifacts.references import ArtifactRef
from magic141.errors import UserError
from magic141.tracking import RunLog, Tracker
from tasks.pipeline import STAGES

HOW = [  # what decides no score
    {"distill_dmd2": {"placement": {"num_workers": workers}}, "report": {"title": title}}
    for workers, title in ((1, "a"), (2, "b"))
]


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(tmp_path, "magic141")


def judged(tracker: Tracker, motion: float, seed: int) -> RunLog:
    """A finished pipeline run without its config's file and its evaluation's folder."""
    run = tracker.start_parent("demo", "pipeline", {})
    run.params({"seed": seed, "train": {"rate": 1e-05, "engine": None, "sizes": [1, 2]}, **HOW[seed]})
    run.metrics({"scores/student_4/motion": motion})
    gone = ArtifactRef(stage="evaluate", key="k", uri="/nowhere/evaluate", digest="d", run_id=run.run_id)
    tracker.set_artifact(run.run_id, gone, reused=False)
    run.close("FINISHED")
    return run


def cells(table: Table) -> list[list[str]]:
    return [list(map(str, column.cells)) for column in table.columns]


def test_scores_and_config_come_from_the_store(tracker: Tracker, tmp_path: Path) -> None:
    first, second = judged(tracker, 0.5, seed=0), judged(tracker, 0.75, seed=1)
    config_file = {"seed": 1, "train": {"rate": 1e-05, "engine": None, "sizes": [1, 2]}, **HOW[1]}
    second.text(yaml.safe_dump(config_file), "config.yaml")
    page = tmp_path / "compare.html"
    found = compare(tracker.workspace, [first.run_id, second.run_id], "student_4", page)
    scores, config, how, _ = found.tables
    assert cells(scores) == [["motion ↑"], ["0.500"], ["0.750"], ["+0.250"]]
    assert cells(config) == [["seed"], ["0"], ["1"]]
    assert cells(how) == [["distill_dmd2.placement.num_workers", "report.title"], ["1", '"a"'], ["2", '"b"']]
    [remark] = found.remarks
    assert remark.startswith("Not on record how these were judged, so no difference is coloured: demo ")
    assert "not on this machine" in page.read_text()
    nothing = tracker.start_parent("other", "pipeline", {})
    nothing.close("FINISHED")
    with pytest.raises(UserError, match=r"has no file config\.yaml"):
        compare(tracker.workspace, [first.run_id, nothing.run_id], "student_4", None)


def ended(tracker: Tracker, *stages: str) -> RunLog:
    """A finished run of some stages, without scores."""
    run = tracker.start_parent("demo", "pipeline", {})
    run.params({"seed": 2})
    for stage in stages:
        ref = ArtifactRef(stage=stage, key="k", uri=f"/nowhere/{stage}", digest="d" * 64, run_id=run.run_id)
        tracker.set_artifact(run.run_id, ref, reused=False)
    run.close("FINISHED")
    return run


TRAINED = [stage.name for stage in STAGES[: [stage.name for stage in STAGES].index("generate")]]


@pytest.mark.parametrize(
    ("stages", "far", "command"),
    [
        ([], "it has finished no stage", "run --run {run} --until report"),
        (["prepare_data"], "it came as far as prepare_data", "run --run {run} --until report"),
        (TRAINED, "it came as far as quantize", "eval --run {run}"),
    ],
)
def test_a_run_without_scores_is_told_from_one_without_a_record(
    stages: list[str], far: str, command: str, tracker: Tracker
) -> None:
    first, other = judged(tracker, 0.5, seed=0), ended(tracker, *stages)
    command = f"magic141 {command.format(run=other.run_id)} --workspace {tracker.workspace}"
    line = f"demo {other.run_id[:8]} has no scores: {far}; `{command}` judges it, in a run with an id of its own."
    remarks = compare(tracker.workspace, [first.run_id, other.run_id], "student_4", None).remarks
    assert remarks == [
        line,
        f"Not on record how these were judged, so no difference is coloured: demo {first.run_id[:8]}.",
    ]
    assert compare(tracker.workspace, [other.run_id, first.run_id], None, None).remarks == remarks


def test_a_student_is_called_by_as_many_digits_as_its_folder(tracker: Tracker) -> None:
    first, other = judged(tracker, 0.5, seed=0), ended(tracker, "distill_dmd2")
    made = compare(tracker.workspace, [first.run_id, other.run_id], "student_4", None).tables[-1]
    names, _, values = cells(made)
    assert values[names.index("student")] == "d" * DIGEST_CHARS


def test_no_name_is_cut_on_a_narrow_console(tracker: Tracker, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [judged(tracker, motion, seed=seed).run_id for seed, motion in enumerate((0.5, 0.75))]
    console = Console(width=40)
    for table in compare(tracker.workspace, runs, "student_4", None).tables:
        console.print(table)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "distill_dmd2" in printed
