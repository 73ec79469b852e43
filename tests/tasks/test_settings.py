"""Which stages a setting changes: their keys hold what decides their result, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from magic141.artifacts.references import ArtifactRef
from magic141.config import PipelineConfig, load_config
from magic141.data.config import DataConfig
from tasks.pipeline import STAGES
from tasks.prepare_data import STAGE as PREPARE

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
INPUTS = {stage.name: ArtifactRef(stage=stage.name, key="", uri="", digest="d", run_id="") for stage in STAGES}
TRAINED = {"pretrain_t2v", "pretrain_i2v", "distill_cfg", "distill_dmd2"}
SAMPLED = {"generate", "publish"}
ALL = {stage.name for stage in STAGES}


def keys(config: PipelineConfig) -> dict[str, str]:
    """The key of every stage on artifacts that never change; the report shows all settings: test_report.py."""
    return {stage.name: stage.key(config, INPUTS).digest for stage in STAGES if stage.name != "report"}


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("seed=7", ALL - {"report"}),
        ("name=other", set()),
        ("data.fps=9", {"prepare_data"}),
        ("data.num_workers=3", set()),
        ("model.num_layers=3", TRAINED | SAMPLED),
        ("train_clip.num_steps=9", {"train_clip"}),
        ("build_index.kind=hnsw", {"build_index"}),
        ("pretrain_t2v.num_steps=9", {"pretrain_t2v"}),
        ("pretrain_i2v.text_dropout=0.3", {"pretrain_i2v"}),
        ("distill_cfg.max_guidance_scale=9", {"distill_cfg"}),
        ("distill_cfg.placement.log_every_steps=9", set()),
        ("distill_dmd2.a_weak=0.1", {"distill_dmd2"}),
        ("distill_dmd2.num_inference_steps=3", {"distill_dmd2", *SAMPLED}),
        ("distill_dmd2.shift=3", {"distill_dmd2", *SAMPLED}),
        ("distill_dmd2.sampler=euler", {"distill_dmd2", *SAMPLED}),
        ("distill_dmd2.student_guidance_scale=1.7", {"distill_dmd2", *SAMPLED}),
        ("quantize.exclude=[proj_out]", {"quantize"}),
        ("generate.num_exact_clips=8", {"generate"}),
        ("generate.long_video_carried=1", SAMPLED),
        ("evaluate.frechet_dimensions=8", {"evaluate"}),
        ("publish.dtype=bfloat16", {"publish"}),
        ("publish.alias=best", set()),
    ],
)
def test_a_setting_changes_the_stages_that_depend_on_it_and_no_other(setting: str, changed: set[str]) -> None:
    before, after = keys(load_config(DEMO)), keys(load_config(DEMO, [setting]))
    assert {name for name, key in before.items() if after[name] != key} == changed


def test_another_seed_does_not_encode_videos_anew_where_none_decides_how(tmp_path: Path) -> None:
    folders = [f"data.{name}={tmp_path}" for name in ("path", "codec.path", "encoder.path")]
    configs = [load_config(DEMO.with_name("hunyuan_13b.yaml"), [*folders, f"seed={seed}"]) for seed in (0, 1)]
    first, second = (PREPARE.key(config, {}).digest for config in configs)
    assert first == second


@pytest.mark.parametrize(
    "random", [{"source": "shapes"}, {"codec": {"kind": "pca"}}, {"encoder": {"kind": "tiny"}}], ids=str
)
def test_a_world_that_is_drawn_and_models_that_are_fitted_are_random(random: dict[str, Any]) -> None:
    hunyuan = {"kind": "hunyuan", "path": "checkpoints"}
    data = {"source": "folder", "path": "videos", "codec": hunyuan, "encoder": hunyuan}
    assert not DataConfig.model_validate(data).is_random
    assert DataConfig.model_validate({**data, **random}).is_random
