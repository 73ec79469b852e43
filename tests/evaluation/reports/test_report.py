"""The report: one page with all of a run on it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from datetime import date
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import yaml

from magic141.evaluation.reports.report_curves import TRAINING_STAGES
from magic141.stage_log import NullLog
from magic141.training.config import FlowMatchingConfig
from magic141.training.pretraining import take_base
from tests.evaluation.artifacts import GENERATE, RecordingLog
from tests.evaluation.reports.written import SETTINGS, with_scores, write
from tests.models.tiny import tiny_transformer

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


def test_the_page_begins_with_the_student_beside_the_model_of_many_steps(page: str) -> None:
    section = page[page.index('<section id="result"') : page.index('<section id="videos"')]
    assert re.findall(r"<code>(\w+)</code>", section) == ["student_4", "teacher_5", "real"]
    assert "The student takes 4 network evaluations for a clip in place of 10" in section


def test_long_videos_are_described_as_they_were_made(page: str, scored: dict[str, Path], tmp_path: Path) -> None:
    assert "one after the other" in page
    assert "the anchor, and the last latent frames of the previous one (carried: 2)" in page
    generate = {**SETTINGS["generate"], "long_video_scheme": "fused", "long_video_carried": 1}
    fused = write(scored, tmp_path, settings={**SETTINGS, "generate": generate})
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
    page = write({**scored, "pretrain_t2v": taken}, tmp_path)
    assert "600 steps, 36 s" in page, "of the three other stages"
    assert TRAINING_STAGES["pretrain_t2v"] not in page
    assert TRAINING_STAGES["pretrain_i2v"] in page


def test_settings_quote_no_password(scored: dict[str, Path], tmp_path: Path) -> None:
    base = {"base": "s3://ada:s3cret@bucket/model"}
    assert "s3cret" not in write(scored, tmp_path, settings={**SETTINGS, "pretrain_t2v": base})


def test_the_same_inputs_give_the_same_file_at_any_time(scored: dict[str, Path], tmp_path: Path) -> None:
    first = write(scored, tmp_path)
    time.sleep(1.1)  # a clock that is read in seconds shows another time
    assert write(scored, tmp_path) == first
    assert not re.search(rf"\b{date.today().year}-\d\d-\d\d\b", first)


def test_the_student_is_called_by_its_content_whose_digest_ends_its_folder_s_name(
    scored: dict[str, Path], tmp_path: Path
) -> None:
    student = tmp_path / "df1cf76acd7e3864-8b6e3accaf94"
    shutil.copytree(scored["distill_dmd2"], student)
    page = write({**scored, "distill_dmd2": student}, tmp_path)
    assert "· student 8b6e3accaf94</title>" in page
    assert "Student <code>8b6e3accaf94</code>." in page


def test_without_ground_truth_the_exact_columns_are_left_out(
    generated_from_folder: dict[str, Path], tmp_path: Path
) -> None:
    page = write(with_scores(generated_from_folder, tmp_path), tmp_path)
    assert "Exact scores are not applicable" in page
    assert "Exact scores of held-out clips" not in page
    assert "Fréchet" in page
    assert "Held-out clips come from videos that are never trained on (a model" in page


def test_recall_that_says_nothing_says_why(scored: dict[str, Path], tmp_path: Path) -> None:
    index = json.loads((scored["build_index"] / "index.json").read_text())
    reason = "held-out clips are later parts of training videos"
    index["recall"] |= {"at": None, "chance": None, "reason": reason}
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert f"Recall is not measured: {reason}." in write({**scored, "build_index": tmp_path}, tmp_path)


def test_missing_artifacts_leave_their_sections_out(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path: Path
) -> None:
    page = write({"generate": generated[0]["generate"]}, tmp_path)
    assert 'id="videos"' in page
    assert 'id="scores"' not in page
    assert 'id="training"' not in page
