"""HunyuanVideo's diffusion transformer: build, load, widen to I2V, add or fold the guidance input, evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import Tensor, nn

from magic141.errors import UserError
from magic141.models.config import TransformerConfig
from magic141.models.full_mask import FullMask
from magic141.models.text_embedding import TextEmbedding

TIME_SCALE = 1000.0  # the network sees 1000*sigma, and 1000*w


@dataclass(frozen=True)
class Conditioning:
    """What the transformer attends to: tokens [B, L, D], mask [B, L] (valid ones first), pooled [B, P].

    Without a mask all tokens are valid.
    """

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor

    def to(self, device: torch.device) -> Conditioning:
        """The same on another device; on a GPU trimmed, if possible."""
        cond = self.trimmed() if device.type == "cuda" else self
        mask = None if cond.mask is None else cond.mask.to(device)
        return Conditioning(cond.tokens.to(device), mask, cond.pooled.to(device))

    def part(self, rows: slice | Tensor) -> Conditioning:
        """The samples `rows`."""
        return Conditioning(self.tokens[rows], None if self.mask is None else self.mask[rows], self.pooled[rows])

    def trimmed(self) -> Conditioning:
        """Without padding and mask, if all samples are equally long: FlashAttention takes no mask."""
        lengths = [] if self.mask is None else self.mask.sum(1).tolist()
        if len(set(lengths)) != 1:
            return self
        return Conditioning(self.tokens[:, : lengths[0]], None, self.pooled)


@dataclass(frozen=True)
class Prefix:
    """Known latent frames: latents [B, C, T, h, w], zero in latent space where unknown; mask [B, 1, T, h, w]."""

    latents: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> Prefix:
        """The same on another device."""
        return Prefix(self.latents.to(device), self.mask.to(device))

    def part(self, rows: slice | Tensor) -> Prefix:
        """The samples `rows`."""
        return Prefix(self.latents[rows], self.mask[rows])

    def dropped(self, drop: Tensor) -> Prefix:
        """The prefix with nothing known of the samples in `drop` [B] (bool)."""
        keep = (~drop).reshape(-1, 1, 1, 1, 1).to(self.latents.dtype)
        return Prefix(self.latents * keep, self.mask * keep)


def condition(text: TextEmbedding, image_tokens: Tensor | None) -> Conditioning:
    """Multi-modal guidance (paper, section 3): the image tokens [B, Li, D] come before the text tokens."""
    if image_tokens is None:
        return Conditioning(text.tokens, text.mask, text.pooled)
    image_mask = torch.ones(image_tokens.shape[:2], dtype=text.mask.dtype, device=text.mask.device)
    return Conditioning(torch.cat([image_tokens, text.tokens], 1), torch.cat([image_mask, text.mask], 1), text.pooled)


def make_prefix(latents: Tensor, num_known: Tensor | int) -> Prefix:
    """Keeps the first `num_known` latent frames (an int, or [B]) of `latents` [B, C, T, h, w] and zeroes the others."""
    batch, _, frames, height, width = latents.shape
    known = torch.as_tensor(num_known, device=latents.device).expand(batch)
    mask = (torch.arange(frames, device=latents.device)[None] < known[:, None]).to(latents.dtype)
    mask = mask[:, None, :, None, None].expand(batch, 1, frames, height, width)
    return Prefix(latents * mask, mask)


def build_transformer(
    config: TransformerConfig,
    latent_channels: int,
    text_width: int,
    pooled_width: int,
    image_condition: bool = False,
    guidance_embeds: bool = False,
) -> HunyuanVideoTransformer3DModel:
    """A new transformer with a zero output layer, so that training starts from the zero velocity.

    Args:
        config: sizes.
        latent_channels: C; the I2V model reads 2C+1 and writes C channels.
        text_width: D of the text and image tokens.
        pooled_width: P of the pooled text vector.
        image_condition: whether the input is `[x_t; known latents; mask]`.
        guidance_embeds: whether w is an input.
    """
    model = HunyuanVideoTransformer3DModel(
        in_channels=2 * latent_channels + 1 if image_condition else latent_channels,
        out_channels=latent_channels,
        num_attention_heads=config.num_attention_heads,
        attention_head_dim=config.attention_head_dim,
        num_layers=config.num_layers,
        num_single_layers=config.num_single_layers,
        num_refiner_layers=config.num_refiner_layers,
        mlp_ratio=config.mlp_ratio,
        patch_size=config.patch_size,
        patch_size_t=config.patch_size_t,
        guidance_embeds=guidance_embeds,
        text_embed_dim=text_width,
        pooled_projection_dim=pooled_width,
        rope_axes_dim=tuple(config.rope_axes_dim),
        image_condition_type="latent_concat" if image_condition else None,
    )
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    return model


def sampling_dtype(device: torch.device) -> torch.dtype:
    """The weights' dtype for sampling: bfloat16 halves the memory on a GPU; CPUs are no faster with it."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_transformer(
    folder: Path | str, dtype: torch.dtype = torch.float32, empty: bool = False
) -> HunyuanVideoTransformer3DModel:
    """Loads a diffusers transformer folder; its path is left out of the config, so that artifacts do not depend on it.

    Args:
        folder: the folder.
        dtype: of the weights.
        empty: whether to read no weights: they are undefined then, and take no memory before something is written.

    Raises:
        UserError: if the folder is no transformer.
    """
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: not a transformer; expected a diffusers folder with config.json and weights")
    if empty:
        with torch.device("meta"):
            model = HunyuanVideoTransformer3DModel.from_config(HunyuanVideoTransformer3DModel.load_config(folder))
        model = model.to(dtype).to_empty(device="cpu").eval()
    else:
        model = HunyuanVideoTransformer3DModel.from_pretrained(folder, torch_dtype=dtype)
    model.register_to_config(_name_or_path="")
    return model


