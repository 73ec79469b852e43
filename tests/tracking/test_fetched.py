"""A published model whose folder is not on this machine: its copy is fetched, or a line says where it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.records.models import find_model
from magic141.artifacts.digests import digest_folder
from magic141.artifacts.references import ArtifactRef
from magic141.errors import UserError
from magic141.tracking import Tracker, local_folder
from magic141.tracking.registry import Registry

VOLATILE = ("registered_model_meta",)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracker(tmp_path_factory.mktemp("empty"), "tests").workspace / "mlflow.db"


@pytest.fixture
def tracker(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(database, tmp_path)
    return Tracker(tmp_path, "tests")


def publish(tracker: Tracker) -> ArtifactRef:
    """A registered model, made on this machine and not there any more."""
    folder = tracker.workspace / "made"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "weights").write_text("weights")
    run = tracker.start_parent("demo", "pipeline", {})
    digest = digest_folder(folder, VOLATILE)
    ref = ArtifactRef(stage="publish", key="k", uri=str(folder), digest=digest, run_id=run.run_id, volatile=VOLATILE)
    assert local_folder(tracker, ref) == folder
    tracker.registry.register("film", ref, "champion", {})
    shutil.rmtree(folder)
    return ref


def as_server(tracker: Tracker) -> Tracker:
    """The same store, taken for a server: published folders are copied to it."""
    assert tracker.experiment_id  # made while artifacts still go to a folder
    tracker.uri = "http://ada:s3cret@host:5000"
    tracker.registry = Registry(tracker.client, tracker.uri)
    return tracker


def test_a_model_is_fetched_once_and_kept(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = publish(as_server(tracker))
    copy = local_folder(tracker, ref)
    assert copy == tracker.workspace / "fetched" / ref.digest[:16]
    assert digest_folder(copy, VOLATILE) == ref.digest
    monkeypatch.setattr(tracker.client, "download_artifacts", None)
    assert local_folder(tracker, ref) == copy


def test_a_copy_that_was_altered_is_fetched_anew(tracker: Tracker) -> None:
    ref = publish(as_server(tracker))
    copy = local_folder(tracker, ref)
    (copy / "transformer" / "weights").write_text("veights")
    assert local_folder(tracker, ref) == copy
    assert digest_folder(copy, VOLATILE) == ref.digest


def test_a_model_that_was_altered_is_not_loaded(tracker: Tracker) -> None:
    ref = publish(tracker)
    (ref.path / "transformer").mkdir(parents=True)
    (ref.path / "transformer" / "weights").write_text("veights")
    with pytest.raises(UserError, match="made was altered after it had been published; `magic141 run` makes it again"):
        local_folder(tracker, ref)


def test_a_copy_that_is_not_what_was_published_is_refused(tracker: Tracker) -> None:
    ref = publish(as_server(tracker))
    (kept,) = (tracker.workspace / "mlflow-artifacts").rglob("weights")
    kept.write_text("others")
    with pytest.raises(UserError, match=r"its copy on http://host:5000 has digest \w{16}, expected \w{16}: it is not"):
        local_folder(tracker, ref)
    assert [path.name for path in (tracker.workspace / "fetched").iterdir() if path.is_dir()] == []


def test_a_server_without_a_copy_is_named(tracker: Tracker) -> None:
    ref = publish(as_server(tracker))
    shutil.rmtree(tracker.workspace / "mlflow-artifacts")
    with pytest.raises(UserError) as caught:
        local_folder(tracker, ref)
    assert "made was deleted; `magic141 run` makes it again; http://host:5000 gives no copy of it: " in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_without_a_server_the_machine_that_made_it_is_named(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = publish(tracker)
    with pytest.raises(UserError, match="made was deleted; `magic141 run` makes it again"):
        local_folder(tracker, ref)
    tracker.client.set_tag(ref.run_id, "magic141.host", "gpu7")
    with pytest.raises(UserError, match="made is not on this machine: gpu7 made it; run this there, or share the"):
        local_folder(tracker, ref)


def test_of_an_artifact_whose_run_was_purged_nobody_knows_the_machine(tracker: Tracker) -> None:
    purged = publish(tracker).model_copy(update={"run_id": "0" * 32})
    with pytest.raises(UserError, match="made was deleted; `magic141 run` makes it again"):
        local_folder(tracker, purged)


def test_the_command_line_names_the_model_that_was_asked_for(tracker: Tracker) -> None:
    publish(tracker)
    with pytest.raises(UserError, match=r"^--model models:/film@champion: .*made was deleted; `magic141 run` makes it"):
        find_model(tracker.workspace, "models:/film@champion")
