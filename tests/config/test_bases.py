"""A base that does not fit is refused before any work, by its config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magic141.config import load_config, missing_sources
from tests.models.tiny import tiny_checkpoint, tiny_transformer

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
FITS = (
    "data.codec.num_channels=4",
    "data.encoder.width=8",
    "model.attention_head_dim=12",
    "model.rope_axes_dim=[4,4,4]",
    "evaluate.frechet_dimensions=20",
)
TAKEN = "pretrain_i2v.num_steps=0"


def lines(base: Path, section: str, overrides: tuple[str, ...] = FITS, **changes: Any) -> list[str]:
    """What is said of a tiny base whose config.json has these `changes`."""
    tiny_transformer(image_condition=changes.pop("image_condition", False)).save_config(base)
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    found = missing_sources(load_config(DEMO, [*overrides, f"{section}.base={base}"]))
    return [line.removeprefix(f"{section}.base = {base}: ").partition("; use HunyuanVideo")[0] for line in found]


def test_text_to_video_and_33_channels_are_bases(tmp_path: Path) -> None:
    assert lines(tmp_path, "pretrain_t2v") == []
    assert lines(tmp_path, "pretrain_i2v") == []
    assert lines(tmp_path, "pretrain_i2v", (*FITS, TAKEN), image_condition=True) == []


def test_a_kind_that_is_not_trained_here_is_refused(tmp_path: Path) -> None:
    replace: dict[str, Any] = {"image_condition_type": "token_replace"}
    found = "image_condition_type = token_replace with 4 input channels; expected null with 4"
    assert lines(tmp_path, "pretrain_t2v", **replace) == [found]
    assert lines(tmp_path, "pretrain_i2v", **replace) == [f"{found} or latent_concat with 9"]
    (taken,) = lines(tmp_path, "pretrain_i2v", (*FITS, TAKEN))  # without surgery: a teacher that sees no image
    assert taken == "image_condition_type = null with 4 input channels; expected latent_concat with 9"
    assert len(lines(tmp_path, "pretrain_t2v", image_condition=True)) == 1


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("model.patch_size=2", "patch_size = 1; expected 2 by model.patch_size"),
        ("model.rope_axes_dim=[2,4,6]", "rope_axes_dim = [4, 4, 4]; expected [2, 4, 6] by model.rope_axes_dim"),
        ("data.codec.num_channels=5", "out_channels = 4; expected 5 by data.codec.num_channels"),
    ],
)
def test_another_size_is_refused(tmp_path: Path, override: str, found: str) -> None:
    assert lines(tmp_path, "pretrain_t2v", (*FITS, override)) == [f"{found}; correct that one, or use another base"]


def test_the_widths_of_checkpoints_are_known(tmp_path: Path) -> None:
    encoder = ("data.encoder.kind=hunyuan", f"data.encoder.path={tiny_checkpoint(tmp_path / 'encoders', ['a'])}")
    found = [line.partition(" by")[0] for line in lines(tmp_path / "base", "pretrain_t2v", (*FITS, *encoder))]
    assert found == ["text_embed_dim = 8; expected 32", "pooled_projection_dim = 8; expected 32"]


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    (line,) = missing_sources(load_config(DEMO, [f"pretrain_t2v.base={tmp_path}"]))
    assert line.startswith(f"pretrain_t2v.base = {tmp_path}: no readable config.json in it")