def load_for_sampling(folder: Path, device: torch.device) -> HunyuanVideoTransformer3DModel:
    """Loads a diffusers transformer folder onto the device that samples, in the dtype for it."""
    return load_transformer(folder, sampling_dtype(device)).to(device).eval()


def expand_to_i2v(t2v: HunyuanVideoTransformer3DModel) -> HunyuanVideoTransformer3DModel:
    """Widens the input from C to 2C+1 channels (paper, section 3); the new weights are zero.

    The result equals the T2V model bit for bit until the first update, for any first frame. It shares that model's
    weights: do not train both.
    """
    channels, state = t2v.config.in_channels, t2v.state_dict()
    weight = state["x_embedder.proj.weight"]
    grown = weight.new_zeros(weight.shape[0], 2 * channels + 1, *weight.shape[2:])
    grown[:, :channels] = weight
    state["x_embedder.proj.weight"] = grown
    return _rebuild(t2v, state, in_channels=2 * channels + 1, image_condition_type="latent_concat")


def add_guidance_embedding(teacher: HunyuanVideoTransformer3DModel) -> HunyuanVideoTransformer3DModel:
    """Gives the model an input w; the new branch ends in zeros, so that nothing changes until the first update.

    The result shares the teacher's weights: do not train both.
    """
    if teacher.config.guidance_embeds:
        return teacher
    branch = "time_text_embed.guidance_embedder"
    # without blocks, which are built last, the branch gets the same random weights as in a whole network
    config = _config(teacher, guidance_embeds=True, num_layers=0, num_single_layers=0)
    new = HunyuanVideoTransformer3DModel(**config).get_submodule(branch).to(teacher.device, teacher.dtype)
    nn.init.zeros_(new.linear_2.weight)
    nn.init.zeros_(new.linear_2.bias)
    state = teacher.state_dict() | new.state_dict(prefix=f"{branch}.")
    return _rebuild(teacher, state, guidance_embeds=True)


def fold_guidance(model: HunyuanVideoTransformer3DModel, w: float) -> HunyuanVideoTransformer3DModel:
    """Fixes a guidance-distilled model at one w and removes that input: its embedding becomes a constant bias.

    The result shares that model's weights: do not train both.
    """
    embed = model.time_text_embed
    with torch.no_grad():
        scale = torch.tensor([w * TIME_SCALE], device=model.device)
        constant = embed.guidance_embedder(embed.time_proj(scale).to(model.dtype))[0]
    state = {name: value for name, value in model.state_dict().items() if ".guidance_embedder." not in name}
    bias = "time_text_embed.timestep_embedder.linear_2.bias"
    return _rebuild(model, {**state, bias: state[bias] + constant}, guidance_embeds=False)


def _rebuild(
    model: HunyuanVideoTransformer3DModel, state: dict[str, Tensor], **changes: Any
) -> HunyuanVideoTransformer3DModel:
    """A network with a changed config that uses the tensors of `state` themselves: no second copy in memory."""
    with torch.device("meta"):
        rebuilt = HunyuanVideoTransformer3DModel(**_config(model, **changes))
    rebuilt.load_state_dict(state, assign=True)
    return rebuilt


def _config(model: HunyuanVideoTransformer3DModel, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in model.config.items() if not name.startswith("_")} | changes


def velocity(
    model: Any,
    x_t: Tensor,
    sigma: Tensor,
    cond: Conditioning,
    prefix: Prefix | None = None,
    guidance_scale: Tensor | None = None,
) -> Tensor:
    """The predicted velocity, float32 [B, C, T, h, w].

    Args:
        model: the transformer, or an engine that wraps it.
        x_t: noisy latents [B, C, T, h, w].
        sigma: times in [0, 1], [B]; float32, as bf16 would round 937.5.
        cond: image and text tokens.
        prefix: known latent frames (I2V models).
        guidance_scale: w, [B], float32 (models with a guidance embedding).
    """
    inputs = x_t if prefix is None else torch.cat([x_t, prefix.latents, prefix.mask], dim=1)
    guidance = None if guidance_scale is None else guidance_scale.float() * TIME_SCALE
    output: Tensor = model(
        hidden_states=inputs,
        timestep=sigma.float() * TIME_SCALE,
        encoder_hidden_states=cond.tokens,
        encoder_attention_mask=FullMask.of(cond.tokens) if cond.mask is None else cond.mask,
        pooled_projections=cond.pooled,
        guidance=guidance,
        return_dict=False,
    )[0]
    return output.float()
