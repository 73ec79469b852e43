"""Compares runs on one HTML page: differences of configs and scores, and videos side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from magic141.artifacts import flatten
from magic141.evaluation.pages import media_uri, render_page
from magic141.evaluation.scores import COSTS, EXACT, FRECHET, VBENCH, Dimension


@dataclass(frozen=True)
class RunParts:
    """One run to compare.

    Attributes:
        label: what it is called in the table.
        config: its complete config, as plain values.
        artifacts: stage name -> artifact folder on this machine.
        metrics: from the tracking store; they include the scores even if the run's folders are on another machine.
    """

    label: str
    config: Mapping[str, Any]
    artifacts: Mapping[str, Path]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def variant(self, name: str) -> Mapping[str, Any]:
        """Scores and costs of one variant; empty if the run does not have that variant."""
        file = self.artifacts.get("evaluate", Path()) / "scores.json"
        if not file.is_file():
            return scores_in(self.metrics, name)
        return next((row for row in json.loads(file.read_text())["variants"] if row["name"] == name), {})


def scores_in(metrics: Mapping[str, float], variant: str) -> dict[str, float]:
    """Scores and costs of one variant among a pipeline run's metrics."""
    prefix = f"scores/{variant}/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Row:
    """A line of the comparison: one value per run, and its difference from the first run's."""

    label: str
    values: list[str]
    differences: list[str]
    better: list[bool | None]  # whether it is better than the first run's


def config_differences(runs: Sequence[RunParts]) -> list[Row]:
    """Config fields that are not the same in all runs."""
    flat = [dict(flatten(run.config)) for run in runs]
    names = sorted({name for values in flat for name in values})
    rows = []
    for name in names:
        values = [json.dumps(values[name]) if name in values else "-" for values in flat]
        if len(set(values)) > 1:
            rows.append(Row(name, values, [""] * len(runs), [None] * len(runs)))
    return rows


def score_rows(runs: Sequence[RunParts], variant: str) -> list[Row]:
    """Scores and costs of one variant in every run; those that no run has are left out."""
    records = [run.variant(variant) for run in runs]
    rows = (_score_row(dimension, records) for dimension in (*EXACT, FRECHET, *VBENCH, *COSTS))
    return [row for row in rows if row is not None]


def write_comparison(
    runs: Sequence[RunParts],
    variant: str,
    num_videos: int,
    file: Path,
    charts: Sequence[tuple[str, str]] = (),
) -> None:
    """Writes one self-contained HTML page; `charts` are titles and SVGs to show above the tables."""
    html = render_page(
        "comparison.html.j2",
        variant=variant,
        labels=[run.label for run in runs],
        charts=[(title, Markup(svg)) for title, svg in charts],
        differences=config_differences(runs),
        scores=score_rows(runs, variant),
        videos=_videos(runs, variant, num_videos),
        files=any("generate" in run.artifacts for run in runs),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(html, encoding="utf-8")


def _score_row(dimension: Dimension, records: Sequence[Mapping[str, Any]]) -> Row | None:
    values = [_value(dimension.key, record) for record in records]
    if all(value is None for value in values):
        return None
    shown = ["-" if value is None else f"{value:.{dimension.digits}f}" for value in values]
    deltas = [None if value is None or values[0] is None else value - values[0] for value in values]
    differences = [f"{d:+.{dimension.digits}f}" if d and i else "" for i, d in enumerate(deltas)]
    sign = {"high": 1, "low": -1, "none": 0}[dimension.better]
    better = [bool(d * sign > 0) if d and sign and i else None for i, d in enumerate(deltas)]
    return Row(dimension.label, shown, differences, better)


def _value(key: str, record: Mapping[str, Any]) -> float | None:
    found = record.get(key, record.get("scores", {}).get(key, {}).get("value"))
    return float(found) if isinstance(found, int | float) else None


def _videos(runs: Sequence[RunParts], variant: str, num: int) -> list[dict[str, Any]]:
    """Rows of clips that all runs with files on this machine have, matched by id: one input, one video per run."""
    numbered = [_clips(run) for run in runs]
    here = [clips for clips in numbered if clips is not None]
    shared = [clip for clip in here[0] if all(clip in clips for clips in here)] if here else []
    rows = []
    for clip in shared[:num]:
        files = [
            _video(run, variant, clips[clip][0]) if clips is not None else None
            for run, clips in zip(runs, numbered, strict=True)
        ]
        if all(file is None or file.is_file() for file in files):
            sources = [media_uri(file) if file else None for file in files]
            rows.append({"caption": here[0][clip][1], "sources": sources})
    return rows


def _video(run: RunParts, variant: str, number: int) -> Path:
    return run.artifacts["generate"] / "showcase" / variant / f"{number:02d}.mp4"


def _clips(run: RunParts) -> dict[str, tuple[int, str]] | None:
    """Clip id -> its number and caption; None if the run's videos are not on this machine."""
    if "generate" not in run.artifacts:
        return None
    file = run.artifacts["generate"] / "exact" / "conditions.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {row["id"]: (number, row["caption"]) for number, row in enumerate(rows)}
