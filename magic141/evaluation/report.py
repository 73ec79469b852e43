"""The report: one self-contained HTML file with videos, scores, curves and costs of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magic141.artifacts import StageLog
from magic141.evaluation.charts import Series, line_chart, smooth
from magic141.evaluation.config import ReportConfig
from magic141.evaluation.pages import media_uri, render_page
from magic141.evaluation.scores import AVERAGE, EXACT, FRECHET, VBENCH, Dimension

STAGES = {
    "pretrain_t2v": "Text to video (flow matching)",
    "pretrain_i2v": "Image to video: the teacher (flow matching)",
    "distill_cfg": "CFG distillation",
    "distill_dmd2": "DMD2 step distillation",
}
MIN_TILE, MAX_TILE = 112, 240  # screen pixels of a shown video's width
DRIFT_CHARTS = {
    "motion": ("motion", 1.0),
    "colour": ("colour", 1.0),
    "iou": ("subject", 1.0),
    "background_psnr_db": ("background PSNR, dB", None),
}
COST_CHARTS = {"cpu_ms_per_clip": "CPU ms per window and clip", "rss_mb": "resident memory, MB"}


def write_report(config: ReportConfig, parts: Mapping[str, Path], out: Path, log: StageLog) -> None:
    """Writes `report.html` from the artifacts that are there; sections without theirs are left out.

    Args:
        config: heading and sizes.
        parts: stage name -> artifact folder.
        out: receives report.html.
        log: receives the file.
    """
    sections = {
        "facts": _facts(parts),
        "tables": _score_tables(parts),
        "notes": _notes(parts),
        "comparison": _comparison(parts, config),
        "suite": _suite(parts),
        "retrieval": _retrieval(parts),
        "curves": _curves(parts),
        "long": _long(parts),
        "costs": _costs(parts),
        "quantization": _quantization(parts),
        **_tile(parts, config),
    }
    html = render_page("report.html.j2", title=config.title, date=time.strftime("%Y-%m-%d %H:%M"), **sections)
    file = out / "report.html"
    file.write_text(html, encoding="utf-8")
    log.file(file)
    log.summary({"report_mb": file.stat().st_size / 2**20})


def _facts(parts: Mapping[str, Path]) -> list[tuple[str, str]]:
    """What the run is, in a few words each."""
    facts: list[tuple[str, str]] = []
    if info := _json(parts, "prepare_data", "dataset.json"):
        facts.append(("data", f"{info['source']}: {sum(info['num_clips'].values())} clips"))
        facts.append(("clips", f"{info['num_frames']} frames, {info['width']}x{info['height']}, {info['fps']:g} fps"))
        shape = "x".join(map(str, info["latent_shape"]))
        facts.append(("latents", f"{shape}, codec {info['codec_psnr_db']:.1f} dB"))
    records = [record for stage in STAGES if (record := _json(parts, stage, "training.json"))]
    if records:
        facts.append(("parameters", f"{records[-1]['num_parameters'] / 1e6:.2f} M"))
        facts.append(
            ("training", f"{sum(r['steps'] for r in records)} steps, {sum(r['seconds'] for r in records):.0f} s")
        )
    if clips := _lines(parts, "generate", "exact/conditions.jsonl"):
        facts.append(("judged on", f"{len(clips)} held-out clips"))
    return facts


def _notes(parts: Mapping[str, Path]) -> list[str]:
    scores = _json(parts, "evaluate", "scores.json")
    if not scores:
        return []
    notes = []
    rows = scores["variants"]
    if reasons := {row["scores"]["motion"]["reason"] for row in rows} - {None}:
        notes.append(f"Exact scores are not applicable: {'; '.join(sorted(reasons))}.")
    if any(note := row["scores"]["temporal_flickering"]["reason"] for row in rows):
        notes.append(f"VBench's temporal flickering: {note}.")
    if version := scores["vbench"]["versions"]["vbench"]:
        notes.append(f"VBench {version}, custom videos, on the CPU. Hover over n/a for the reason of a missing score.")
    return notes


def _score_tables(parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The score table in the layout of the paper's Table 1, once per group of dimensions."""
    scores = _json(parts, "evaluate", "scores.json")
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


