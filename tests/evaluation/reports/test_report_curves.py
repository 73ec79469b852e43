"""The report's curves of the collapse watch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from magic141.evaluation.reports.report_curves import training_curves


def _watch(folder: Path, settings: Mapping[str, Any], *looks: Mapping[str, float], best: int | None = None) -> Any:
    validations = [{"step": 50 * number, **look} for number, look in enumerate(looks, start=1)]
    record = {"best_step": best, "exported_step": 50 * len(looks), "validations": validations}
    (folder / "watch.json").write_text(json.dumps(record))
    [watch] = training_curves({"distill_dmd2": folder}, settings)
    return watch


def test_the_watch_of_one_seed_is_drawn_without_its_difference(tmp_path: Path) -> None:
    look = {"validation_variance_ratio": 0.9, "validation_motion_ratio": 1.1}
    watch = _watch(tmp_path, {"collapse": {"min_variance_ratio": 0.5}}, look)
    assert watch["chart"].count('stroke-dasharray="6 4"') == watch["chart"].count('stroke-dasharray="1 4"') == 1
    assert "motion" in watch["chart"]
    assert "diversity" not in watch["chart"]
    assert watch["facts"].endswith("; exported: step 50")


@pytest.mark.parametrize(("largest", "bounds"), [(0.9, 0), (12.0, 1)])
def test_the_watch_shows_why_a_step_is_best_and_which_was_exported(largest: float, bounds: int, tmp_path: Path) -> None:
    """A bound far above all values would press them onto one line."""
    looks = [{"validation_frechet_ratio": ratio} for ratio in (0.7, largest)]
    watch = _watch(tmp_path, {"keep": "last", "collapse": {"max_frechet_ratio": 10.0}}, *looks, best=50)
    assert "</i>Fréchet ratio</span>" in watch["chart"]
    assert watch["chart"].count('stroke-dasharray="1 4"') == bounds
    assert watch["facts"].endswith("Fréchet distance: step 50; exported: step 100 (keep: last)")
