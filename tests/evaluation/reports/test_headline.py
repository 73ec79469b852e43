"""A run in one line."""

from __future__ import annotations

from typing import Any

import pytest

from magic141.evaluation.reports.headline import beside_teacher, headline
from magic141.evaluation.reports.report_tables import headline_table


def row(name: str, motion: float, frechet: float, **more: Any) -> dict[str, Any]:
    scores = {"motion": {"value": motion, "stderr": 0.01}, "frechet": {"value": frechet, "stderr": None}}
    return {"name": name, "label": name.replace("_", ", "), "scores": scores, "latency_ms": 1.0, **more}


ROWS = [
    row("real", 1.0, 0.1),
    row("teacher_25", 0.8, 2.0, cpu_ms_per_clip=100.0),
    row("student_4", 0.75, 1.0, cpu_ms_per_clip=10.0),
]


def test_the_student_stands_beside_the_model_of_many_steps() -> None:
    line = "student, 4 (teacher, 25): motion 0.750 (0.800), Fréchet 1.00 (2.00), 10.0 times faster"
    assert headline(ROWS) == line
    assert headline(ROWS[:2]) == ""
    assert headline([{"name": "student_4", "scores": {}}]) == "student_4: no scores"


def test_a_score_that_is_best_where_nothing_moves_is_no_headline() -> None:
    frozen = {"frechet": {"value": 9.0}, "temporal_flickering": {"value": 1.0}, "i2v_subject": {"value": 0.9}}
    assert headline([{"name": "student_4", "scores": frozen}]) == "student_4: Fréchet 9.00, i2v subject 0.9000"


def test_the_student_relative_to_the_model_of_many_steps() -> None:
    assert beside_teacher(ROWS) == {"frechet_vs_teacher": 0.5, "speedup": 10.0}
    assert beside_teacher(ROWS[:2]) == beside_teacher(ROWS[2:]) == {}


def test_on_a_gpu_latency_counts() -> None:
    rows = [{**line, "device": "GPU 1"} for line in ROWS]
    assert beside_teacher(rows)["speedup"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("device", "label", "times"),
    [("cpu", "CPU ms per clip", ["10.0", "100.0", ""]), ("GPU 1", "latency, ms", ["1.0"] * 3)],
)
def test_the_table_shows_the_times_that_the_speed_up_is_one_of(device: str, label: str, times: list[str]) -> None:
    table = headline_table([{**line, "device": device} for line in ROWS])
    assert table is not None
    assert (table["time"].label, [line["time"] for line in table["rows"]]) == (label, times)
    assert table["speedup"] == float(times[1]) / float(times[0])
