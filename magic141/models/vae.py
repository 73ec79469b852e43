"""The video codec between pixels and latents: one interface over HunyuanVideo's VAE and the demo's causal PCA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from magic141.errors import UserError
from magic141.models.config import CodecConfig

FRAMES_AT_ONCE = 32  # turned from what the codec makes into pixels


class CausalPCACodec(ModelMixin, ConfigMixin):
    """A linear causal video codec: projects patches of frame 0, then of groups of frames, onto principal components.

    Frame 0 is encoded alone, whatever follows, so that a single image can be encoded (as with HunyuanVideo's VAE, whose
    convolutions are causal, too, but not its norms). It is fitted in a second instead of trained. Coefficients are
    divided by the square root of their standard deviation (half-whitened), which keeps the large components larger, but
    not overwhelmingly so.
    """

    @register_to_config
    def __init__(
        self, latent_channels: int = 40, temporal_compression_ratio: int = 2, spatial_compression_ratio: int = 8
    ) -> None:
        super().__init__()
        self.temporal_compression_ratio = temporal_compression_ratio
        self.spatial_compression_ratio = spatial_compression_ratio
        for name, num_frames in (("first", 1), ("group", temporal_compression_ratio)):
            size = 3 * num_frames * spatial_compression_ratio**2
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_basis", torch.zeros(size, latent_channels))
            self.register_buffer(f"{name}_scale", torch.ones(latent_channels))
        # ModelMixin reads device and dtype from a parameter
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

    @classmethod
    def fit(cls, frames: Tensor, config: CodecConfig) -> CausalPCACodec:
        """Fits mean, basis and scale on clips.

        Args:
            frames: uint8 [N, F, H, W, 3], F = temporal_factor * k + 1.
            config: channels and factors.
        """
        codec: CausalPCACodec = cls(config.num_channels, config.temporal_factor, config.spatial_factor)
        first, groups = codec._patches(_to_float(frames))
        codec._fit_part("first", first.flatten(0, -2))
        codec._fit_part("group", groups.flatten(0, -2))
        return codec

    def _fit_part(self, name: str, patches: Tensor) -> None:
        mean = patches.mean(0)
        covariance = torch.cov(patches.T)
        _, vectors = torch.linalg.eigh(covariance)
        basis = vectors.flip(1)[:, : self.config.latent_channels]
        coefficients = (patches - mean) @ basis
        scale = coefficients.std(0).clamp_min(1e-4).sqrt()
        scale = scale * (coefficients / scale).std()  # unit variance over all channels together
        for key, value in (("mean", mean), ("basis", basis), ("scale", scale)):
            getattr(self, f"{name}_{key}").copy_(value)

    def _patches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Splits [B, 3, F, H, W] into patches: first [B, 1, h, w, p], groups [B, T-1, h, w, p]."""
        return self._patchify(x[:, :, :1], 1), self._patchify(x[:, :, 1:], self.temporal_compression_ratio)

    def _patchify(self, x: Tensor, r: int) -> Tensor:
        s = self.spatial_compression_ratio
        b, c, f, h, w = x.shape
        x = x.reshape(b, c, f // r, r, h // s, s, w // s, s)
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, f // r, h // s, w // s, c * r * s * s)

    def _unpatchify(self, patches: Tensor, r: int) -> Tensor:
        s = self.spatial_compression_ratio
        b, t, h, w, _ = patches.shape
        x = patches.reshape(b, t, h, w, 3, r, s, s).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(b, 3, t * r, h * s, w * s)

    def encode_latents(self, x: Tensor) -> Tensor:
        """Encodes floats in [-1, 1], [B, 3, F, H, W], to [B, C, T, h, w]."""
        first, groups = self._patches(x)
        first = (first - self.first_mean) @ self.first_basis / self.first_scale
        groups = (groups - self.group_mean) @ self.group_basis / self.group_scale
        return torch.cat([first, groups], dim=1).permute(0, 4, 1, 2, 3)

    def decode(self, z: Tensor, return_dict: bool = True) -> Any:
        """Decodes [B, C, T, h, w] to floats in about [-1, 1], [B, 3, F, H, W]; diffusers' signature."""
        coefficients = z.permute(0, 2, 3, 4, 1)
        first = (coefficients[:, :1] * self.first_scale) @ self.first_basis.T + self.first_mean
        groups = (coefficients[:, 1:] * self.group_scale) @ self.group_basis.T + self.group_mean
        x = torch.cat([self._unpatchify(first, 1), self._unpatchify(groups, self.temporal_compression_ratio)], dim=2)
        if not return_dict:
            return (x,)
        from diffusers.models.autoencoders.vae import DecoderOutput  # imports all of diffusers' networks: seconds

        return DecoderOutput(sample=x)


class VideoCodec:
    """Encodes frames and decodes latents with either codec; latents have about unit variance (scaling is applied)."""

    def __init__(self, vae: Any) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        if hasattr(vae, "enable_tiling"):
            vae.enable_tiling()  # a real clip does not fit into one forward pass
        self.temporal_factor = int(self.vae.temporal_compression_ratio)
        self.spatial_factor = int(self.vae.spatial_compression_ratio)

    def to(self, device: torch.device) -> None:
        """Moves it to a device; HunyuanVideo's VAE to float16 on a GPU, as released: half the time and memory."""
        half = device.type == "cuda" and not isinstance(self.vae, CausalPCACodec)
        # diffusers' own `to` prints a warning that does not apply here
        nn.Module.to(self.vae, device, torch.float16 if half else torch.float32)

    @torch.no_grad()
    def encode_video(self, frames: Tensor) -> Tensor:
        """Encodes uint8 [B, F, H, W, 3], F = temporal_factor * k + 1, to float32 [B, C, T, h, w]."""
        x = _to_float(frames.to(self.vae.device))
        if isinstance(self.vae, CausalPCACodec):
            latents: Tensor = self.vae.encode_latents(x)
        else:
            latents = self.vae.encode(x.to(self.vae.dtype)).latent_dist.mode() * self.vae.config.scaling_factor
        return latents.float()

    @torch.no_grad()
    def decode_video(self, latents: Tensor) -> Tensor:
        """Decodes [B, C, T, h, w], which must begin with a video's first latent frame, to uint8 [B, F, H, W, 3]."""
        scale = 1.0 if isinstance(self.vae, CausalPCACodec) else self.vae.config.scaling_factor
        x = self.vae.decode((latents / scale).to(self.vae.device, self.vae.dtype), return_dict=False)[0]
        parts = x.split(FRAMES_AT_ONCE, dim=2)  # in float32, a long video would take several times its own memory
        frames = [part.float().add_(1).mul_(127.5).add_(0.5).clamp_(0, 255).to(torch.uint8) for part in parts]
        return torch.cat(frames, dim=2).permute(0, 2, 3, 4, 1)

    def save(self, folder: Path) -> None:
        """Writes a diffusers folder."""
        self.vae.save_pretrained(folder)


def load_codec(folder: Path | str) -> VideoCodec:
    """Loads either codec from a diffusers folder (its config names the class).

    Raises:
        UserError: if the folder holds neither.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise UserError(f"{config_file}: no such file; expected a diffusers VAE folder; check data.codec.path")
    name = json.loads(config_file.read_text()).get("_class_name")
    if name == "CausalPCACodec":
        return VideoCodec(CausalPCACodec.from_pretrained(folder))
    if name == "AutoencoderKLHunyuanVideo":
        from diffusers import AutoencoderKLHunyuanVideo

        return VideoCodec(AutoencoderKLHunyuanVideo.from_pretrained(folder))
    raise UserError(f"{config_file}: _class_name = {name}; expected CausalPCACodec or AutoencoderKLHunyuanVideo")


def _to_float(frames: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] to floats in [-1, 1], [B, 3, F, H, W]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
