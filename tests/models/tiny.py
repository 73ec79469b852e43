"""A tiny real HunyuanVideo transformer with inputs for it."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

from magic141.models.config import TransformerConfig
from magic141.models.transformer import Conditioning, build_transformer

CHANNELS, TEXT, POOLED = 4, 8, 8
CONFIG = TransformerConfig(
    num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1, rope_axes_dim=(4, 4, 4)
)


def tiny_transformer(
    image_condition: bool = False, guidance_embeds: bool = False, seed: int = 0
) -> HunyuanVideoTransformer3DModel:
    """A network whose output is not zero, unlike that of a fresh one."""
    torch.manual_seed(seed)
    model = build_transformer(CONFIG, CHANNELS, TEXT, POOLED, image_condition, guidance_embeds)
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    return model.eval()


def tiny_vae() -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo's own VAE class, with random weights."""
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def tiny_inputs(batch: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """x_t [B, 4, 3, 2, 2], sigma [B], conditioning with one padded token."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 5, dtype=torch.bool)
    mask[0, 4] = False
    cond = Conditioning(
        torch.randn(batch, 5, TEXT, generator=generator), mask, torch.randn(batch, POOLED, generator=generator)
    )
    x_t = torch.randn(batch, CHANNELS, 3, 2, 2, generator=generator)
    return x_t, torch.rand(batch, generator=generator), cond
