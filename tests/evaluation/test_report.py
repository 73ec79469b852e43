from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from magic141.artifacts import NullLog
from magic141.evaluation.config import EvaluateConfig, ReportConfig
from magic141.evaluation.evaluate import evaluate_suite
from magic141.evaluation.report import write_report
from tests.evaluation.artifacts import GENERATE, RecordingLog


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def _write(parts: dict[str, Path], folder: Path, config: ReportConfig | None = None) -> str:
    out = folder / "report"
    out.mkdir()
    write_report(config or ReportConfig(), parts, out, NullLog())
    return (out / "report.html").read_text()


def _with_scores(parts: dict[str, Path], folder: Path) -> dict[str, Path]:
    scores = folder / "scores"
    scores.mkdir()
    evaluate_suite(EvaluateConfig(), parts["prepare_data"], parts["generate"], scores, NullLog())
    return {**parts, "evaluate": scores}


@pytest.fixture(scope="module")
def page(generated: tuple[dict[str, Path], RecordingLog], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return _write(_with_scores(generated[0], folder), folder, ReportConfig(title="A <b>run</b>"))


def test_page_is_self_contained(page: str) -> None:
    links = _Page(page).links
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?://", page)


def test_page_shows_every_section(page: str) -> None:
    assert re.findall(r'<section id="(\w+)"', page) == [
        *("scores", "videos", "prompts", "long", "costs", "training", "retrieval")
    ]


def test_title_is_escaped(page: str) -> None:
    assert "A &lt;b&gt;run&lt;/b&gt;" in page


def test_videos_are_shown_side_by_side(page: str) -> None:
    # real, teacher at many and 4 steps, CFG-distilled at 4, student at 4 and 1, int8
    side_by_side = GENERATE.num_showcase_clips * 7
    suite = GENERATE.num_prompts * GENERATE.num_seeds * 2
    long = 2 * GENERATE.long_video_clips
    assert _Page(page).tags.count("video") == side_by_side + suite + long


def test_table_follows_the_papers_table_1(page: str) -> None:
    table = page[page.index("Table 1</h3>") :]
    headings = re.findall(r"<th[^>]*>([^<]+)</th>", table[: table.index("</thead>")])
    assert [heading.removesuffix(" ↑") for heading in headings] == [
        *("steps", "approach", "evaluations", "i2v subject", "subject cons.", "motion smooth.", "dynamic deg."),
        *("aesthetic", "imaging", "temporal flick.", "average"),
    ]


def test_missing_scores_say_why(page: str) -> None:
    assert re.search(
        r'<td class="missing" title="not requested: add it to evaluate\.vbench_dimensions[^"]*">n/a</td>', page
    )


def test_best_values_are_bold(page: str) -> None:
    assert '<td class=""><b>' in page or "<b>" in page[page.index("Exact scores") :]


def test_without_ground_truth_the_exact_columns_are_left_out(
    generated_from_folder: dict[str, Path], tmp_path: Path
) -> None:
    page = _write(_with_scores(generated_from_folder, tmp_path), tmp_path)
    assert "Exact scores are not applicable" in page
    assert "Exact scores of held-out clips" not in page
    assert "Frechet" in page


def test_missing_artifacts_leave_their_sections_out(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path: Path
) -> None:
    page = _write({"generate": generated[0]["generate"]}, tmp_path)
    assert 'id="videos"' in page
    assert 'id="scores"' not in page
    assert 'id="training"' not in page
