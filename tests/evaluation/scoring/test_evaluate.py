from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magic141.evaluation.config import EvaluateConfig
from magic141.evaluation.scores import EXACT, FRECHET, VBENCH
from magic141.evaluation.scoring.evaluate import evaluate_suite
from magic141.evaluation.scoring.scorer import NO_TRUTH
from tests.evaluation.artifacts import RecordingLog

ALL = [dimension.key for dimension in (*EXACT, FRECHET, *VBENCH)]


def _evaluate(parts: dict[str, Path], out: Path) -> tuple[dict[str, Any], RecordingLog]:
    log = RecordingLog()
    evaluate_suite(EvaluateConfig(), parts["prepare_data"], parts["generate"], out, log)
    return json.loads((out / "scores.json").read_text()), log


@pytest.fixture(scope="module")
def scored(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], RecordingLog]:
    return _evaluate(generated[0], tmp_path_factory.mktemp("scores"))


def test_every_dimension_is_a_value_or_a_reason(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    for row in scored[0]["variants"]:
        assert set(ALL) <= set(row["scores"])
        for score in row["scores"].values():
            assert (score["value"] is None) != (score["reason"] is None)


def test_real_clips_are_the_ceiling(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    rows = {row["name"]: row["scores"] for row in scored[0]["variants"]}
    assert rows["real"]["motion"]["value"] == 1.0
    assert rows["real"]["psnr_db"]["value"] > rows["codec"]["psnr_db"]["value"] > rows["student_4"]["psnr_db"]["value"]
    assert rows["real"]["motion"]["stderr"] == 0
    floor = rows["real"]["frechet"]["value"]
    assert rows["codec"]["frechet"]["value"] == pytest.approx(floor, rel=0.5)
    assert floor < rows["student_4"]["frechet"]["value"]


def test_untrained_networks_do_not_move_anything(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    rows = {row["name"]: row["scores"] for row in scored[0]["variants"]}
    assert rows["student_4"]["motion"]["value"] == 0
    assert rows["student_4"]["continuation_psnr_db"]["value"] > 0
    assert rows["cfg_4"]["continuation_psnr_db"]["value"] > 0


def test_drift_is_scored_for_every_window(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    drift = scored[0]["long_video"]["drift"]
    assert [len(windows) for windows in drift.values()] == [3, 3]
    assert set(drift["student_4"][0]) >= {"motion", "background_psnr_db"}


def test_summary_holds_the_main_scores(scored: tuple[dict[str, Any], RecordingLog]) -> None:
    summary = scored[1].summaries
    assert summary["real/motion"] == 1.0
    assert "student_4/frechet" in summary


def test_without_ground_truth_exact_scores_say_so(generated_from_folder: dict[str, Path], tmp_path: Path) -> None:
    result, log = _evaluate(generated_from_folder, tmp_path)
    for row in result["variants"]:
        assert row["scores"]["motion"] == {"value": None, "reason": NO_TRUTH, "stderr": None}
        assert (row["scores"]["frechet"]["value"] is None) == (row["name"] == "real")  # to which distances are
    assert result["long_video"]["drift"] is None
    assert not any("motion" in key.split("/")[1].split("_") for key in log.summaries)
