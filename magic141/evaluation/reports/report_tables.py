"""The report's score tables: one row per variant, the best value of each column marked, with explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from magic141.evaluation.reports.headline import (
    Row,
    headline_dimensions,
    many_step_row,
    on_gpu,
    speedup,
    student_row,
    time_that_counts,
)
from magic141.evaluation.scores import EXACT, FRECHET, MOTION, VBENCH, Dimension, error_text, value_of, with_values

STUDENTS = ("student", "int8")  # models that stand out in tables
FEW_COLUMNS = 2  # of VBench; up to so many go into the first table
VARIANTS = {
    "teacher": "the undistilled model, called the teacher: Euler steps along its flow, each of two evaluations, "
    "with and without the caption (classifier-free guidance)",
    "CFG-distilled": "a copy of the teacher that has learned to predict its guided velocity in one evaluation",
    "student's chain": "sampled like the student, with its sampler, shift and guidance: the student, compared with it, "
    "shows what step distillation adds",
    "student": "the CFG-distilled model, distilled once more, so that the clips it makes in few steps are "
    "distributed like those of many (distribution matching distillation, DMD2)",
    "int8": "the student with weights stored in 8 bits: it takes less memory, but no less time",
}


def score_tables(rows: Sequence[Row], frechet_dimensions: int) -> list[dict[str, Any]]:
    """The score table in the layout of the paper's Table 1, once per group of dimensions; `rows`: of scores.json."""
    if not rows:
        return []
    has_truth = any(value_of(row, MOTION) is not None for row in rows)
    frechet = _frechet(frechet_dimensions)
    first = [MOTION, frechet, *EXACT[1:]] if has_truth else [frechet]
    title = "Exact scores of held-out clips" if has_truth else "Distance to real clips"
    if len(with_values(VBENCH, rows)) <= FEW_COLUMNS:
        return [_table(title, [*first, *VBENCH], rows)]
    return [_table(title, first, rows), _table("VBench, in the layout of the paper's Table 1", VBENCH, rows)]


def headline_table(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The student, the model of many steps and the real clips: their first scores, evaluations and time per clip."""
    student, many = student_row(rows), many_step_row(rows)
    if student is None or many is None:
        return None
    dimensions, time = headline_dimensions(rows), time_that_counts(many)
    real = next((row for row in rows if row["name"] == "real"), None)
    lines = [
        {
            **_named(row),
            "cells": [_cell(d, score_of(row, d), None, competes=False) for d in dimensions],
            "nfe": row.get("nfe", ""),
            "time": f"{row[time.key]:.{time.digits}f}" if time.key in row else "",
        }
        for row in (student, many, real)
        if row is not None
    ]
    return {"dimensions": dimensions, "time": time, "rows": lines, "speedup": speedup(many, student)}


def score_of(row: Row, dimension: Dimension) -> Mapping[str, Any]:
    """A row's score; missing where an earlier code judged, which did not know the dimension."""
    score: Mapping[str, Any] = row["scores"].get(dimension.key, {"value": None, "reason": "not known when judged"})
    return score


def sampling_costs(variants: Sequence[Row]) -> list[dict[str, Any]]:
    """Evaluations, time and memory of every variant in variants.json, with its speed-up over the first one."""
    return [{**v, "speedup": speedup(variants[0], v), "is_student": v["model"] in STUDENTS} for v in variants]


def measured_on(costs: Sequence[Row]) -> dict[str, Any]:
    """Device and precision of the costs, and whether speed-ups compare latency, as on a GPU, or CPU time."""
    first: Row = costs[0] if costs else {}
    device = str(first.get("device", "cpu")).replace("cpu", "CPU")
    precision = f", {first['precision']}" if "precision" in first else ""
    return {"device": f"{device}{precision}", "on_gpu": on_gpu(first)}


def variant_terms(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Terms that occur in the variants' labels, with their meanings."""
    names = [row["label"] for row in rows]
    return [(term, meaning) for term, meaning in VARIANTS.items() if any(term in name for name in names)]


def _named(row: Row) -> dict[str, Any]:
    """What a row is called, and how it is set apart."""
    return {
        "label": row["label"],
        "name": row["name"],
        "is_ceiling": "nfe" not in row,
        "is_student": row.get("model") in STUDENTS,
    }


def _frechet(num_dimensions: int) -> Dimension:
    """The Fréchet dimension, labelled with its number of components, as another number gives another metric."""
    return replace(
        FRECHET,
        label=f"{FRECHET.label}, {num_dimensions} dims",
        help=f"{FRECHET.help}; over the first {num_dimensions} principal components of real clips "
        "(evaluate.frechet_dimensions): comparable only with distances over as many",
    )


def _table(title: str, dimensions: Sequence[Dimension], rows: Sequence[Row]) -> dict[str, Any]:
    """A table for the template; columns without any value are only named."""
    shown = with_values(dimensions, rows)
    best = {dimension.key: _best(dimension, rows) for dimension in shown}
    body = [
        {
            **_named(row),
            "nfe": row.get("nfe", ""),
            "cells": [
                _cell(dimension, score_of(row, dimension), best[dimension.key], "nfe" in row) for dimension in shown
            ],
        }
        for row in rows
    ]
    return {
        "title": title,
        "dimensions": shown,
        "rows": body,
        "missing": ", ".join(d.label for d in dimensions if d not in shown),
        "terms": [(d.label, _meaning(d, rows)) for d in dimensions],
    }


def _meaning(dimension: Dimension, rows: Sequence[Row]) -> str:
    """The meaning of a column, and why values are missing in it."""
    reasons = dict.fromkeys(score_of(row, dimension)["reason"] for row in rows)
    known = [reason for reason in reasons if reason]
    return dimension.help + (f" (n/a: {'; '.join(known)})" if known else "")


def _best(dimension: Dimension, rows: Sequence[Row]) -> Mapping[str, Any] | None:
    """The best score among the variants; ceilings do not compete."""
    scores: list[Mapping[str, Any]] = [score_of(row, dimension) for row in rows if "nfe" in row]
    known = [score for score in scores if score["value"] is not None]
    if dimension.better == "none" or not known:
        return None
    return (max if dimension.better == "high" else min)(known, key=lambda score: float(score["value"]))


def _is_best(dimension: Dimension, score: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    """Whether a score is shown as the best one is, or is within its standard error."""
    texts = {f"{value:.{dimension.digits}f}" for value in (score["value"], best["value"])}
    return len(texts) == 1 or abs(score["value"] - best["value"]) <= (best.get("stderr") or 0)


def _cell(
    dimension: Dimension, score: Mapping[str, Any], best: Mapping[str, Any] | None, competes: bool
) -> dict[str, Any]:
    if score["value"] is None:
        return {"text": "n/a", "error": "", "title": score["reason"], "best": False, "missing": True}
    text = f"{score['value']:.{dimension.digits}f}"
    error = error_text(score.get("stderr"), dimension.digits)
    is_best = competes and best is not None and _is_best(dimension, score, best)
    return {"text": text, "error": error, "title": "", "best": is_best, "missing": False}
