"""Sizes of networks; does not import torch, so that planning is fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from magic141.models.config import TransformerConfig

if TYPE_CHECKING:
    from torch import nn

TIME_CHANNELS = 256  # width of diffusers' sinusoidal time embedding
REFINER_RATIO = 4.0


def num_parameters(
    config: TransformerConfig,
    latent_channels: int,
    text_width: int,
    pooled_width: int,
    image_condition: bool = False,
    guidance_embeds: bool = False,
) -> int:
    """Number of parameters of the model that `build_transformer` builds from the same arguments.

    Args:
        config: sizes.
        latent_channels: C; the I2V model reads 2C+1 channels.
        text_width: width of the text and image tokens.
        pooled_width: width of the pooled text vector.
        image_condition: whether it is an I2V model.
        guidance_embeds: whether w is an input.
    """
    width = config.num_attention_heads * config.attention_head_dim
    patch = config.patch_size_t * config.patch_size**2
    in_channels = 2 * latent_channels + 1 if image_condition else latent_channels
    time = _linear(TIME_CHANNELS, width) + _linear(width, width)
    return (
        _linear(in_channels * patch, width)
        + time * (2 if guidance_embeds else 1)
        + _linear(pooled_width, width)
        + _linear(width, width)
        + _refiner(config, width, text_width, time)
        + config.num_layers * _double_block(config, width)
        + config.num_single_layers * _single_block(config, width)
        + _linear(width, 2 * width)
        + _linear(width, latent_channels * patch)
    )


def num_lora_parameters(config: TransformerConfig, rank: int) -> int:
    """What `add_lora` adds: to each linear layer of the blocks `rank` rows of its input's and its output's width."""
    width = config.num_attention_heads * config.attention_head_dim
    hidden = int(width * config.mlp_ratio)
    mlp = 2 * (width + hidden)
    double = 2 * ((width + 6 * width) + 4 * (width + width) + mlp)
    single = (width + 3 * width) + 3 * (width + width) + mlp + width
    return rank * (config.num_layers * double + config.num_single_layers * single)


def saved_num_parameters(folder: Path) -> int:
    """Number of parameters of the network in a diffusers folder, from its config.json; quantised ones count, too."""
    saved = json.loads((folder / "config.json").read_text())
    return num_parameters(
        TransformerConfig.model_validate({k: saved[k] for k in TransformerConfig.model_fields if k in saved}),
        latent_channels=saved["out_channels"],
        text_width=saved["text_embed_dim"],
        pooled_width=saved["pooled_projection_dim"],
        image_condition=saved["in_channels"] != saved["out_channels"],
        guidance_embeds=saved["guidance_embeds"],
    )


def weight_megabytes(model: nn.Module) -> float:
    """MiB of parameters and buffers in their own dtypes."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _mlp(width: int, ratio: float) -> int:
    hidden = int(width * ratio)
    return _linear(width, hidden) + _linear(hidden, width)


def _refiner(config: TransformerConfig, width: int, text_width: int, time: int) -> int:
    norms = 2 * 2 * width
    block = norms + 4 * _linear(width, width) + _mlp(width, REFINER_RATIO) + _linear(width, 2 * width)
    embedding = time + _linear(text_width, width) + _linear(width, width)
    return embedding + _linear(text_width, width) + config.num_refiner_layers * block


def _double_block(config: TransformerConfig, width: int) -> int:
    """Video and text streams, each with its own modulation, projections and MLP."""
    stream = _linear(width, 6 * width) + 4 * _linear(width, width) + _mlp(width, config.mlp_ratio)
    return 2 * (stream + 2 * config.attention_head_dim)


def _single_block(config: TransformerConfig, width: int) -> int:
    hidden = int(width * config.mlp_ratio)
    attention = 3 * _linear(width, width) + 2 * config.attention_head_dim
    return _linear(width, 3 * width) + attention + _linear(width, hidden) + _linear(width + hidden, width)
