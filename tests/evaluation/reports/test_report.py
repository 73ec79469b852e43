from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Mapping
from datetime import date
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from magic141.evaluation.config import EvaluateConfig, ReportConfig
from magic141.evaluation.reports.report import write_report
from magic141.evaluation.reports.report_curves import TRAINING_STAGES, training_curves
from magic141.evaluation.reports.report_tables import _table
from magic141.evaluation.scores import MOTION
from magic141.evaluation.scoring.evaluate import evaluate_suite
from magic141.stage_log import NullLog
from magic141.training.config import FlowMatchingConfig
from magic141.training.pretraining import take_base
from tests.evaluation.artifacts import GENERATE, RecordingLog
from tests.models.tiny import tiny_transformer

SETTINGS: dict[str, Any] = {
    "seed": 7,
    "generate": GENERATE.model_dump(mode="json"),
    "evaluate": EvaluateConfig().model_dump(mode="json"),
}
EMPTY_TAGS = ("meta", "img")


class _Page(HTMLParser):
    """A page's tags and links; each tag must be closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [tag] if tag not in EMPTY_TAGS else []
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def _write(
    parts: Mapping[str, Path],
    folder: Path,
    config: ReportConfig | None = None,
    settings: Mapping[str, Any] = SETTINGS,
) -> str:
    out = folder / "report"
    out.mkdir(exist_ok=True)
    write_report(config or ReportConfig(), settings, parts, out, NullLog())
    return (out / "report.html").read_text()


def _with_scores(parts: dict[str, Path], folder: Path) -> dict[str, Path]:
    scores = folder / "scores"
    scores.mkdir()
    evaluate_suite(EvaluateConfig(), parts["prepare_data"], parts["generate"], scores, NullLog())
    return {**parts, "evaluate": scores}


@pytest.fixture(scope="module")
def scored(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return _with_scores(generated[0], tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="module")
def page(scored: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return _write(scored, tmp_path_factory.mktemp("report"), ReportConfig(title="A <b>run</b>"))


def test_page_is_self_contained(page: str) -> None:
    links = _Page(page).links
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} == set(re.findall(r'<section id="(\w+)"', page))
    assert not re.search(r"https?://", page)


def test_page_shows_every_section(page: str) -> None:
    assert re.findall(r'<section id="(\w+)"', page) == [
        *("result", "videos", "scores", "prompts", "long", "costs", "training", "retrieval", "settings")
    ]


def test_title_is_escaped(page: str) -> None:
    assert "A &lt;b&gt;run&lt;/b&gt;" in page


def test_videos_are_shown_side_by_side(page: str) -> None:
    # real, teacher at many and 4 steps, CFG-distilled at 4, student at 4 and 1, int8
    side_by_side = GENERATE.num_showcase_clips * 7
    suite = GENERATE.num_prompts * GENERATE.num_seeds * 6  # as above, without the real clips
    long = 2 * GENERATE.long_video_clips
    assert _Page(page).tags.count("video") == side_by_side + suite + long


def test_the_prompt_suite_has_a_column_per_variant_and_the_seeds_below_each_other(page: str) -> None:
    section = page[page.index('<section id="prompts"') : page.index('<section id="long"')]
    variants = re.findall(r'<th scope="col">([^<]+)</th>', section)[1:]
    assert variants == list(dict.fromkeys(variants))
    row = section[section.index("<tbody>") : section.index("</tr>", section.index("<tbody>"))]
    labels = [label.rpartition(": ")[2] for label in re.findall(r'aria-label="([^"]+)"', unescape(row))]
    assert labels == [f"{variant}, seed {seed}" for variant in variants for seed in range(GENERATE.num_seeds)]
    assert "From top to bottom: seeds 0, 1." in section


def _headings(page: str, title: str) -> list[str]:
    table = page[page.index(f"{title}</h3>") :]
    return re.findall(r"<th[^>]*>([^<]+)</th>", table[: table.index("</thead>")])


def test_table_1_shows_what_was_computed_and_names_the_rest(scored: dict[str, Path], tmp_path: Path) -> None:
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    for row in scores["variants"]:
        row["scores"]["temporal_flickering"] = {"value": None, "reason": "not installed: vbench"}
        for name in ("aesthetic_quality", "i2v_subject", "imaging_quality"):
            row["scores"][name] = {"value": 0.5, "reason": None}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = _write({**scored, "evaluate": tmp_path}, tmp_path)
    assert _headings(page, "Table 1") == ["variant", "evaluations", "i2v subject ↑", "aesthetic ↑", "imaging ↑"]
    missing = "subject cons., motion smooth., dynamic deg., temporal flick., average, background cons."
    assert f"Not computed: {missing};" in page
    assert "<dt>dynamic deg.</dt><dd>share of videos with motion (n/a: not requested: add it to evaluate." in page
    assert "so that a frozen clip has 1; should match real (n/a: not installed: vbench)</dd>" in page


def test_a_dimension_that_was_not_known_when_judged_is_missing(scored: dict[str, Path], tmp_path: Path) -> None:
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    for row in scores["variants"]:
        del row["scores"]["vbench_average"]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert "(n/a: not known when judged)" in _write({**scored, "evaluate": tmp_path}, tmp_path)


def test_few_vbench_columns_stand_in_the_first_table(page: str) -> None:
    assert "Table 1</h3>" not in page
    assert "Not computed: i2v subject, " in page


def test_the_page_begins_with_the_student_beside_the_model_of_many_steps(page: str) -> None:
    section = page[page.index('<section id="result"') : page.index('<section id="videos"')]
    assert re.findall(r"<code>(\w+)</code>", section) == ["student_4", "teacher_5", "real"]
    assert "The student takes 4 network evaluations for a clip in place of 10" in section


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
    shown = _write(_record(scored, tmp_path, **gpu), tmp_path)
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
    page = _write({**scored, "evaluate": tmp_path}, tmp_path)
    assert "temporal flick." in _headings(page, "held-out clips"), "without an arrow"
    assert not re.search(r"<b>0\.\d{4}</b>", page)
    assert f"VBench 0.1.5, custom videos: on {GENERATE.num_showcase_clips} clips per variant" in page
    assert "flickering is 1 for a clip that stands still" in page


def test_missing_scores_say_why(page: str) -> None:
    assert '<td class="missing" title="real clips are their own continuation">n/a</td>' in page


def test_rows_and_columns_are_explained_where_it_can_be_read_and_printed(page: str) -> None:
    shown = page[page.index("<details>") : page.index("</details>")]
    terms = re.findall(r"<dt>([^<]+)</dt><dd>[^<]+</dd>", unescape(shown))
    assert terms[:5] == ["teacher", "CFG-distilled", "student's chain", "student", "int8"]
    columns = _headings(page, "held-out clips")[2:]
    assert columns
    assert {column.rstrip(" ↑↓") for column in columns} <= set(terms)


def test_frechet_says_over_how_many_dimensions(page: str) -> None:
    assert "Fréchet, 64 dims ↓" in _headings(page, "held-out clips")
    assert "over the first 64 principal components" in page


def test_long_videos_are_described_as_they_were_made(page: str, scored: dict[str, Path], tmp_path: Path) -> None:
    assert "one after the other" in page
    assert "the anchor, and the last latent frames of the previous one (carried: 2)" in page
    generate = {**SETTINGS["generate"], "long_video_scheme": "fused", "long_video_carried": 1}
    fused = _write(scored, tmp_path, settings={**SETTINGS, "generate": generate})
    assert "one after the other" not in fused
    assert "All windows are generated together" in fused


def test_seed_stages_and_settings_are_shown(page: str, scored: dict[str, Path]) -> None:
    section = page[page.index('<section id="settings"') :]
    assert "Seed 7." in section
    assert [stage for stage in scored if f'<td class="left">{stage}</td>' in section] == list(scored)
    [uri] = re.findall(r'href="data:text/yaml;base64,([^"]+)" download', section)
    assert yaml.safe_load(base64.b64decode(uri)) == SETTINGS
    assert yaml.safe_load(section[section.index("<pre>") + 5 : section.index("</pre>")]) == SETTINGS


def test_a_base_that_is_used_as_it_is_has_no_training_to_tell_of(scored: dict[str, Path], tmp_path: Path) -> None:
    base, taken = tmp_path / "base", tmp_path / "pretrain_t2v"
    tiny_transformer().save_pretrained(base)
    taken.mkdir()
    take_base(FlowMatchingConfig(base=str(base), num_steps=0), taken, NullLog())
    page = _write({**scored, "pretrain_t2v": taken}, tmp_path)
    assert "600 steps, 36 s" in page, "of the three other stages"
    assert TRAINING_STAGES["pretrain_t2v"] not in page
    assert TRAINING_STAGES["pretrain_i2v"] in page


def test_settings_quote_no_password(scored: dict[str, Path], tmp_path: Path) -> None:
    base = {"base": "s3://ada:s3cret@bucket/model"}
    assert "s3cret" not in _write(scored, tmp_path, settings={**SETTINGS, "pretrain_t2v": base})


def test_the_same_inputs_give_the_same_file_at_any_time(scored: dict[str, Path], tmp_path: Path) -> None:
    first = _write(scored, tmp_path)
    time.sleep(1.1)  # a clock that is read in seconds shows another time
    assert _write(scored, tmp_path) == first
    assert not re.search(rf"\b{date.today().year}-\d\d-\d\d\b", first)


def test_the_student_is_called_by_its_content_whose_digest_ends_its_folder_s_name(
    scored: dict[str, Path], tmp_path: Path
) -> None:
    student = tmp_path / "df1cf76acd7e3864-8b6e3accaf94"
    shutil.copytree(scored["distill_dmd2"], student)
    page = _write({**scored, "distill_dmd2": student}, tmp_path)
    assert "· student 8b6e3accaf94</title>" in page
    assert "Student <code>8b6e3accaf94</code>." in page


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
    page = _write({**scored, "evaluate": tmp_path}, tmp_path)
    table = page[page.index("Exact scores of held-out clips</h3>") :]
    assert f"<b>{bold}</b>" in table[: table.index("</table>")]


def test_without_ground_truth_the_exact_columns_are_left_out(
    generated_from_folder: dict[str, Path], tmp_path: Path
) -> None:
    page = _write(_with_scores(generated_from_folder, tmp_path), tmp_path)
    assert "Exact scores are not applicable" in page
    assert "Exact scores of held-out clips" not in page
    assert "Fréchet" in page
    assert "Held-out clips come from videos that are never trained on (a model" in page


def test_recall_that_says_nothing_says_why(scored: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((scored["build_index"] / "index.json").read_text())
    reason = "held-out clips are later parts of training videos"
    index["recall"] |= {"at": None, "chance": None, "reason": reason}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert f"Recall is not measured: {reason}." in _write({**scored, "build_index": tmp_path}, tmp_path)


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


def test_missing_artifacts_leave_their_sections_out(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path: Path
) -> None:
    page = _write({"generate": generated[0]["generate"]}, tmp_path)
    assert 'id="videos"' in page
    assert 'id="scores"' not in page
    assert 'id="training"' not in page
