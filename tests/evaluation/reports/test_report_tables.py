"""The report's tables: scores, what is best, what is missing and why, and costs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from magic141.evaluation.reports.report_tables import _table
from magic141.evaluation.scores import MOTION
from tests.evaluation.artifacts import GENERATE
from tests.evaluation.reports.written import headings, write


def test_table_1_shows_what_was_computed_and_names_the_rest(scored: dict[str, Path], tmp_path: Path) -> None:
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    for row in scores["variants"]:
        row["scores"]["temporal_flickering"] = {"value": None, "reason": "not installed: vbench"}
        for name in ("aesthetic_quality", "i2v_subject", "imaging_quality"):
            row["scores"][name] = {"value": 0.5, "reason": None}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = write({**scored, "evaluate": tmp_path}, tmp_path)
    assert headings(page, "Table 1") == ["variant", "evaluations", "i2v subject ↑", "aesthetic ↑", "imaging ↑"]
    missing = "subject cons., motion smooth., dynamic deg., temporal flick., average, background cons."
    assert f"Not computed: {missing};" in page
    assert "<dt>dynamic deg.</dt><dd>share of videos with motion (n/a: not requested: add it to evaluate." in page
    assert "so that a frozen clip has 1; should match real (n/a: not installed: vbench)</dd>" in page


def test_a_dimension_that_was_not_known_when_judged_is_missing(scored: dict[str, Path], tmp_path: Path) -> None:
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    for row in scores["variants"]:
        del row["scores"]["vbench_average"]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert "(n/a: not known when judged)" in write({**scored, "evaluate": tmp_path}, tmp_path)


def test_few_vbench_columns_stand_in_the_first_table(page: str) -> None:
    assert "Table 1</h3>" not in page
    assert "Not computed: i2v subject, " in page


def test_the_costs_say_what_int8_is_for_and_of_its_speed_only_what_was_measured(page: str) -> None:
    costs = page[page.index('<section id="costs"') : page.index('<section id="training"')]
    assert "Int8 saves memory, not time" in costs
    assert "slower" not in costs


def _record(parts: Mapping[str, Path], folder: Path, **values: Any) -> dict[str, Path]:
    """The same parts, their variants measured otherwise."""
    copy = folder / "generate"
    shutil.copytree(parts["generate"], copy)
    variants = json.loads((copy / "variants.json").read_text())
    (copy / "variants.json").write_text(json.dumps([{**variant, **values} for variant in variants]))
    return {**parts, "generate": copy}


def test_costs_name_their_device_and_on_a_gpu_the_speed_up_is_one_of_latency(
    scored: dict[str, Path], page: str, tmp_path: Path
) -> None:
    assert "<h2>Cost on a CPU, float32</h2>" in page
    gpu = {"device": "GPU 1", "precision": "bfloat16", "cpu_ms_per_clip": 1.0, "latency_ms": 7.0}
    shown = write(_record(scored, tmp_path, **gpu), tmp_path)
    assert "<h2>Cost on GPU 1, bfloat16</h2>" in shown
    assert "Speed-up: in latency, over the first row" in shown


def test_what_is_within_an_error_of_the_best_is_best_too() -> None:
    scores = [{"value": v, "stderr": 0.02, "reason": None} for v in (0.9, 0.885, 0.87)]
    rows = [{"nfe": 4, "name": "x", "label": "x", "scores": {"motion": score}} for score in scores]
    [table] = [_table("", [MOTION], rows)]
    cells = [row["cells"][0] for row in table["rows"]]
    assert [(cell["text"], cell["error"], cell["best"]) for cell in cells] == [
        *(("0.900", "±.020", True), ("0.885", "±.020", True), ("0.870", "±.020", False))
    ]


def test_the_steadiest_clips_are_not_the_best(scored: dict[str, Path], tmp_path: Path) -> None:
    """VBench saw some clips only, and gives a frozen one the highest score."""
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    for number, row in enumerate(scores["variants"]):
        row["scores"]["temporal_flickering"] = {"value": 1 - 0.1 * number, "reason": None}
    scores["vbench"]["versions"]["vbench"] = "0.1.5"
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = write({**scored, "evaluate": tmp_path}, tmp_path)
    assert "temporal flick." in headings(page, "held-out clips"), "without an arrow"
    assert not re.search(r"<b>0\.\d{4}</b>", page)
    assert f"VBench 0.1.5, custom videos: on {GENERATE.num_showcase_clips} clips per variant" in page
    assert "flickering is 1 for a clip that stands still" in page


def test_missing_scores_say_why(page: str) -> None:
    assert '<td class="missing" title="real clips are their own continuation">n/a</td>' in page


def test_rows_and_columns_are_explained_where_it_can_be_read_and_printed(page: str) -> None:
    shown = page[page.index("<details>") : page.index("</details>")]
    terms = re.findall(r"<dt>([^<]+)</dt><dd>[^<]+</dd>", unescape(shown))
    assert terms[:5] == ["teacher", "CFG-distilled", "student's chain", "student", "int8"]
    columns = headings(page, "held-out clips")[2:]
    assert columns
    assert {column.rstrip(" ↑↓") for column in columns} <= set(terms)


def test_frechet_says_over_how_many_dimensions(page: str) -> None:
    assert "Fréchet, 64 dims ↓" in headings(page, "held-out clips")
    assert "over the first 64 principal components" in page


@pytest.mark.parametrize(("score", "bold"), [("motion", "0.700"), ("frechet", "1.50")])
def test_the_best_value_of_a_column_is_bold_and_ceilings_do_not_compete(
    scored: dict[str, Path], tmp_path: Path, score: str, bold: str
) -> None:
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    ceilings = {"motion": 0.9, "frechet": 0.5}
    for number, row in enumerate(row for row in scores["variants"] if "nfe" in row):
        row["scores"]["motion"]["value"], row["scores"]["frechet"]["value"] = 0.7 - 0.01 * number, 1.5 + number
    for row in scores["variants"]:
        if "nfe" not in row:
            row["scores"][score] = {"value": ceilings[score], "reason": None}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = write({**scored, "evaluate": tmp_path}, tmp_path)
    table = page[page.index("Exact scores of held-out clips</h3>") :]
    assert f"<b>{bold}</b>" in table[: table.index("</table>")]
