from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from magic141.data.videos.video import write_video
from magic141.evaluation.config import VBenchDimension
from magic141.evaluation.scores import AVERAGE, TABLE_1, VBENCH, Score
from magic141.evaluation.scoring import vbench, vbench_needs


def _missing(name: str) -> None:
    return None


def _write_videos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    still = np.full((8, 64, 64, 3), 90, np.uint8)
    write_video(folder / "still.mp4", still, 8)
    write_video(folder / "noise.mp4", rng.integers(0, 255, (8, 64, 64, 3), np.uint8), 8)


def test_package_that_is_not_installed_gives_a_reason_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_videos(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", _missing)
    score = vbench.score_folder(tmp_path, ["temporal_flickering"])["temporal_flickering"]
    assert score.value is None
    assert "vbench==0.1.5" in (score.reason or "")


def test_dimension_without_its_weights_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    score = vbench.score_folder(tmp_path, ["motion_smoothness"])["motion_smoothness"]
    assert "amt_model/amt-s.pth" in (score.reason or "")


def test_of_every_dimension_it_is_known_what_it_needs() -> None:
    assert set(vbench_needs.NEEDS) == set(get_args(VBenchDimension))
    assert {dimension.key for dimension in VBENCH} == {*vbench_needs.NEEDS, AVERAGE.key}


def test_without_videos_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    score = vbench.score_folder(tmp_path, ["temporal_flickering"])["temporal_flickering"]
    assert score.reason == f"no video in {tmp_path.name}"


def test_all_dimensions_are_present(tmp_path: Path) -> None:
    assert set(vbench.score_folder(tmp_path, [])) == {dimension.key for dimension in VBENCH}


@pytest.mark.skipif(importlib.util.find_spec("vbench") is None, reason="needs the extra `bench`")
def test_real_package_scores_flickering(tmp_path: Path) -> None:
    _write_videos(tmp_path)
    score = vbench.score_folder(tmp_path, ["temporal_flickering"])["temporal_flickering"]
    assert score.value is not None, score.reason
    assert 0.5 < score.value < 0.95  # the mean of a still video (1) and of noise


def test_dinos_weights_come_from_vbenchs_cache_and_not_from_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINO's hubconf.py asks torch.hub for this address, whatever path VBench gives it."""
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("no download"))
    (tmp_path / vbench_needs.DINO).parent.mkdir()
    torch.save({"weight": torch.ones(1), "trained": Path("a class")}, tmp_path / vbench_needs.DINO)
    before = torch.hub.get_dir()
    (tmp_path / "scratch").mkdir()
    with vbench._cached_weights(tmp_path / "scratch"):
        found = torch.hub.load_state_dict_from_url(
            f"https://dl.fbaipublicfiles.com/dino/{Path(vbench_needs.DINO).name}"
        )
    assert found.keys() == {"weight", "trained"}
    assert torch.hub.get_dir() == before


def test_an_installation_or_weights_that_came_later_change_what_can_be_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is part of the stage's key: the same command then computes the scores that were missing."""
    wanted = ("temporal_flickering", "motion_smoothness")
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", _missing)
    assert vbench_needs.what_can_be_scored(wanted).startswith("nothing by ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert vbench_needs.what_can_be_scored(wanted).startswith("temporal_flickering by ")
    (tmp_path / "amt_model").mkdir()
    (tmp_path / "amt_model" / "amt-s.pth").touch()
    able = vbench_needs.what_can_be_scored(wanted)
    assert able.startswith("temporal_flickering, motion_smoothness by vbench ")
    assert vbench_needs.computed_by(able) == dict.fromkeys(wanted, able.partition(" by ")[2])
    assert vbench_needs.computed_by("nothing by vbench 0.1.5") == {}


HUBCONF = """
import torch

def dino_vitb16(pretrained=True):
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
"""


@pytest.fixture
def dino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VBench's cache with a stand-in for DINO: what it sees are four means of colour."""
    code = tmp_path / "cache" / vbench_needs.DINO_CODE
    code.mkdir(parents=True)
    (code / "hubconf.py").write_text(HUBCONF)
    (tmp_path / "cache" / vbench_needs.DINO).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VBENCH_CACHE_DIR", "cache")  # relative: the commands' folder, not VBench's scratch
    return tmp_path / "cache"


@pytest.mark.skipif(importlib.util.find_spec("vbench") is None, reason="needs the extra `bench`")
def test_the_subject_is_compared_with_the_picture_that_was_given(tmp_path: Path, dino: Path) -> None:
    still, other = np.full((8, 64, 64, 3), (200, 40, 40), np.uint8), np.full((8, 64, 64, 3), (40, 40, 200), np.uint8)
    for name, frames in (("same", still), ("other", other)):
        write_video(tmp_path / name / "00.mp4", frames, 8)
    (tmp_path / "input").mkdir()
    Image.fromarray(still[0]).save(tmp_path / "input" / "00.png")
    same, apart = (vbench.score_folder(tmp_path / name, ["i2v_subject"])["i2v_subject"] for name in ("same", "other"))
    assert same.value == pytest.approx(1, abs=0.01), same
    assert apart.value is not None
    assert apart.value < 0.7, apart


def test_the_average_is_that_of_table_1_and_missing_where_one_of_its_dimensions_is() -> None:
    scores = {dimension.key: Score(0.1 * number) for number, dimension in enumerate(TABLE_1)}
    assert vbench._average(scores).value == pytest.approx(0.3)
    lacking = {**scores, "imaging_quality": Score.missing("weights missing")}
    assert vbench._average(lacking).reason == "without imaging_quality"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the mean of nothing
@pytest.mark.skipif(importlib.util.find_spec("vbench") is None, reason="needs the extra `bench`")
def test_videos_that_vbench_cannot_read_give_no_score(tmp_path: Path) -> None:
    (tmp_path / "00.mp4").write_bytes(b"no video")
    score = vbench.score_folder(tmp_path, ["temporal_flickering"])["temporal_flickering"]
    assert score.value is None
    assert (score.reason or "").startswith(vbench.FAILED)
