"""Geometry of the diffusion transformer (diffusers' HunyuanVideoTransformer3DModel), and how it is sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from magic141.frozen import FrozenConfig

Sampler = Literal["renoise", "euler"]
"""The chain of network steps that makes a clip; see `magic141.diffusion.samplers.sample`."""


class TransformerConfig(FrozenConfig):
    """Sizes of the diffusion transformer; channels and text widths come from the data."""

    num_attention_heads: int = Field(4, ge=1, description="attention heads")
    attention_head_dim: int = Field(24, ge=8, description="width of a head")
    num_layers: int = Field(2, ge=1, description="double-stream blocks")
    num_single_layers: int = Field(2, ge=0, description="single-stream blocks")
    num_refiner_layers: int = Field(1, ge=1, description="text refiner blocks")
    mlp_ratio: float = Field(4.0, gt=0, description="MLP width over model width")
    patch_size: int = Field(1, ge=1, description="side of a token in latent pixels")
    patch_size_t: int = Field(1, ge=1, description="latent frames per token")
    rope_axes_dim: tuple[int, int, int] = Field((8, 8, 8), description="rotary widths of time, height, width")
    window_frames: int = Field(9, ge=1, description="pixel frames of one window, temporal_factor * k + 1")

    @model_validator(mode="after")
    def _rope_fills_head(self) -> TransformerConfig:
        if sum(self.rope_axes_dim) != self.attention_head_dim:
            raise ValueError(
                f"model.rope_axes_dim = {list(self.rope_axes_dim)} sums to {sum(self.rope_axes_dim)}: expected "
                f"model.attention_head_dim = {self.attention_head_dim}"
            )
        if any(width < 2 or width % 2 for width in self.rope_axes_dim):
            raise ValueError(
                f"model.rope_axes_dim = {list(self.rope_axes_dim)}: expected even widths of 2 or more, because rotary "
                "embeddings rotate pairs"
            )
        return self
