"""Configs of the networks: the diffusion transformer and how it is sampled, the codec, the encoders."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from magic141.frozen import FrozenConfig, source_path

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


class CodecSizes(NamedTuple):
    """Channels of the latents, frames per latent frame after the first, and the side of a latent pixel in pixels."""

    channels: int
    temporal_factor: int
    spatial_factor: int


HUNYUAN_SIZES = CodecSizes(16, 4, 8)


class CodecConfig(FrozenConfig):
    """The video codec between pixels and latents."""

    kind: Literal["pca", "hunyuan"] = Field("pca", description="pca: fitted on the corpus in a second; hunyuan: VAE")
    path: str | None = source_path(description="diffusers folder with a `vae` subfolder (kind hunyuan)")
    num_channels: int = Field(40, ge=1, description="latent channels C (kind pca)")
    temporal_factor: int = Field(2, ge=1, description="frames per latent frame, after the first (kind pca)")
    spatial_factor: int = Field(8, ge=1, description="side of a latent pixel, in pixels (kind pca)")
    num_fit_clips: int = Field(512, ge=2, description="clips that the codec is fitted on (kind pca)")

    @model_validator(mode="after")
    def _channels_fit(self) -> CodecConfig:
        most = 3 * self.spatial_factor**2  # values of a patch of the first frame
        if self.kind == "pca" and self.num_channels > most:
            raise ValueError(
                f"num_channels = {self.num_channels}: a patch of the first frame has {most} values; use at most {most}"
            )
        return self

    @property
    def sizes(self) -> CodecSizes:
        """The sizes of the latents, of either kind."""
        if self.kind == "hunyuan":
            return HUNYUAN_SIZES
        return CodecSizes(self.num_channels, self.temporal_factor, self.spatial_factor)


class EncoderConfig(FrozenConfig):
    """The frozen text and image encoders (transformers' Llava and CLIP classes)."""

    kind: Literal["tiny", "hunyuan"] = Field(
        "tiny", description="tiny: random-weight Llava and CLIP over the corpus's own words; hunyuan: real checkpoints"
    )
    path: str | None = source_path(description="diffusers HunyuanVideo-I2V folder with the encoders (kind hunyuan)")
    width: int = Field(64, ge=8, multiple_of=2, description="hidden width of the tiny encoders")
    max_text_tokens: int = Field(
        64, ge=2, description="most text tokens per caption; kind tiny uses no more than the longest caption has"
    )
    image_tokens: bool = Field(
        True, description="multi-modal guidance: tokens of the first frame before the text's; false: only its latents"
    )
    image_token_stride: int = Field(4, ge=1, description="every n-th image token is kept (the release keeps every 4th)")
