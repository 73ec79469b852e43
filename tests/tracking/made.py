"""Artifacts with the runs that made them."""

from __future__ import annotations

from pathlib import Path

from magic141.artifacts.digests import digest_folder
from magic141.artifacts.references import ArtifactRef
from magic141.tracking import Tracker


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
