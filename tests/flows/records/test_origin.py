"""What can be taken up again."""

from pathlib import Path

import pytest

from flows.records.commands import command_again
from flows.records.origin import Origin, continue_run, find_origin, one_of
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig
from magic141.errors import UserError
from magic141.tracking import TAG_PUBLISHER, Tracker
from magic141.tracking.tags import TAG_FIRST, TAG_HOST
from tasks import quantize
from tests.tracking.made import make_file


def test_a_run_or_a_registered_model_is_judged() -> None:
    assert one_of("12ab34", None) == "12ab34"
    assert one_of(None, "models:/magic141/3") == "models:/magic141/3"
    for run_id, model in [(None, None), ("12ab34", "models:/magic141/3")]:
        with pytest.raises(UserError, match="give either --run ID or --model URI"):
            one_of(run_id, model)
    with pytest.raises(UserError, match=r"--model magic141: expected models:/NAME@ALIAS .*; give a run's id to --run"):
        one_of(None, "magic141")


def test_a_deleted_run_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made may be freed at any time."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    run = tracker.start_parent("test", "pipeline", {})
    run.close("FINISHED")
    tracker.client.delete_run(run.run_id)
    with pytest.raises(UserError, match=rf"run {run.run_id}: it was deleted.*restore it"):
        find_origin(tmp_path, run.run_id)


def test_a_run_goes_on_from_results_that_are_there_and_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    parent = tracker.start_parent("test", "pipeline", {}).run_id

    def kept(*overrides: str) -> tuple[ArtifactRef, ...]:
        origin = Origin(parent, tracker.get_run(parent), PipelineConfig(workspace=tmp_path), tracker)
        return continue_run(origin, [quantize.STAGE], overrides).kept

    with pytest.raises(UserError, match=f"run {parent}: it has no artifact of distill_dmd2; finish it"):
        kept()
    student = tmp_path / "student"
    make_file(student)
    ref = ArtifactRef(stage="distill_dmd2", key="k", uri=str(student), digest=digest_folder(student), run_id=parent)
    tracker.set_artifact(parent, ref, reused=False)
    assert kept() == (ref,)
    with pytest.raises(UserError, match="--set workspace: an earlier run goes on in its own; --workspace says where"):
        kept(f"workspace={tmp_path}/elsewhere")
    again = f"magic141 run --run {parent} --from distill_cfg --set distill_cfg.num_steps=7 --workspace {tmp_path}"
    with pytest.raises(UserError, match=f"distill_cfg is kept .*; use `{again}`"):  # `eval` has no --from
        kept("distill_cfg.num_steps=7")
    make_file(student, "others")
    with pytest.raises(
        UserError, match=f"run {parent}: {student} was altered; `magic141 run --run {parent} --w.* again"
    ):
        kept()


def test_what_another_machine_made_was_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    parent, made = (tracker.start_parent("test", "pipeline", {}).run_id for _ in range(2))
    gone = tmp_path / "student"
    ref = ArtifactRef(stage="distill_dmd2", key="k", uri=str(gone), digest="d", run_id=made)
    tracker.set_artifact(parent, ref, reused=True)
    origin = Origin(parent, tracker.get_run(parent), PipelineConfig(workspace=tmp_path), tracker)
    with pytest.raises(UserError, match=f"{gone} was deleted; `magic141 run --run {parent} .*` makes it again"):
        continue_run(origin, [quantize.STAGE])
    tracker.client.set_tag(made, TAG_HOST, "gpu-node-7")
    with pytest.raises(UserError, match=f"{gone} is not on this machine: gpu-node-7 made it; run this there"):
        continue_run(origin, [quantize.STAGE])


def test_a_version_leads_to_the_run_that_published_it_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    maker, later = (tracker.start_parent(name, "pipeline", {}) for name in ("maker", "later"))
    for run in (maker, later):
        run.text("name: film\n", "config.yaml")
    student = tmp_path / "student"
    make_file(student)
    ref = ArtifactRef(stage="publish", key="k", uri=str(student), digest=digest_folder(student), run_id=maker.run_id)
    tracker.registry.register("film", ref, "candidate", {TAG_PUBLISHER: later.run_id})
    assert find_origin(tmp_path, "models:/film@candidate").run.info.run_id == later.run_id


@pytest.mark.parametrize(
    ("kind", "tags", "words"),
    [
        ("pipeline", {}, "run --run {id}"),
        ("pipeline", {TAG_FIRST: "distill_dmd2"}, "run --run {id} --from distill_dmd2"),
        ("evaluation", {TAG_FIRST: "generate"}, "eval --run {id}"),
    ],
)
def test_a_run_is_made_again_on_what_it_was_based_on(
    kind: str, tags: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    run = tracker.get_run(tracker.start_parent("test", kind, tags).run_id)
    again = words.format(id=run.info.run_id)
    assert command_again(run, tmp_path) == f"magic141 {again} --workspace {tmp_path}"


def test_what_leads_to_a_deleted_run_is_named_again_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version outlives its run; `run --run ID` would refuse that run."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(tmp_path, "origin")
    run = tracker.start_parent("test", "pipeline", {})
    origin = Origin("models:/film@champion", tracker.get_run(run.run_id), PipelineConfig(workspace=tmp_path), tracker)
    with pytest.raises(UserError, match="finish it with `magic141 run --run models:/film@champion "):
        continue_run(origin, [quantize.STAGE])
