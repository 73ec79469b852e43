"""The number of parameters from the config alone is that of the built network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.config import load_config
from magic141.models.adapters import add_lora
from magic141.models.config import TransformerConfig
from magic141.models.size import num_lora_parameters, num_parameters, saved_num_parameters, weight_megabytes
from magic141.models.transformer import build_transformer

PAPER = load_config(Path(__file__).parents[2] / "configs" / "hunyuan_13b.yaml").model
ODD = TransformerConfig(num_layers=1, num_single_layers=3, num_refiner_layers=2, patch_size=2, patch_size_t=2)


@pytest.mark.parametrize(
    ("config", "widths"), [(TransformerConfig(), (40, 64, 64)), (ODD, (4, 32, 16)), (PAPER, (16, 4096, 768))]
)
@pytest.mark.parametrize("image_condition", [False, True])
@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_counts_what_is_built(
    config: TransformerConfig, widths: tuple[int, int, int], image_condition: bool, guidance_embeds: bool
) -> None:
    with torch.device("meta"):
        model = build_transformer(config, *widths, image_condition, guidance_embeds)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert num_parameters(config, *widths, image_condition, guidance_embeds) == built


@pytest.mark.parametrize("config", [TransformerConfig(), ODD])
def test_counts_what_an_adapter_adds(config: TransformerConfig) -> None:
    model = build_transformer(config, 4, 32, 16)
    add_lora(model, 3, seed=0)
    added = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert num_lora_parameters(config, 3) == added


@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_counts_what_was_saved_without_reading_it(tmp_path: Path, guidance_embeds: bool) -> None:
    with torch.device("meta"):
        model = build_transformer(ODD, 4, 32, 16, image_condition=True, guidance_embeds=guidance_embeds)
    model.save_config(tmp_path)
    assert saved_num_parameters(tmp_path) == sum(parameter.numel() for parameter in model.parameters())


def test_weights_are_counted_as_stored() -> None:
    assert weight_megabytes(torch.nn.Linear(1024, 1024, bias=False)) == 4
    assert weight_megabytes(torch.nn.Linear(1024, 1024, bias=False).bfloat16()) == 2
