"""Runs beside each other: differences of configs and scores, and the same clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magic141.evaluation.comparison import RunParts, config_differences, score_rows, write_comparison
from magic141.evaluation.media import save_video


def make_run(folder: Path, label: str, motion: float, latency_ms: float, ids: list[str], **config: Any) -> RunParts:
    scores = {"motion": {"value": motion}, "frechet": {"value": None, "reason": "too few clips"}}
    variants = [{"name": "student_4", "scores": scores, "nfe": 4, "latency_ms": latency_ms}]
    evaluate, generate = folder / label / "evaluate", folder / label / "generate"
    evaluate.mkdir(parents=True)
    (evaluate / "scores.json").write_text(json.dumps({"variants": variants}))
    (generate / "exact").mkdir(parents=True)
    lines = [json.dumps({"id": name, "caption": f"clip {name}"}) for name in ids]
    (generate / "exact" / "conditions.jsonl").write_text("\n".join(lines))
    for number in range(len(ids)):
        frames = np.full((3, 16, 16, 3), 60 * number, np.uint8)
        save_video(generate / "showcase" / "student_4" / f"{number:02d}.mp4", frames, 8)
    return RunParts(label, config, {"evaluate": evaluate, "generate": generate})


@pytest.fixture
def runs(tmp_path: Path) -> list[RunParts]:
    first = make_run(tmp_path, "first", 0.80, 20.0, ["a", "b"], seed=0, train={"steps": 100, "rate": 0.1})
    second = make_run(tmp_path, "second", 0.85, 25.0, ["b", "c"], seed=0, train={"steps": 200, "rate": 0.1}, new=True)
    return [first, second]


def test_only_fields_that_differ_are_named(runs: list[RunParts]) -> None:
    assert [(row.label, row.values) for row in config_differences(runs)] == [
        ("new", ["-", "true"]),
        ("train.steps", ["100", "200"]),
    ]
    assert config_differences([runs[0], runs[0]]) == []


def test_scores_come_with_their_difference_and_which_way_is_better(runs: list[RunParts]) -> None:
    rows = {row.label: row for row in score_rows(runs, "student_4")}
    assert rows["motion"].values == ["0.800", "0.850"]
    assert (rows["motion"].differences, rows["motion"].better) == (["", "+0.050"], [None, True])
    assert (rows["latency, ms"].differences[1], rows["latency, ms"].better[1]) == ("+5.0", False)
    assert rows["evaluations"].differences == ["", ""]
    assert not any("Fréchet" in label for label in rows), "no run has it"
    assert score_rows(runs, "student_2") == []


def test_the_page_shows_the_clips_that_both_runs_have(runs: list[RunParts], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "compare.html"
    write_comparison(runs, "student_4", num_videos=6, file=page)
    html = page.read_text()
    assert html.count("<video") == 2
    assert "clip b" in html
    assert "clip a" not in html
    assert "+0.050" in html
    assert "http" not in html.replace("</html", ""), "one file, nothing to fetch"


def test_a_run_without_files_here_has_the_scores_of_the_store_and_no_videos(
    runs: list[RunParts], tmp_path: Path
) -> None:
    metrics = {"scores/student_4/motion": 0.9, "scores/student_4/nfe": 4.0, "student/motion": 0.1}
    afar = RunParts("afar", {"seed": 0}, {}, metrics)
    rows = {row.label: row.values for row in score_rows([runs[0], afar], "student_4")}
    assert (rows["motion"], rows["evaluations"]) == (["0.800", "0.900"], ["4", "4"])
    for compared, videos, line in (
        ([afar, runs[0]], 2, "not on this machine</span>"),
        ([afar], 0, "The videos of the runs are not on this machine."),
    ):
        write_comparison(compared, "student_4", num_videos=6, file=tmp_path / "page.html")
        html = (tmp_path / "page.html").read_text()
        assert (html.count("<video"), line in html) == (videos, True)
