from pathlib import Path

import pytest

from flows.estimates import estimate
from flows.plan import make_plan
from magic141.config import load_config
from tasks.pipeline import STAGES

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def test_a_stage_whose_source_is_missing_is_blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    videos = tmp_path / "videos"
    config = load_config(DEMO, ["data.source=folder", f"data.path={videos}", "pretrain_t2v.base=./nowhere"])
    first, second, *_ = make_plan(config, STAGES)
    assert (first.stage, first.action) == ("prepare_data", "blocked")
    assert first.why.startswith(f"data.path = {videos}: no such folder")
    assert (second.action, second.why) == ("run", "after prepare_data")

    videos.mkdir()
    assert next(make_plan(config, STAGES)).action == "run"


def test_generate_asks_for_gpus_when_workers_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC141_HOME", str(tmp_path))
    here = estimate("generate", load_config(DEMO), None)
    assert (here.resources, here.num_gpus) == ("this process", 0)
    workers = load_config(DEMO, ["generate.num_workers=3", "generate.gpus_per_worker=1"])
    asked = estimate("generate", workers, None)
    assert (asked.resources, asked.num_gpus) == ("3 x 1 CPU + 1 GPU (Ray tasks)", 3)
