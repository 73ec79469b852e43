"""Compares runs on one HTML page: how they were made, differences of scores, and videos side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from magic141.data.info import INFO_FILE
from magic141.evaluation.reports.comparison_tables import RunParts, config_differences, made_differences, score_rows
from magic141.evaluation.reports.pages import media_uri, read_json, read_lines, render_page, tile
from magic141.text_files import replace_text

ZOOM = 5  # screen pixels per pixel of a small video
SMALL = 32


def write_comparison(
    runs: Sequence[RunParts],
    variant: str,
    num_videos: int,
    file: Path,
    charts: Sequence[tuple[str, str]] = (),
    remarks: Sequence[str] = (),
) -> None:
    """Writes one self-contained HTML page.

    Args:
        runs: the first is what the others are compared with.
        variant: row of the score table.
        num_videos: clips to show.
        file: the page.
        charts: titles and SVGs to show above the tables.
        remarks: lines about how the runs were judged.
    """
    references = _references(runs)
    deciding, idle = config_differences(runs)
    html = render_page(
        "comparison.html.j2",
        variant=variant,
        variant_label=_label(runs, variant),
        labels=[run.label for run in runs],
        charts=[(title, Markup(svg)) for title, svg in charts],
        remarks=remarks,
        made=made_differences(runs),
        differences=deciding,
        idle=idle,
        scores=score_rows(runs, variant),
        references=list(references),
        unscored=[run.label for run in runs if not run.variants],
        videos=_videos(runs, variant, num_videos, references),
        files=any("generate" in run.artifacts for run in runs),
        **tile(_video_width(runs), ZOOM),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, html)


def _video_width(runs: Sequence[RunParts]) -> int:
    """That of the first run whose data is on this machine."""
    known = (read_json(run.artifacts, "prepare_data", INFO_FILE) for run in runs)
    return next((int(info["width"]) for info in known if info), SMALL)


def _label(runs: Sequence[RunParts], variant: str) -> str:
    """What the variant is called in the runs' tables."""
    return next((str(row["label"]) for run in runs if "label" in (row := run.variant(variant))), variant)


def _references(runs: Sequence[RunParts]) -> dict[str, str]:
    """What stands beside the runs' videos: heading -> folder in the showcase of the first run with files here."""
    here = next((run for run in runs if "generate" in run.artifacts), None)
    file = here.artifacts["generate"] / "variants.json" if here else Path()
    if here is None or not file.is_file():
        return {}
    many = json.loads(file.read_text())[0]
    return {"real clip": "real", f"{many['label']}, of {here.label}": many["name"]}


def _videos(runs: Sequence[RunParts], variant: str, num: int, references: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of clips that all runs with files on this machine have, matched by id: one input, one video per run."""
    numbered = [_clips(run) for run in runs]
    here = [(run, clips) for run, clips in zip(runs, numbered, strict=True) if clips is not None]
    shared = [clip for clip in here[0][1] if all(clip in clips for _, clips in here)] if here else []
    rows = []
    for clip in shared[:num]:
        files = [
            (run.label, _video(run, variant, clips[clip][0]) if clips is not None else None)
            for run, clips in zip(runs, numbered, strict=True)
        ]
        if all(file is None or file.is_file() for _, file in files):
            first, clips = here[0]
            beside = [(label, _video(first, name, clips[clip][0])) for label, name in references.items()]
            sources = [(label, _source(file)) for label, file in (*beside, *files)]
            rows.append({"caption": clips[clip][1], "sources": sources})
    return rows


def _source(file: Path | None) -> str | None:
    return media_uri(file) if file is not None and file.is_file() else None


def _video(run: RunParts, variant: str, number: int) -> Path:
    return run.artifacts["generate"] / "showcase" / variant / f"{number:02d}.mp4"


def _clips(run: RunParts) -> dict[str, tuple[int, str]] | None:
    """Clip id -> its number and caption; None if the run's videos are not on this machine."""
    if "generate" not in run.artifacts:
        return None
    rows = read_lines(run.artifacts, "generate", "exact/conditions.jsonl")
    return {row["id"]: (number, row["caption"]) for number, row in enumerate(rows)}
