"""The report: one self-contained HTML file with videos, scores, curves and costs of a run."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from magic141.artifacts.publication import DIGEST_CHARS
from magic141.evaluation.config import ReportConfig
from magic141.evaluation.reports.headline import Row
from magic141.evaluation.reports.pages import media_of, media_uri, read_json, read_lines, render_page, tile
from magic141.evaluation.reports.report_curves import (
    TRAINING_STAGES,
    long_video,
    training_curves,
)
from magic141.evaluation.reports.report_tables import (
    STUDENTS,
    headline_table,
    measured_on,
    sampling_costs,
    score_tables,
    variant_terms,
)
from magic141.evaluation.scores import COSTS, SCORES_FILE, VBENCH, with_values
from magic141.stage_log import StageLog
from magic141.training.config import RECORD_FILE
from magic141.urls import without_credentials

QUANTIZED = {
    "num_layers": ("layers in int8", ""),
    "max_relative_error": ("largest relative error of a layer", ".2%"),
    "weight_mb_before": ("weights before, MiB", ".2f"),
    "weight_mb_after": ("weights after, MiB", ".2f"),
    "linear_weight_ratio": ("size of those layers, relative to before", ".0%"),
}


def write_report(
    config: ReportConfig, settings: Mapping[str, Any], parts: Mapping[str, Path], out: Path, log: StageLog
) -> None:
    """Writes `report.html` from the artifacts given; sections whose artifacts are missing are left out.

    The same settings and artifacts give the same file: it contains no date and no commit.

    Args:
        config: heading and sizes.
        settings: seed and config sections that determined what is shown, as plain values.
        parts: stage name -> artifact folder.
        out: receives report.html.
        log: receives the file.
    """
    html = render_page("report.html.j2", title=config.title, **_sections(config, settings, parts))
    file = out / "report.html"
    file.write_text(html, encoding="utf-8")
    log.file(file)
    log.summary({"report_mb": file.stat().st_size / 2**20})


def _sections(config: ReportConfig, settings: Mapping[str, Any], parts: Mapping[str, Path]) -> dict[str, Any]:
    """What the page shows, by its names in the template; None or empty where artifacts are missing."""
    scores = read_json(parts, "evaluate", SCORES_FILE) or {}
    rows = scores.get("variants", [])
    variants = read_json(parts, "generate", "variants.json") or []
    info = read_json(parts, "prepare_data", "dataset.json") or {}
    clips = read_lines(parts, "generate", "exact/conditions.jsonl")
    prompts = read_lines(parts, "generate", "suite/prompts.jsonl")
    costs = sampling_costs(variants)
    made = {stage: folder.name for stage, folder in parts.items()}
    text = without_credentials(yaml.safe_dump(dict(settings), sort_keys=False))
    return {
        "facts": _facts(parts, info, len(clips)),
        "result": headline_table(rows),
        "student": made.get("distill_dmd2", "").rpartition("-")[2][:DIGEST_CHARS],  # as `compare` has it
        "tables": score_tables(rows, settings["evaluate"]["frechet_dimensions"]),
        "terms": variant_terms(rows),
        "notes": _notes(parts, scores, variants),
        "comparison": _comparison(parts, variants, clips[: config.num_videos]),
        "suite": _suite(parts, variants, prompts),
        "retrieval": _retrieval(parts, prompts),
        "curves": training_curves(parts, settings.get("distill_dmd2", {})),
        "long": long_video(parts, scores, settings["generate"]),
        "costs": costs,
        "measured": measured_on(costs),
        "cost_columns": COSTS,
        "quantization": _quantization(parts),
        "seed": settings["seed"],
        "made": made,
        "settings": text,
        "settings_uri": f"data:text/yaml;base64,{base64.b64encode(text.encode()).decode()}",
        **tile(info.get("width", 32), config.zoom),
    }


def _facts(parts: Mapping[str, Path], info: Row, num_clips: int) -> list[tuple[str, str]]:
    """Facts about the run as (name, value)."""
    facts: list[tuple[str, str]] = []
    if info:
        facts.append(("data", f"{info['source']}: {sum(info['num_clips'].values())} clips"))
        size = f"{info['height']}x{info['width']}"
        facts.append(("clips (height x width)", f"{info['num_frames']} frames, {size}, {info['fps']:g} fps"))
        if of_sizes := info.get("num_of_size"):
            facts.append(("training clips", ", ".join(f"{num} of {name}" for name, num in of_sizes.items())))
        shape = "x".join(map(str, info["latent_shape"]))
        facts.append(("latents (channels x frames x height x width)", shape))
        facts.append(("codec", f"{info['codec_psnr_db']:.1f} dB PSNR"))
    records = [record for stage in TRAINING_STAGES if (record := read_json(parts, stage, RECORD_FILE))]
    if records:
        facts.append(("parameters", f"{records[-1]['num_parameters'] / 1e6:.2f} M"))
    if trained := [record for record in records if record["steps"]]:  # not a base that is used as it is
        steps, seconds = (sum(record[name] for record in trained) for name in ("steps", "seconds"))
        facts.append(("training", f"{steps} steps, {seconds:.0f} s"))
    if num_clips:
        facts.append(("judged on", f"{num_clips} held-out clips"))
    return facts


def _notes(parts: Mapping[str, Path], scores: Row, variants: Sequence[Row]) -> list[str]:
    if not scores:
        return []
    notes = [f"{sentence[0].upper()}{sentence[1:]}."] if (sentence := scores.get("heldout")) else []
    rows = scores["variants"]
    if reasons := {row["scores"]["motion"]["reason"] for row in rows} - {None}:
        notes.append(f"Exact scores are not applicable: {'; '.join(sorted(reasons))}.")
    else:
        notes.append(
            "Mode share: a caption that names only an axis, such as “horizontally”, is right both ways along it. A "
            "model that has learned both goes each way in half of its clips: 0.5. One that always goes the same way, a "
            "collapse, has 0 or 1."
        )
    judged = {dimension.key for dimension in with_values(VBENCH, rows)}
    if judged:
        version = scores["vbench"]["versions"]["vbench"]
        notes.append(f"VBench {version}, custom videos: on {_num_showcase(parts, variants)} clips per variant.")
    if "temporal_flickering" in judged:
        notes.append(
            "VBench's temporal flickering is 1 for a clip that stands still and falls the more it moves: it should "
            "match the real clips' value."
        )
    return notes


def _num_showcase(parts: Mapping[str, Path], variants: Sequence[Row]) -> int:
    """Clips of each variant that VBench has seen."""
    return len(list((parts["generate"] / "showcase" / variants[0]["name"]).glob("*.mp4")))


def _comparison(parts: Mapping[str, Path], variants: Sequence[Row], clips: Sequence[Row]) -> dict[str, Any] | None:
    """Videos side by side: a row per clip, a column per variant."""
    if not clips:
        return None
    folder = parts["generate"] / "showcase"
    columns = [("input", "input image"), ("real", "real clip")]
    columns += [(v["name"], v["label"]) for v in variants if _is_shown(v, variants)]
    columns = [(name, label) for name, label in columns if (folder / name).is_dir()]
    rows = []
    for number, clip in enumerate(clips):
        media = [media_of(folder / name, f"{number:02d}") for name, _ in columns]
        if any(media):
            rows.append({"caption": clip["caption"], "media": media})
    return {"columns": columns, "rows": rows}


def _is_shown(variant: Row, variants: Sequence[Row]) -> bool:
    """Whether to show a variant: of the teacher the two with most steps, of others only some step counts."""
    steps = [v["num_steps"] for v in variants if v["model"] == variant["model"] and v["sampler"] == variant["sampler"]]
    ordered = sorted(set(steps), reverse=True)
    if variant["model"] == "teacher":
        return variant["num_steps"] in ordered[:2]
    if variant["model"] == "cfg":
        return variant["sampler"] == "euler" and variant["num_steps"] in ordered[1:2]
    return variant["num_steps"] in (ordered[0], ordered[-1])


def _suite(parts: Mapping[str, Path], variants: Sequence[Row], prompts: Sequence[Row]) -> dict[str, Any] | None:
    """Prompts side by side: a row per prompt with its retrieved image, a column per variant, the students' first.

    A cell holds the videos of all seeds.
    """
    if not prompts:
        return None
    folder = parts["generate"] / "suite"
    shown = sorted((v for v in variants if _is_shown(v, variants)), key=lambda v: v["model"] not in STUDENTS)
    rows = []
    for number, row in enumerate(prompts):
        videos = [_seeds(folder / v["name"], number) for v in shown]
        image = media_uri(folder / "images" / f"{number:02d}-0.png")
        own = row["hits"][0].get("own_video", False)
        rows.append({**row, "image": image, "own_video": own, "videos": videos})
    seeds = dict.fromkeys(video["seed"] for row in rows for videos in row["videos"] for video in videos)
    return {"columns": [v["label"] for v in shown], "seeds": list(seeds), "rows": rows}


def _seeds(folder: Path, number: int) -> list[dict[str, str]]:
    """A variant's videos of one prompt."""
    files = sorted(folder.glob(f"{number:02d}-s*.mp4"))
    return [{"src": media_uri(file), "seed": file.stem.partition("-s")[2]} for file in files]


def _retrieval(parts: Mapping[str, Path], prompts: Sequence[Row]) -> dict[str, Any] | None:
    """Recall, and the images found for each prompt."""
    folder, index = parts.get("generate"), read_json(parts, "build_index", "index.json")
    if folder is None or index is None:
        return None
    rows = []
    for number, row in enumerate(prompts):
        images = folder / "suite" / "images"
        hits = [{**hit, "src": media_uri(images / f"{number:02d}-{rank}.png")} for rank, hit in enumerate(row["hits"])]
        rows.append({"prompt": row["prompt"], "hits": hits})
    return {"index": index, "recall": index["recall"], "rows": rows}


def _quantization(parts: Mapping[str, Path]) -> list[tuple[str, str]]:
    record = read_json(parts, "quantize", "layers.json") or {}
    return [(label, f"{record[key]:{form}}") for key, (label, form) in QUANTIZED.items() if key in record]
