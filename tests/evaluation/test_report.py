from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import unescape
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from magic141.artifacts import NullLog
from magic141.evaluation.config import EvaluateConfig, ReportConfig
from magic141.evaluation.evaluate import evaluate_suite
from magic141.evaluation.report import write_report
from magic141.evaluation.report_curves import training_curves
from tests.evaluation.artifacts import GENERATE, RecordingLog

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
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?://", page)


def test_page_shows_every_section(page: str) -> None:
    assert re.findall(r'<section id="(\w+)"', page) == [
        *("scores", "videos", "prompts", "long", "costs", "training", "retrieval", "settings")
    ]


def test_title_is_escaped(page: str) -> None:
    assert "A &lt;b&gt;run&lt;/b&gt;" in page


def test_videos_are_shown_side_by_side(page: str) -> None:
    # real, teacher at many and 4 steps, CFG-distilled at 4, student at 4 and 1, int8
    side_by_side = GENERATE.num_showcase_clips * 7
    suite = GENERATE.num_prompts * GENERATE.num_seeds * 6  # as above, without the real clips
    long = 2 * GENERATE.long_video_clips
    assert _Page(page).tags.count("video") == side_by_side + suite + long


def _headings(page: str, title: str) -> list[str]:
    table = page[page.index(f"{title}</h3>") :]
    return re.findall(r"<th[^>]*>([^<]+)</th>", table[: table.index("</thead>")])


def test_table_1_shows_what_was_computed_and_names_the_rest(scored: dict[str, Path], tmp_path: Path) -> None:
    scores = json.loads((scored["evaluate"] / "scores.json").read_text())
    for row in scores["variants"]:
        row["scores"]["temporal_flickering"] = {"value": None, "reason": "not installed: vbench"}
        row["scores"]["aesthetic_quality"] = {"value": 0.5, "reason": None}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    page = _write({**scored, "evaluate": tmp_path}, tmp_path)
    assert _headings(page, "Table 1") == ["steps", "approach", "evaluations", "aesthetic ↑"]
    missing = "i2v subject, subject cons., motion smooth., dynamic deg., imaging, temporal flick., average"
    assert f"Not computed: {missing};" in page
    assert "<dt>imaging</dt><dd>MUSIQ (n/a: not requested: add it to evaluate.vbench_dimensions" in page
    assert "<dt>temporal flick.</dt><dd>1 minus the mean difference of frames (n/a: not installed: vbench)</dd>" in page


def test_missing_scores_say_why(page: str) -> None:
    assert '<td class="missing" title="real clips are their own continuation">n/a</td>' in page


def test_rows_and_columns_are_explained_where_it_can_be_read_and_printed(page: str) -> None:
    shown = page[page.index("<details open") : page.index("</details>")]
    terms = re.findall(r"<dt>([^<]+)</dt><dd>[^<]+</dd>", unescape(shown))
    assert terms[:5] == ["Euler, CFG", "CFG-distilled", "student's chain", "DMD2", "int8"]
    columns = _headings(page, "held-out clips")[3:]
    assert columns
    assert {column.rstrip(" ↑↓") for column in columns} <= set(terms)


def test_frechet_says_over_how_many_dimensions(page: str) -> None:
    assert "Frechet, 64 dims ↓" in _headings(page, "held-out clips")
    assert "over the first 64 principal components" in page


def test_long_videos_are_described_as_they_were_made(page: str, scored: dict[str, Path], tmp_path: Path) -> None:
    assert "one after the other" in page
    assert "the anchor, and the last latent frames of the previous one (carried: 2)" in page
    generate = {**SETTINGS["generate"], "long_video_scheme": "fused", "long_video_carried": 1}
    fused = _write(scored, tmp_path, settings={**SETTINGS, "generate": generate})
    assert "one after the other" not in fused
    assert "All windows are generated together" in fused


def test_seed_and_settings_are_shown(page: str) -> None:
    section = page[page.index('<section id="settings"') :]
    assert "Seed 7." in section
    assert yaml.safe_load(section[section.index("<pre>") + 5 : section.index("</pre>")]) == SETTINGS


def test_settings_quote_no_password(scored: dict[str, Path], tmp_path: Path) -> None:
    base = {"base": "s3://ada:s3cret@bucket/model"}
    assert "s3cret" not in _write(scored, tmp_path, settings={**SETTINGS, "pretrain_t2v": base})


def test_the_same_inputs_give_the_same_file_at_any_time(
    scored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()
    monkeypatch.setattr("time.strftime", lambda *_: str(next(clock)))
    assert _write(scored, tmp_path) == _write(scored, tmp_path)


def test_best_values_are_bold(page: str) -> None:
    assert '<td class=""><b>' in page or "<b>" in page[page.index("Exact scores") :]


def test_without_ground_truth_the_exact_columns_are_left_out(
    generated_from_folder: dict[str, Path], tmp_path: Path
) -> None:
    page = _write(_with_scores(generated_from_folder, tmp_path), tmp_path)
    assert "Exact scores are not applicable" in page
    assert "Exact scores of held-out clips" not in page
    assert "Frechet" in page


def test_the_watch_of_one_seed_is_drawn_without_its_difference(tmp_path: Path) -> None:
    look = {"step": 50, "validation_variance_ratio": 0.9, "validation_motion_ratio": 1.1}
    (tmp_path / "watch.json").write_text(json.dumps({"exported_step": 50, "validations": [look]}))
    [watch] = training_curves({"distill_dmd2": tmp_path})
    assert "motion" in watch["chart"]
    assert "diversity" not in watch["chart"]


def test_missing_artifacts_leave_their_sections_out(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path: Path
) -> None:
    page = _write({"generate": generated[0]["generate"]}, tmp_path)
    assert 'id="videos"' in page
    assert 'id="scores"' not in page
    assert 'id="training"' not in page
