"""The configs that the repository ships: they validate, and the paper's size builds without its memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.config import load_config
from magic141.models.transformer import build_transformer

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.yaml")))
def test_validates(name: str) -> None:
    assert load_config(CONFIGS / f"{name}.yaml", []).name == name


def test_the_papers_size_builds_on_the_meta_device() -> None:
    config = load_config(CONFIGS / "hunyuan_13b.yaml", [])
    with torch.device("meta"):
        model = build_transformer(config.model, 16, text_width=4096, pooled_width=768, image_condition=True)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert model.config.in_channels == 33
    assert 12e9 < num_parameters < 14e9
