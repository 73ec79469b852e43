"""Training batches: windows of clips with their text, image tokens and known latent frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.models.encoders import TextEmbedding
from magic141.models.transformer import Conditioning, Prefix, condition, make_prefix


@dataclass(frozen=True)
class Batch:
    """Clean latents x0 [B, C, T, h, w] with everything that the networks are conditioned on."""

    x0: Tensor
    cond: Conditioning
    uncond: Conditioning  # without text; the image tokens stay, so that guidance acts on the text only
    prefix: Prefix | None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        prefix = self.prefix
        if prefix is not None:
            prefix = Prefix(prefix.latents.to(device), prefix.mask.to(device))
        return Batch(self.x0.to(device), self.cond.to(device), self.uncond.to(device), prefix)


@dataclass(frozen=True)
class BatchMaker:
    """Cuts windows from clips and drops conditions at random.

    Attributes:
        dataset: clips, at least as long as the window.
        null_text: the empty prompt, batch size 1.
        num_latent_frames: T of the window.
        image_condition: whether image tokens and known frames are given (I2V) or not (T2V).
        prefix_two_fraction: share of samples that know two latent frames and start anywhere in the clip, as the
            later windows of a long video do; the others know the clip's first latent frame.
        text_dropout: share of samples with the empty prompt.
        image_dropout: share of samples without known frames and with zero image tokens.
    """

    dataset: ClipDataset
    null_text: TextEmbedding
    num_latent_frames: int
    image_condition: bool
    prefix_two_fraction: float = 0.0
    text_dropout: float = 0.0
    image_dropout: float = 0.0

    def make(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """The batch of the clips `indices` [B]; all randomness comes from `generator`."""
        num = len(indices)
        data = self.dataset
        two = torch.rand(num, generator=generator) < (self.prefix_two_fraction if self.image_condition else 0.0)
        last_start = data.latents.shape[2] - self.num_latent_frames
        anywhere = torch.randint(0, last_start + 1, (num,), generator=generator)
        x0 = self._windows(indices, torch.where(two, anywhere, 0))
        null = self.null_text.expand(num)
        no_text = torch.rand(num, generator=generator) < self.text_dropout
        text = TextEmbedding(data.text_tokens[indices].float(), data.text_mask[indices], data.pooled[indices].float())
        text = _where(no_text, null, text)
        if not self.image_condition:
            return Batch(x0, condition(text, None), condition(null, None), None)
        no_image = torch.rand(num, generator=generator) < self.image_dropout
        image = data.image_tokens[indices].float() * (~no_image).float()[:, None, None]
        prefix = make_prefix(x0, 1 + two.long()).dropped(no_image)
        return Batch(x0, condition(text, image), condition(null, image), prefix)

    def _windows(self, indices: Tensor, starts: Tensor) -> Tensor:
        frames = starts[:, None] + torch.arange(self.num_latent_frames)
        return self.dataset.latents[indices[:, None], :, frames].transpose(1, 2).contiguous().float()


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random numbers of one step on one rank: a pure function, so that a resumed run needs no saved state."""
    mixed = (seed * 1_000_003 + step) * 4099 + rank
    return torch.Generator().manual_seed(mixed % 2**63)


def _where(drop: Tensor, a: TextEmbedding, b: TextEmbedding) -> TextEmbedding:
    pick = drop.reshape(-1, 1)
    return TextEmbedding(
        torch.where(pick[..., None], a.tokens, b.tokens),
        torch.where(pick, a.mask, b.mask),
        torch.where(pick, a.pooled, b.pooled),
    )
