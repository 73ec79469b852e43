"""Scores everything that was generated; every dimension gets a value, or the reason why it is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.data.sources.splits import MEANING
from magic141.evaluation.config import EvaluateConfig
from magic141.evaluation.scores import EXACT, FRECHET, SCORES_FILE, VBENCH, Score, value_of, with_values
from magic141.evaluation.scoring.scorer import Scorer
from magic141.evaluation.scoring.shapes import score_clips
from magic141.evaluation.scoring.vbench import FAILED
from magic141.evaluation.scoring.vbench_needs import versions
from magic141.stage_log import StageLog

DRIFT = ("motion", "colour", "iou", "background_psnr_db", "psnr_db")


def evaluate_suite(config: EvaluateConfig, data: Path, generated: Path, out: Path, log: StageLog) -> None:
    """Scores the variants of stage `generate`, and real and reconstructed clips as ceilings; writes scores.json."""
    variants = json.loads((generated / "variants.json").read_text())
    scorer = Scorer.open(config, data, generated)
    records: list[dict[str, Any]] = []
    with log.progress(len(variants) + 3, "row") as advance:
        records.append({"name": "real", "label": "held-out clips", "scores": _plain(scorer.heldout_clips())})
        advance(1)
        records.append({"name": "codec", "label": "their reconstruction", "scores": _plain(scorer.reconstruction())})
        advance(1)
        for variant in variants:
            records.append({**variant, "scores": _plain(scorer.variant(variant["name"]))})
            advance(1)
        long_video = score_long(generated / "long", scorer.heldout, scorer.truths is not None)
        advance(1)
    for failure in _failures(records):
        log.note(f"{failure}; --refresh evaluate tries again")
    result = {"variants": records, "long_video": long_video, "vbench": {"versions": versions()}}
    if rule := load_info(data).heldout:
        result["heldout"] = MEANING[rule]
        log.note(MEANING[rule])
    (out / SCORES_FILE).write_text(json.dumps(result, indent=1))
    _report(records, out, log)


def _failures(records: list[dict[str, Any]]) -> list[str]:
    """Why VBench failed, once for each dimension and cause: the stage finishes, and would be reused with the gap."""
    scores = (item for record in records for item in record["scores"].items())
    failed = (f"{name}: {score['reason']}" for name, score in scores if str(score["reason"]).startswith(FAILED))
    return list(dict.fromkeys(failed))


def score_long(folder: Path, heldout: ClipDataset, has_truth: bool) -> dict[str, Any]:
    """The record of windows.json, with `drift`: variant -> mean exact scores per window (None without ground truth)."""
    record = json.loads((folder / "windows.json").read_text())
    if not has_truth:
        return {**record, "drift": None}
    truth_of = dict(zip(heldout.ids, heldout.truths, strict=True))
    truths = [truth_of[clip["id"]] or {} for clip in record["clips"]]
    drift: dict[str, list[dict[str, float]]] = {}
    for name in record["variants"]:
        frames = load_file(folder / f"{name}.safetensors")["frames"].numpy()
        scored = [score_clips(frames[:, start:stop], truths, start == 0) for start, stop in record["frames"]]
        drift[name] = [{key: float(np.nanmean(values[key])) for key in DRIFT} for values in scored]
    return {**record, "drift": drift}


def _plain(scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    return {name: score.to_dict() for name, score in scores.items()}


def _report(records: list[dict[str, Any]], out: Path, log: StageLog) -> None:
    """Logs the scores as metrics `variant/dimension` and as a Markdown table."""
    flat = {
        f"{record['name']}/{key}": score["value"]
        for record in records
        for key, score in record["scores"].items()
        if score["value"] is not None
    }
    log.summary(flat)
    table = out / "scores.md"
    table.write_text(markdown_table(records))
    log.file(table)


def markdown_table(records: list[dict[str, Any]]) -> str:
    """The score table in Markdown; missing values are `n/a`."""
    shown = with_values((*EXACT, FRECHET, *VBENCH), records)
    lines = [f"| variant | evaluations | {' | '.join(d.label for d in shown)} |", "|---" * (len(shown) + 2) + "|"]
    for record in records:
        values = [value_of(record, d) for d in shown]
        cells = ["n/a" if v is None else f"{v:.{d.digits}f}" for v, d in zip(values, shown, strict=True)]
        lines.append(f"| {record['label']} | {record.get('nfe', '')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
