"""What of the user's files a stage's key holds: their content, not their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from magic141.artifacts.references import ArtifactRef, StageKey
from magic141.config import load_config
from tasks import prepare_data, pretrain_i2v, pretrain_t2v, train_clip
from tasks.stage import Stage

CONFIG = Path(__file__).parents[2] / "configs" / "hunyuan_13b.yaml"
CASES: tuple[tuple[Stage, tuple[str, ...]], ...] = (
    (prepare_data.STAGE, ("data.path", "data.codec.path", "data.encoder.path")),
    (train_clip.STAGE, ("train_clip.pretrained",)),
    (pretrain_t2v.STAGE, ("pretrain_t2v.base",)),
    (pretrain_i2v.STAGE, ("pretrain_i2v.base",)),
)


def key(stage: Stage, *overrides: str) -> StageKey:
    inputs = {name: ArtifactRef(stage=name, key="k", uri="/x", digest="d", run_id="r") for name in stage.inputs}
    return stage.key(load_config(CONFIG, overrides), inputs)


def made(folder: Path, field: str, content: str) -> str:
    """A setting of `field` with a file, or a folder with one."""
    path = folder / "a.safetensors" if field == "train_clip.pretrained" else folder
    folder.mkdir(parents=True)
    (folder / ("a.safetensors" if path != folder else "a.mp4")).write_text(content)
    return f"{field}={path}"


@pytest.mark.parametrize(("stage", "field"), [(stage, field) for stage, fields in CASES for field in fields])
def test_equal_files_in_another_place_give_the_same_key_and_others_another(
    tmp_path: Path, stage: Stage, field: str
) -> None:
    here, there, other = (
        key(stage, made(tmp_path / place, field, content))
        for place, content in (("here", "same"), ("there", "same"), ("other", "different"))
    )
    assert there.difference(here) == []
    assert [line.partition(":")[0] for line in other.difference(here)] == [f"inputs.{field}"]


def test_a_tag_of_released_weights_is_in_the_key_by_its_name() -> None:
    openai, laion = (
        key(train_clip.STAGE, "train_clip.release=null", f"train_clip.pretrained={tag}")
        for tag in ("openai", "laion2b_s32b_b82k")
    )
    assert laion.difference(openai) == ['config.train_clip.pretrained: "openai" -> "laion2b_s32b_b82k"']
