"""A report of the tiny corpus, as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magic141.evaluation.config import EvaluateConfig, ReportConfig
from magic141.evaluation.reports.report import write_report
from magic141.evaluation.scoring.evaluate import evaluate_suite
from magic141.stage_log import NullLog
from tests.evaluation.artifacts import GENERATE

SETTINGS: dict[str, Any] = {
    "seed": 7,
    "generate": GENERATE.model_dump(mode="json"),
    "evaluate": EvaluateConfig().model_dump(mode="json"),
}


def write(
    parts: Mapping[str, Path],
    folder: Path,
    config: ReportConfig | None = None,
    settings: Mapping[str, Any] = SETTINGS,
) -> str:
    """The page that is written of these artifacts."""
    out = folder / "report"
    out.mkdir(exist_ok=True)
    write_report(config or ReportConfig(), settings, parts, out, NullLog())
    return (out / "report.html").read_text()


def with_scores(parts: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The artifacts, with what stage `evaluate` makes of them."""
    scores = folder / "scores"
    scores.mkdir()
    evaluate_suite(EvaluateConfig(), parts["prepare_data"], parts["generate"], scores, NullLog())
    return {**parts, "evaluate": scores}


def headings(page: str, title: str) -> list[str]:
    """The columns of the table with this title."""
    table = page[page.index(f"{title}</h3>") :]
    return re.findall(r"<th[^>]*>([^<]+)</th>", table[: table.index("</thead>")])
