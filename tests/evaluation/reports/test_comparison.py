"""Runs beside each other: differences of configs and scores, and the same clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magic141.evaluation.generation.media import save_video
from magic141.evaluation.measurement import Measurement
from magic141.evaluation.reports.comparison import write_comparison
from magic141.evaluation.reports.comparison_tables import (
    Row,
    RunParts,
    config_differences,
    made_differences,
    not_alike,
    score_rows,
)

JUDGED = Measurement("run", {}, {"generate.num_exact_clips": 64, "generate.few_steps": [4], "seed": 0}, {"cpu": "fast"})


def make_run(folder: Path, label: str, motion: float, latency_ms: float, ids: list[str], **config: Any) -> RunParts:
    scores = {"motion": {"value": motion, "stderr": 0.01}, "frechet": {"value": None, "reason": "too few clips"}}
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
    return RunParts(label, config, {"evaluate": evaluate, "generate": generate}, measurement=JUDGED)


@pytest.fixture
def runs(tmp_path: Path) -> list[RunParts]:
    first = make_run(tmp_path, "first", 0.80, 20.0, ["a", "b"], seed=0, train={"steps": 100, "rate": 0.1})
    second = make_run(tmp_path, "second", 0.85, 30.0, ["b", "c"], seed=0, train={"steps": 200, "rate": 0.1}, new=True)
    return [first, second]


def judged(run: RunParts, machine: dict[str, Any] | None = None, **conditions: Any) -> RunParts:
    known = {**JUDGED.conditions, **{name.replace("__", "."): value for name, value in conditions.items()}}
    return replace(run, measurement=Measurement("run", {}, known, machine or JUDGED.machine))


def row_of(runs: list[RunParts], label: str) -> Row:
    return next(row for row in score_rows(runs, "student_4") if row.label == label)


def test_only_fields_that_differ_are_named(runs: list[RunParts]) -> None:
    deciding, idle = config_differences(runs)
    assert [(row.label, row.values) for row in deciding] == [("new", ["-", "true"]), ("train.steps", ["100", "200"])]
    assert (idle, config_differences([runs[0], runs[0]])) == ([], ([], []))
    renamed = replace(runs[0], config={**runs[0].config, "name": "x", "workspace": "/y", "experiment": "z"})
    assert config_differences([runs[0], renamed]) == ([], [])


def test_fields_that_decide_no_score_stand_apart_and_below(runs: list[RunParts], tmp_path: Path) -> None:
    told = [replace(run, idle=["new"]) for run in runs]
    deciding, idle = config_differences(told)
    assert ([row.label for row in deciding], [row.label for row in idle]) == (["train.steps"], ["new"])
    write_comparison(told, "student_4", num_videos=6, file=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    places = [html.index(text) for text in ('id="scores"', 'id="videos"', ">train.steps<", "score: 1 field<", ">new<")]
    assert places == sorted(places)


def test_the_difference_has_a_column_of_its_own(runs: list[RunParts], tmp_path: Path) -> None:
    write_comparison(runs, "student_4", num_videos=6, file=tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert '<td>0.850 <small>±.010</small></td><td class="difference"><span class="delta good">+0.050</span>' in html


def test_scores_come_with_their_difference_and_which_way_is_better(runs: list[RunParts]) -> None:
    rows = {row.label: row for row in score_rows(runs, "student_4")}
    assert rows["motion ↑"].values == ["0.800", "0.850"]
    assert rows["motion ↑"].errors == ["±.010", "±.010"]
    assert (rows["motion ↑"].differences, rows["motion ↑"].better) == (["", "+0.050"], [None, True])
    assert (rows["latency, ms ↓"].differences[1], rows["latency, ms ↓"].better[1]) == ("+10.0", False)
    assert rows["evaluations ↓"].differences == ["", ""]
    assert not any("Fréchet" in label for label in rows), "no run has it"
    assert score_rows(runs, "student_2") == []
    afar = RunParts("afar", {}, {}, {"scores/real/motion": 1.0, "scores/teacher_25/motion": 0.9, "student/motion": 0.8})
    assert (runs[0].variants, afar.variants) == (["student_4"], ["teacher_25"])


@pytest.mark.parametrize(("motion", "difference"), [(0.825, "+0.025"), (0.8004, "")])
def test_a_difference_within_chance_has_no_colour_and_one_that_rounds_to_zero_is_not_shown(
    motion: float, difference: str, runs: list[RunParts], tmp_path: Path
) -> None:
    other = make_run(tmp_path / "more", "third", motion, 21.0, ["a"])
    assert (row_of([runs[0], other], "motion ↑").differences[1], row_of([runs[0], other], "motion ↑").better[1]) == (
        difference,
        None,
    )
    assert row_of([runs[0], other], "latency, ms ↓").better[1] is None


def test_what_was_not_judged_alike_is_neither_better_nor_worse(runs: list[RunParts]) -> None:
    first, second = runs
    other = judged(second, generate__num_exact_clips=32)
    assert not_alike([first, other]) == ["generate.num_exact_clips"]
    assert row_of([first, other], "motion ↑").better == [None, None]
    assert row_of([first, other, second], "motion ↑").better == [None, None, True]
    assert not_alike([first, judged(second, generate__few_steps=[4, 2])]) == [], "which rows there are"
    assert row_of([first, replace(second, measurement=None)], "motion ↑").better == [None, None]


def test_times_count_on_machines_alike_only(runs: list[RunParts]) -> None:
    elsewhere = [runs[0], judged(runs[1], machine={"cpu": "slow"})]
    assert row_of(elsewhere, "latency, ms ↓").better == [None, None]
    assert row_of(elsewhere, "motion ↑").better == [None, True]
    assert [(row.label, row.values) for row in made_differences(elsewhere)] == [("cpu", ["fast", "slow"])]


def test_what_runs_were_made_with_is_shown_where_it_differs_and_is_no_setting(runs: list[RunParts]) -> None:
    made = [replace(run, made={"data": "d", "commit": f"c{number}"}) for number, run in enumerate(runs)]
    assert [row.label for row in made_differences(made)] == ["commit"]
    other = [made[0], judged(made[1], seed=1)]
    assert [row.label for row in made_differences(other)] == ["commit"], "the seed stands under Config"
    unjudged = [made[0], replace(made[1], measurement=None)]
    assert [row.label for row in made_differences(unjudged)] == ["commit"]


def test_the_data_a_run_is_made_from_and_judged_on_has_one_name(runs: list[RunParts]) -> None:
    named = [
        replace(judged(run, data=f"{place}-long"), made={"data": place}) for run, place in zip(runs, "ab", strict=True)
    ]
    assert [(row.label, row.values) for row in made_differences(named)] == [("data", ["a", "b"])]


def test_the_page_shows_the_clips_that_both_runs_have(runs: list[RunParts], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "compare.html"
    write_comparison(runs, "student_4", num_videos=6, file=page, remarks=["Not judged alike: <seed>"])
    html = page.read_text()
    assert "Not judged alike: &lt;seed&gt;" in html
    assert 'aria-label="clip b: second"' in html
    assert html.count("<video") == 2
    assert "clip b" in html
    assert ">clip a<" not in html
    assert "+0.050" in html
    assert "http" not in html.replace("</html", ""), "one file, nothing to fetch"


@pytest.mark.parametrize(("width", "look"), [(32, "width: 160px; image-rendering: pixelated;"), (960, "width: 240px;")])
def test_large_videos_are_shrunk_smoothly_and_small_ones_enlarged_sharply(
    runs: list[RunParts], tmp_path: Path, width: int, look: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"width": width}))
    first = replace(runs[0], artifacts={**runs[0].artifacts, "prepare_data": tmp_path / "data"})
    write_comparison([first, runs[1]], "student_4", 3, tmp_path / "page.html")
    (rule,) = [line for line in (tmp_path / "page.html").read_text().splitlines() if line.startswith("video {")]
    assert look in rule
    assert ("pixelated" in rule) == ("pixelated" in look)


def test_a_run_without_files_here_has_the_scores_of_the_store_and_no_videos(
    runs: list[RunParts], tmp_path: Path
) -> None:
    metrics = {"scores/student_4/motion": 0.9, "scores/student_4/nfe": 4.0, "student/motion": 0.1}
    afar = RunParts("afar", {"seed": 0}, {}, metrics)
    rows = {row.label: row.values for row in score_rows([runs[0], afar], "student_4")}
    assert (rows["motion ↑"], rows["evaluations ↓"]) == (["0.800", "0.900"], ["4", "4"])
    for compared, videos, line in (
        ([afar, runs[0]], 2, "not on this machine</span>"),
        ([RunParts("unscored", {}, {}), runs[0]], 2, "not generated</span>"),
        ([afar], 0, "The videos of the runs are not on this machine."),
    ):
        write_comparison(compared, "student_4", num_videos=6, file=tmp_path / "page.html")
        html = (tmp_path / "page.html").read_text()
        assert (html.count("<video"), line in html) == (videos, True)
