"""The report's score tables: a row per variant, the best value of a column marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magic141.evaluation.pages import read_json
from magic141.evaluation.scores import AVERAGE, EXACT, FRECHET, VBENCH, Dimension


def score_tables(parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The score table in the layout of the paper's Table 1, once per group of dimensions."""
    scores = read_json(parts, "evaluate", "scores.json")
    if not scores:
        return []
    rows = scores["variants"]
    has_truth = any(row["scores"]["motion"]["value"] is not None for row in rows)
    first = [*EXACT, FRECHET] if has_truth else [FRECHET]
    return [
        _table("Exact scores of held-out clips" if has_truth else "Distance to real clips", first, rows),
        _table("VBench, in the layout of the paper's Table 1", [*VBENCH, AVERAGE], rows),
    ]


def _table(title: str, dimensions: Sequence[Dimension], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = {dimension.key: _best(dimension, rows) for dimension in dimensions}
    body = [
        {
            "steps": row.get("num_steps", "-"),
            "approach": row.get("approach", row["label"]),
            "nfe": row.get("nfe", "-"),
            "is_ceiling": "nfe" not in row,
            "cells": [
                _cell(dimension, row["scores"][dimension.key], best[dimension.key], "nfe" in row)
                for dimension in dimensions
            ],
        }
        for row in rows
    ]
    return {"title": title, "dimensions": dimensions, "rows": body}


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