def _comparison(parts: Mapping[str, Path], config: ReportConfig) -> dict[str, Any] | None:
    """Videos side by side: a row per clip, a column per variant."""
    folder = parts.get("generate")
    if folder is None:
        return None
    variants = json.loads((folder / "variants.json").read_text())
    columns = [("input", "input image"), ("real", "real clip")]
    columns += [(v["name"], v["label"]) for v in variants if _is_shown(v, variants)]
    columns = [(name, label) for name, label in columns if (folder / "showcase" / name).is_dir()]
    clips = _lines(parts, "generate", "exact/conditions.jsonl")[: config.num_videos]
    rows = []
    for number, clip in enumerate(clips):
        media = [_media(folder / "showcase" / name, f"{number:02d}") for name, _ in columns]
        if any(media):
            rows.append({"caption": clip["caption"], "media": media})
    return {"columns": [label for _, label in columns], "rows": rows}


def _is_shown(variant: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> bool:
    """Many steps and the most few steps of teacher and CFG-distilled; all students but those between."""
    steps = [v["num_steps"] for v in variants if v["model"] == variant["model"] and v["sampler"] == variant["sampler"]]
    ordered = sorted(set(steps), reverse=True)
    if variant["model"] == "teacher":
        return variant["num_steps"] in ordered[:2]
    if variant["model"] == "cfg":
        return variant["sampler"] == "euler" and variant["num_steps"] in ordered[1:2]
    return variant["num_steps"] in (ordered[0], ordered[-1])


def _suite(parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Prompts with their retrieved image and the videos of every seed."""
    folder = parts.get("generate")
    if folder is None:
        return []
    labels = {v["name"]: v["label"] for v in json.loads((folder / "variants.json").read_text())}
    rows = []
    for number, row in enumerate(_lines(parts, "generate", "suite/prompts.jsonl")):
        videos = [
            {"src": media_uri(file), "label": f"{labels[name]}, seed {file.stem.partition('-s')[2]}"}
            for name in labels
            for file in sorted((folder / "suite" / name).glob(f"{number:02d}-s*.mp4"))
        ]
        image = media_uri(folder / "suite" / "images" / f"{number:02d}-0.png")
        rows.append({"prompt": row["prompt"], "image": image, "score": row["score"], "videos": videos})
    return rows


def _retrieval(parts: Mapping[str, Path]) -> dict[str, Any] | None:
    """Recall, and the images found for each prompt."""
    folder, index = parts.get("generate"), _json(parts, "build_index", "index.json")
    if folder is None or index is None:
        return None
    rows = []
    for number, row in enumerate(_lines(parts, "generate", "suite/prompts.jsonl")):
        images = folder / "suite" / "images"
        hits = [
            {"src": media_uri(images / f"{number:02d}-{rank}.png"), "caption": hit["caption"], "score": hit["score"]}
            for rank, hit in enumerate(row["hits"])
        ]
        rows.append({"prompt": row["prompt"], "hits": hits})
    return {"index": index, "recall": index["recall"], "rows": rows}


def _curves(parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Loss curves of the training stages."""
    curves = []
    for stage, title in STAGES.items():
        lines = _lines(parts, stage, "metrics.jsonl")
        names = dict.fromkeys(key for line in lines for key in line if key.endswith("loss"))
        series = []
        for name in names:
            points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
            is_validation = name.startswith("validation")
            label = name.replace("_", " ")
            series.append(Series(label, points if is_validation else smooth(points), dots=is_validation))
        if chart := line_chart(series, "step", log_y=True):
            record = _json(parts, stage, "training.json") or {}
            facts = f"{record['steps']} steps, {record['seconds']:.0f} s" if record else ""
            curves.append({"title": title, "facts": facts, "chart": chart})
    return [*curves, *_watch(parts)]


def _watch(parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """What the collapse watch saw: the student relative to the many-step model."""
    record = _json(parts, "distill_dmd2", "watch.json")
    if record is None:
        return []
    series = [
        Series(label, [(row["step"], row[f"validation_{label}_ratio"]) for row in record["validations"]], dots=True)
        for label in ("variance", "motion", "diversity")
    ]
    facts = f"1 is like the many-step model; exported: step {record['exported_step']}"
    chart = line_chart(series, "step")
    return [{"title": "Collapse watch of the step distillation", "facts": facts, "chart": chart}] if chart else []


def _long(parts: Mapping[str, Path]) -> dict[str, Any] | None:
    """Long videos with what drifts from window to window and what each window costs."""
    folder, scores = parts.get("generate"), _json(parts, "evaluate", "scores.json")
    if folder is None or not (folder / "long" / "windows.json").is_file():
        return None
    record = json.loads((folder / "long" / "windows.json").read_text())
    names = sorted(record["variants"], key=lambda name: not name.startswith("student"))
    videos = [
        {
            "label": _variant_label(name),
            "sources": [media_uri(file) for file in sorted((folder / "long" / name).glob("*.mp4"))],
        }
        for name in names
    ]
    drift = (scores or {}).get("long_video", {}).get("drift") or {}
    charts = [
        _window_chart(label, {n: [window[key] for window in drift[n]] for n in names if n in drift}, top)
        for key, (label, top) in DRIFT_CHARTS.items()
    ]
    charts += [
        _window_chart(label, {n: [window[key] for window in record["variants"][n]] for n in names}, None)
        for key, label in COST_CHARTS.items()
    ]
    windows, num_frames, fps = len(record["frames"]), record["frames"][-1][1], record["fps"]
    facts = f"{windows} chained windows, {num_frames} frames, {num_frames / fps:.1f} s at {fps:g} fps"
    return {"videos": videos, "charts": [chart for chart in charts if chart["chart"]], "facts": facts}


def _window_chart(title: str, values: Mapping[str, Sequence[float]], top: float | None) -> dict[str, str]:
    """A figure per window and variant, from zero to `top`, or to the largest value."""
    series = [Series(_variant_label(name), list(enumerate(line, start=1)), dots=True) for name, line in values.items()]
    highest = max((value for line in values.values() for value in line), default=1.0)
    return {"title": title, "chart": line_chart(series, "window", y_range=(0, top or 1.1 * highest))}


def _variant_label(name: str) -> str:
    model, _, steps = name.rpartition("_")
    return f"{model}, {steps} steps"


def _costs(parts: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Evaluations, time and memory of every variant, beside the first one's."""
    folder = parts.get("generate")
    if folder is None:
        return []
    variants: list[dict[str, Any]] = json.loads((folder / "variants.json").read_text())
    slowest = variants[0]["cpu_ms_per_clip"]
    return [{**v, "speedup": slowest / v["cpu_ms_per_clip"] if v["cpu_ms_per_clip"] else None} for v in variants]


def _quantization(parts: Mapping[str, Path]) -> list[tuple[str, str]]:
    record = _json(parts, "quantize", "layers.json") or {}
    return [(key.replace("_", " "), f"{value:.4g}") for key, value in record.items() if isinstance(value, int | float)]


def _tile(parts: Mapping[str, Path], config: ReportConfig) -> dict[str, Any]:
    """Screen pixels of a video's width, and whether its pixels are shown as squares."""
    info = _json(parts, "prepare_data", "dataset.json")
    width = info["width"] if info else 32
    return {"tile": max(MIN_TILE, min(MAX_TILE, width * config.zoom)), "pixelated": width < MIN_TILE}


def _media(folder: Path, stem: str) -> dict[str, str] | None:
    for suffix, kind in ((".mp4", "video"), (".png", "image")):
        file = folder / f"{stem}{suffix}"
        if file.is_file():
            return {"kind": kind, "src": media_uri(file)}
    return None


def _json(parts: Mapping[str, Path], stage: str, name: str) -> Any:
    """The JSON file of a stage's artifact; none if the stage or the file is not there."""
    file = parts[stage] / name if stage in parts else None
    return json.loads(file.read_text()) if file is not None and file.is_file() else None


def _lines(parts: Mapping[str, Path], stage: str, name: str) -> list[dict[str, Any]]:
    file = parts[stage] / name if stage in parts else None
    return [json.loads(line) for line in file.read_text().splitlines()] if file is not None and file.is_file() else []
