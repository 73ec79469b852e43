"""A tiny real HunyuanVideo transformer with inputs for it, and the tiny parts of everything around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from safetensors.torch import save_file

from magic141.data.dataset import NULL_TEXT_FILE
from magic141.data.info import INFO_FILE, DatasetInfo
from magic141.export import export_pipeline
from magic141.models.config import EncoderConfig, TransformerConfig
from magic141.models.encoders import IMAGE_TEMPLATE, TEXT_TEMPLATE, Encoders
from magic141.models.tiny_encoders import build_tiny_parts
from magic141.models.transformer import Conditioning, build_transformer
from magic141.models.vae import VideoCodec
from magic141.stage_log import NullLog
from magic141.training.dmd2.config import Dmd2Config

CHANNELS, TEXT, POOLED = 4, 8, 8
CONFIG = TransformerConfig(
    num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1, rope_axes_dim=(4, 4, 4)
)
INFO = DatasetInfo(
    num_clips={},
    source="folder",
    fps=8.0,
    num_frames=13,
    height=32,
    width=32,
    latent_shape=(CHANNELS, 4, 4, 4),
    text_width=32,
    pooled_width=32,
    temporal_factor=4,
    has_ground_truth=False,
    bad_files=(),
    codec_psnr_db=30.0,
)


def tiny_transformer(
    image_condition: bool = False, guidance_embeds: bool = False, seed: int = 0, **sizes: int
) -> HunyuanVideoTransformer3DModel:
    """A network whose output is not zero, unlike that of a fresh one."""
    torch.manual_seed(seed)
    config = CONFIG.model_copy(update=sizes)
    model = build_transformer(config, CHANNELS, TEXT, POOLED, image_condition, guidance_embeds)
    torch.nn.init.normal_(model.proj_out.weight, std=0.2)
    return model.eval()


def tiny_vae(num_channels: int = CHANNELS) -> AutoencoderKLHunyuanVideo:
    """HunyuanVideo's own VAE class, with random weights."""
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        latent_channels=num_channels, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def tiny_checkpoint(folder: Path, captions: Sequence[str]) -> Path:
    """Random encoders in the layout of a HunyuanVideo-I2V folder, whose tokenizer knows the templates."""
    words = [*captions, TEXT_TEMPLATE.before, IMAGE_TEMPLATE.before, "<|eot_id|>"]
    build_tiny_parts(words, 32, seed=1).save(folder)
    return folder


def fit_encoders(captions: Sequence[str], config: EncoderConfig, seed: int) -> Encoders:
    """Encoders whose image tokens, if they are of the tiny kind, are calibrated on noise."""
    noise = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Encoders.fit(captions, config, seed, noise)


def tiny_bundle(checkpoint: Path, folder: Path, num_carried: int = 2, dtype: torch.dtype = torch.float32) -> Path:
    """A student of 32 x 32 pixels and 13 frames, published with HunyuanVideo's kind of VAE and encoders."""
    data, student, out = (folder / name for name in ("data", "student", "PUBLISHED"))
    encoders = fit_encoders([], EncoderConfig(kind="hunyuan", path=str(checkpoint), max_text_tokens=8), 0)
    encoders.save(data / "encoders")
    VideoCodec(tiny_vae()).save(data / "codec")
    null = encoders.encode_text([""])
    save_file({"text_tokens": null.tokens, "text_mask": null.mask, "pooled": null.pooled}, data / NULL_TEXT_FILE)
    (data / INFO_FILE).write_text(INFO.model_dump_json())
    network = build_transformer(CONFIG, CHANNELS, 32, 32, image_condition=True, guidance_embeds=True)
    network.save_pretrained(student / "transformer")
    config = CONFIG.model_copy(update={"window_frames": 13})
    export_pipeline(config, Dmd2Config(sampler="euler", shift=5.0), num_carried, data, student, out, NullLog(), dtype)
    return out


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
