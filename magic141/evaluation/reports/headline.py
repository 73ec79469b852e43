"""A run in one line: its student beside the model of many steps that it was distilled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from magic141.evaluation.scores import COSTS, FRECHET, MOTION, VBENCH, Dimension, value_of, with_values

Row = Mapping[str, Any]
MAX_SCORES = 2


def student_row(rows: Sequence[Row]) -> Row | None:
    """The student at the steps that it was distilled for, among the variants of scores.json."""
    return next((row for row in rows if str(row["name"]).startswith("student_")), None)


def many_step_row(rows: Sequence[Row]) -> Row | None:
    """The undistilled model at many steps."""
    return next((row for row in rows if str(row["name"]).startswith("teacher_")), None)


def headline_dimensions(rows: Sequence[Row]) -> list[Dimension]:
    """The scores that are named first: motion and Fréchet distance or, where there are none, VBench's.

    Scores that are neither better nor worse when higher are left out: a student that moves less would look good.
    """
    return with_values((d for d in (MOTION, FRECHET, *VBENCH) if d.better != "none"), rows)[:MAX_SCORES]


def on_gpu(row: Row) -> bool:
    """Whether a variant was sampled on a GPU; records without a device are of CPUs."""
    return str(row.get("device", "cpu")) != "cpu"


def time_that_counts(row: Row) -> Dimension:
    """The time that a speed-up compares: latency on a GPU, CPU time on a CPU."""
    key = "latency_ms" if on_gpu(row) else "cpu_ms_per_clip"
    return next(d for d in COSTS if d.key == key)


def speedup(slow: Row, fast: Row) -> float | None:
    """How many times less `fast` takes for a clip."""
    key = time_that_counts(slow).key
    return float(slow[key] / fast[key]) if slow.get(key) and fast.get(key) else None


def headline(rows: Sequence[Row]) -> str:
    """The student's first scores, in brackets those of many steps, and how much faster it is; empty without one."""
    student, many = student_row(rows), many_step_row(rows)
    if student is None:
        return ""
    scores = [_beside(d, student, many) for d in headline_dimensions([student])]
    times = speedup(many, student) if many else None
    faster = [f"{times:.1f} times faster"] if times else []
    beside = f" ({many['label']})" if many and "label" in many else ""
    return f"{student.get('label', student['name'])}{beside}: {', '.join([*scores, *faster]) or 'no scores'}"


def _beside(dimension: Dimension, student: Row, many: Row | None) -> str:
    values = [value_of(row, dimension) for row in (student, many) if row]
    texts = [f"{value:.{dimension.digits}f}" for value in values if value is not None]
    return f"{dimension.label} {texts[0]}" + (f" ({texts[1]})" if len(texts) > 1 else "")


def beside_teacher(rows: Sequence[Row]) -> dict[str, float]:
    """The student's figures relative to the model of many steps."""
    student, many = student_row(rows), many_step_row(rows)
    if student is None or many is None:
        return {}
    figures, distances = {}, (value_of(student, FRECHET), value_of(many, FRECHET))
    if distances[0] is not None and distances[1]:
        figures["frechet_vs_teacher"] = distances[0] / distances[1]
    if times := speedup(many, student):
        figures["speedup"] = times
    return figures
