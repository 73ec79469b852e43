"""The report's charts of training, collapse watch and long videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magic141.evaluation.reports.charts import Series, line_chart, smooth
from magic141.evaluation.reports.pages import media_uri, read_json, read_lines
from magic141.training.config import METRICS_FILE, RECORD_FILE, WATCH_FILE

TRAINING_STAGES = {
    "pretrain_t2v": "Text to video (flow matching)",
    "pretrain_i2v": "Image to video: the teacher (flow matching)",
    "distill_cfg": "CFG distillation",
    "distill_dmd2": "DMD2 step distillation",
}
ChartTitle = tuple[str, float | None]  # with the y axis's end, if that does not follow the values
DRIFT_CHARTS: dict[str, ChartTitle] = {
    "motion": ("motion", 1.0),
    "colour": ("colour", 1.0),
    "iou": ("subject", 1.0),
    "background_psnr_db": ("background PSNR, dB", None),
}
WATCHED = {
    "variance_ratio": "variance ratio",
    "motion_ratio": "motion ratio",
    "detail_ratio": "detail ratio",
    "diversity_ratio": "diversity ratio",
    "mode_coverage": "mode coverage",
    "frechet_ratio": "Fréchet ratio",  # the distance behind it decides which step is the best
}
LIKE = 1.0  # the many-step model
BOUND_REACH = 2.0  # a bound beyond so many times the largest value is not drawn: it would squeeze the lines
COST_CHARTS: dict[str, ChartTitle] = {
    "cpu_ms_per_clip": ("CPU ms per window and clip", None),
    "rss_mb": ("resident memory, MiB", None),
    "gpu_mb": ("largest allocation on the GPU, MiB", None),
}
LONG_VIDEO_SCHEMES = {
    "chained": "Windows are generated one after the other. Each after the first knows the video's first latent frame, "
    "the anchor, and the last latent frames of the previous one (carried: {carried}); nothing is decoded in between.",
    "fused": "All windows are generated together. At every step each after the first knows the video's first latent "
    "frame, the anchor, and the previous windows' estimate of the latent frames that it shares with them (carried: "
    "{carried}); where windows overlap, their mean is used. The cost of a window is its share of the total.",
}


def training_curves(parts: Mapping[str, Path], distill_dmd2: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Loss curves of the training stages, and the collapse watch with the bounds of stage `distill_dmd2`'s settings."""
    curves = []
    for stage, title in TRAINING_STAGES.items():
        lines = read_lines(parts, stage, METRICS_FILE)
        names = dict.fromkeys(key for line in lines for key in line if key.endswith("loss"))
        series = []
        for name in names:
            points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)]
            is_validation = name.startswith("validation")
            label = name.replace("_", " ")
            series.append(Series(label, points if is_validation else smooth(points), dots=is_validation))
        if chart := line_chart(series, "step", log_y=True, title=title):
            record = read_json(parts, stage, RECORD_FILE) or {}
            facts = f"{record['steps']} steps, {record['seconds']:.0f} s" if record else ""
            curves.append({"title": title, "facts": facts, "chart": chart})
    return [*curves, *_watch(parts, distill_dmd2)]


def _watch(parts: Mapping[str, Path], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chart of the collapse watch: the student's metrics relative to the many-step model's."""
    record = read_json(parts, "distill_dmd2", WATCH_FILE)
    if record is None:
        return []
    start = [{"step": 0, **record["start"]}] if record.get("start") else []
    rows, collapse = start + record["validations"], settings.get("collapse", {})
    reach = BOUND_REACH * max([LIKE, *(row.get(f"validation_{key}", 0.0) for row in rows for key in WATCHED)])
    series = []
    for key, label in WATCHED.items():
        bounds = [collapse[name] for end in ("min", "max") if (name := f"{end}_{key}") in collapse]
        points = [(row["step"], row[f"validation_{key}"]) for row in rows if f"validation_{key}" in row]
        if points:
            near = [bound for bound in bounds if bound <= reach]
            series.append(Series(label, points, dots=True, bounds=near))
    title = "Collapse watch of the step distillation"
    chart = line_chart(series, "step", title=title, level=LIKE)
    facts = f"dashed: like the many-step model, dotted: bounds; {_exported(record, settings)}"
    return [{"title": title, "facts": facts, "chart": chart}] if chart else []


def _exported(record: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The best step and the exported one, each with the rule that chose it."""
    rule = f" (keep: {settings['keep']})" if "keep" in settings else ""
    exported = f"exported: step {record['exported_step']}{rule}"
    if record.get("best_step") is None:
        return exported
    return f"best, by bounds and then Fréchet distance: step {record['best_step']}; {exported}"


def long_video(
    parts: Mapping[str, Path], scores: Mapping[str, Any], generate: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Long videos, with charts of drift and cost per window.

    Args:
        parts: stage name -> artifact folder.
        scores: the content of scores.json; empty if there is none.
        generate: the settings of stage `generate`.

    Returns:
        What the template shows; None if no long videos were made.
    """
    record = read_json(parts, "generate", "long/windows.json")
    if record is None:
        return None
    names = sorted(record["variants"], key=lambda name: not name.startswith("student"))
    drift = scores.get("long_video", {}).get("drift") or {}
    charts = [*_window_charts(names, drift, DRIFT_CHARTS), *_window_charts(names, record["variants"], COST_CHARTS)]
    windows, num_frames, fps = len(record["frames"]), record["frames"][-1][1], record["fps"]
    facts = f"{windows} windows, {num_frames} frames, {num_frames / fps:.1f} s at {fps:g} fps."
    scheme = LONG_VIDEO_SCHEMES[generate["long_video_scheme"]].format(carried=generate["long_video_carried"])
    captions = [clip.get("caption", clip["id"]) for clip in record["clips"]]
    videos = [_long_videos(name, parts["generate"] / "long" / name, captions) for name in names]
    return {"videos": videos, "charts": charts, "facts": f"{facts} {scheme}"}


def _long_videos(name: str, folder: Path, captions: Sequence[str]) -> dict[str, Any]:
    """A variant's videos, as many as were kept for viewing."""
    shown = zip(sorted(folder.glob("*.mp4")), captions, strict=False)
    videos = [{"src": media_uri(file), "caption": caption} for file, caption in shown]
    return {"label": _variant_label(name), "name": name, "videos": videos}


def _window_charts(
    names: Sequence[str], windows: Mapping[str, Sequence[Mapping[str, float]]], charts: Mapping[str, ChartTitle]
) -> Iterator[dict[str, str]]:
    """A chart of every value that is known of some variant's windows."""
    for key, (title, top) in charts.items():
        known = [name for name in names if name in windows and all(key in window for window in windows[name])]
        values = {name: [window[key] for window in windows[name]] for name in known}
        chart = _window_chart(title, values, top)
        if chart["chart"]:
            yield chart


def _window_chart(title: str, values: Mapping[str, Sequence[float]], top: float | None) -> dict[str, str]:
    """A chart of one value per window and variant, from zero to `top` or to the largest value."""
    series = [Series(_variant_label(name), list(enumerate(line, start=1)), dots=True) for name, line in values.items()]
    highest = max((value for line in values.values() for value in line), default=1.0)
    return {"title": title, "chart": line_chart(series, "window", y_range=(0, top or 1.1 * highest), title=title)}


def _variant_label(name: str) -> str:
    model, _, steps = name.rpartition("_")
    return f"{model}, {steps} {'step' if steps == '1' else 'steps'}"
