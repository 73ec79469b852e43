"""The report's score tables: one row per variant, the best value of each column marked, with explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from magic141.evaluation.pages import read_json
from magic141.evaluation.scores import AVERAGE, EXACT, FRECHET, VBENCH, Dimension

APPROACHES = {
    "Euler, CFG": "the undistilled model, called the teacher: Euler steps along its flow, each of two evaluations, "
    "with and without the caption (classifier-free guidance)",
    "CFG-distilled": "a copy of the teacher that has learned to predict its guided velocity in one evaluation",
    "student's chain": "sampled like the student, with its sampler, shift and guidance: the student, compared with it, "
    "shows what step distillation adds",
    "DMD2": "the student: distilled once more, so that its clips of few steps are distributed like those of many "
    "(distribution matching distillation)",
    "int8": "the student with weights stored in 8 bits",
}


def score_tables(parts: Mapping[str, Path], frechet_dimensions: int) -> list[dict[str, Any]]:
    """The score table in the layout of the paper's Table 1, once per group of dimensions."""
    scores = read_json(parts, "evaluate", "scores.json")
    if not scores:
        return []
    rows = scores["variants"]
    has_truth = any(row["scores"]["motion"]["value"] is not None for row in rows)
    frechet = _frechet(frechet_dimensions)
    first = [*EXACT, frechet] if has_truth else [frechet]
    return [
        _table("Exact scores of held-out clips" if has_truth else "Distance to real clips", first, rows),
        _table("VBench, in the layout of the paper's Table 1", [*VBENCH, AVERAGE], rows),
    ]


def approaches(parts: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Terms that occur in the tables' column `approach`, with their meanings."""
    scores = read_json(parts, "evaluate", "scores.json") or {"variants": []}
    names = [row.get("approach", "") for row in scores["variants"]]
    return [(term, meaning) for term, meaning in APPROACHES.items() if any(term in name for name in names)]


def _frechet(num_dimensions: int) -> Dimension:
    """The Fréchet dimension, labelled with its number of components, as another number gives another metric."""
    return replace(
        FRECHET,
        label=f"{FRECHET.label}, {num_dimensions} dims",
        help=f"{FRECHET.help}; over the first {num_dimensions} principal components of real clips "
        "(evaluate.frechet_dimensions): comparable only with distances over as many",
    )


def _table(title: str, dimensions: Sequence[Dimension], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A table for the template; columns without any value are only named."""
    shown = [d for d in dimensions if any(row["scores"][d.key]["value"] is not None for row in rows)]
    best = {dimension.key: _best(dimension, rows) for dimension in shown}
    body = [
        {
            "steps": row.get("num_steps", "-"),
            "approach": row.get("approach", row["label"]),
            "nfe": row.get("nfe", "-"),
            "is_ceiling": "nfe" not in row,
            "cells": [
                _cell(dimension, row["scores"][dimension.key], best[dimension.key], "nfe" in row) for dimension in shown
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


def _meaning(dimension: Dimension, rows: Sequence[Mapping[str, Any]]) -> str:
    """The meaning of a column, and why values are missing in it."""
    reasons = dict.fromkeys(row["scores"][dimension.key]["reason"] for row in rows)
    known = [reason for reason in reasons if reason]
    return dimension.help + (f" (n/a: {'; '.join(known)})" if known else "")


def _best(dimension: Dimension, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The best shown value among the variants; ceilings do not compete."""
    values = [row["scores"][dimension.key]["value"] for row in rows if "nfe" in row]
    known = [value for value in values if value is not None]
    if dimension.better == "none" or not known:
        return None
    return f"{max(known) if dimension.better == 'high' else min(known):.{dimension.digits}f}"


def _cell(dimension: Dimension, score: Mapping[str, Any], best: str | None, competes: bool) -> dict[str, Any]:
    if score["value"] is None:
        return {"text": "n/a", "title": score["reason"], "best": False, "missing": True}
    text = f"{score['value']:.{dimension.digits}f}"
    error = score.get("stderr")
    title = "" if error is None else f"standard error {error:.{dimension.digits + 1}f}"
    return {"text": text, "title": title, "best": competes and text == best, "missing": False}
