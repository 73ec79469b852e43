"""What a run keeps: figures, media, lineage, the machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from magic141.tracking import Tracker, run_log
from magic141.tracking.run_log import metric_name
from magic141.tracking.tags import MAX_TAG_CHARS, TAG_ARTIFACT
from tests.tracking.made import make_artifact
from tests.waiting import wait_for


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


def test_figures_that_the_store_did_not_take_are_sent_again(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracker.start_stage("student", "key-o", "parent")
    send, refused = run.client.log_batch, [MlflowException("HTTP 503"), MlflowException("HTTP 503")]

    def busy(*arguments: Any, **batch: Any) -> None:
        if refused:
            raise refused.pop()
        send(*arguments, **batch)

    monkeypatch.setattr(run.client, "log_batch", busy)
    monkeypatch.setattr(run_log, "FLUSH_METRICS", 1)
    for step in range(4):
        run.metrics({"loss": float(step)}, step)
    run.close("FINISHED")
    history = tracker.client.get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, float(step)) for step in range(4)]


def test_a_run_begins_with_tags_of_the_length_that_every_store_takes(tracker: Tracker) -> None:
    record = "r" * 2 * MAX_TAG_CHARS
    run = tracker.start_parent("long", "pipeline", {"magic141.overrides": "p" * 9000, f"{TAG_ARTIFACT}.x": record})
    tags = tracker.get_run(run.run_id).data.tags
    assert (len(tags["magic141.overrides"]), tags[f"{TAG_ARTIFACT}.x"]) == (MAX_TAG_CHARS, record)


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
        wait_for(lambda: tracker.get_run(run.run_id).data.metrics.get("system/system_memory_usage_megabytes"))
