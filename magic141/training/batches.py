"""Training batches: windows of clips with their text, image tokens and known latent frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from magic141.data.dataset import ClipDataset, load_null_text
from magic141.data.info import load_info
from magic141.models.frames import num_latent_frames
from magic141.models.text_embedding import TextEmbedding
from magic141.models.transformer import Conditioning, Prefix, condition, make_prefix

MAX_CARRIED = 2  # most latent frames that a continued window knows besides the anchor


@dataclass(frozen=True)
class Batch:
    """Clean latents x0 [B, C, T, h, w] and everything that the networks are conditioned on."""

    x0: Tensor
    cond: Conditioning
    uncond: Conditioning  # without text; the image tokens stay, so that guidance acts on the text only
    prefix: Prefix | None

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        prefix = None if self.prefix is None else self.prefix.to(device)
        return Batch(self.x0.to(device), self.cond.to(device), self.uncond.to(device), prefix)

    def part(self, rows: slice | Tensor) -> Batch:
        """The samples `rows` of the batch.

        On a GPU a part loses the padding and the mask if its samples are equally long, as in `Conditioning.to`.
        """
        if isinstance(rows, slice) and rows.indices(len(self.x0)) == (0, len(self.x0), 1):
            return self
        prefix = None if self.prefix is None else self.prefix.part(rows)
        return Batch(self.x0[rows], self.cond.part(rows), self.uncond.part(rows), prefix).to(self.x0.device)


@dataclass(frozen=True)
class _BatchDraw:
    """What is random about a batch, [B] each.

    Attributes:
        anchored: whether a window begins with its scene's first latent frame, whatever follows.
        starts: index in the clip of the latent frame that comes second in the window.
        num_known: latent frames that are known.
        no_text: whether the prompt is dropped.
        no_image: whether the image tokens and known frames are.
    """

    anchored: Tensor
    starts: Tensor
    num_known: Tensor
    no_text: Tensor
    no_image: Tensor


@dataclass(frozen=True)
class BatchMaker:
    """Cuts windows from clips and drops conditions at random.

    Attributes:
        dataset: clips, at least as long as the window.
        null_text: the empty prompt, batch size 1.
        num_latent_frames: T of the window.
        image_condition: whether image tokens and known frames are given (I2V) or not (T2V).
        continued_fraction: share of samples that continue a scene, like the later windows of a long video: they know
            the anchor, which is that scene's first latent frame, and one or two latent frames from anywhere in the
            clip. The other samples know only the clip's first latent frame.
        far_anchors: if False, continued samples instead start with their clip, and know its first latent frame and
            the one or two that follow.
        text_dropout: share of samples with the empty prompt.
        image_dropout: share of samples without known frames and with zero image tokens.
    """

    dataset: ClipDataset
    null_text: TextEmbedding
    num_latent_frames: int
    image_condition: bool
    continued_fraction: float = 0.0
    far_anchors: bool = True
    text_dropout: float = 0.0
    image_dropout: float = 0.0

    @classmethod
    def open(
        cls,
        data: Path,
        window_frames: int,
        image_condition: bool,
        continued_fraction: float,
        text_dropout: float = 0.0,
        image_dropout: float = 0.0,
    ) -> BatchMaker:
        """Of the training clips in `data`, an artifact of `prepare_data`; a window has `window_frames` pixel frames."""
        return cls(
            dataset=ClipDataset.open(data, "train"),
            null_text=load_null_text(data),
            num_latent_frames=num_latent_frames(window_frames, load_info(data).temporal_factor),
            image_condition=image_condition,
            continued_fraction=continued_fraction,
            text_dropout=text_dropout,
            image_dropout=image_dropout,
        )

    def make(self, indices: Tensor, rng: torch.Generator) -> Batch:
        """The batch of the clips `indices` [B]; all randomness comes from `rng`."""
        drawn = self._draw(len(indices), rng)
        x0, known = self._latents(indices, drawn)
        null = self.null_text.expand(len(indices))
        text = _where(drawn.no_text, null, self.dataset.text(indices))
        if not self.image_condition:
            return Batch(x0, condition(text, None), condition(null, None), None)
        image = self._image_tokens(indices, drawn)
        prefix = make_prefix(known, drawn.num_known).dropped(drawn.no_image)
        return Batch(x0, condition(text, image), condition(null, image), prefix)

    def _draw(self, num: int, rng: torch.Generator) -> _BatchDraw:
        continued = torch.rand(num, generator=rng) < (self.continued_fraction if self.image_condition else 0.0)
        last_start = self.dataset.latents.shape[2] - self.num_latent_frames + 1
        anywhere = torch.randint(1, last_start + 1, (num,), generator=rng)
        most_carried = min(MAX_CARRIED, self.num_latent_frames - 2)  # at least one frame is left to generate
        carried = torch.randint(1, most_carried + 1, (num,), generator=rng)
        no_text = torch.rand(num, generator=rng) < self.text_dropout
        no_image = torch.zeros(num, dtype=torch.bool)
        if self.image_condition:
            no_image = torch.rand(num, generator=rng) < self.image_dropout
        continued &= ~no_image  # without what comes before, frames from later on would follow the first one
        anchored = continued & self.far_anchors
        return _BatchDraw(
            anchored=anchored,
            starts=torch.where(anchored, anywhere, 1),
            num_known=1 + torch.where(continued, carried, 0),
            no_text=no_text,
            no_image=no_image,
        )

    def _latents(self, indices: Tensor, drawn: _BatchDraw) -> tuple[Tensor, Tensor]:
        """The windows, and what may be known of them, both [B, C, T, h, w].

        They differ in a clip's first latent frame: what is known of it was encoded from an image, as at inference.
        """
        data, anchored = self.dataset, drawn.anchored
        x0, first = self._windows(indices, drawn.starts), data.known_first(indices)
        if anchored.any():  # no rows would have the size of the first clip of all
            x0[anchored, :, :1] = first[anchored] = data.anchor[indices[anchored]]
        return x0, torch.cat([first, x0[:, :, 1:]], dim=2)

    def _image_tokens(self, indices: Tensor, drawn: _BatchDraw) -> Tensor:
        """The tokens of the first frame that is known: the anchor's or the clip's; zeros if it is dropped."""
        image = self.dataset.image_tokens[indices]
        image[drawn.anchored] = self.dataset.anchor_tokens[indices[drawn.anchored]]
        return image * (~drawn.no_image).float()[:, None, None]

    def _windows(self, indices: Tensor, starts: Tensor) -> Tensor:
        """The clips' first latent frame, followed by those from `starts` on; reads no other frames from disk."""
        latents, num_following = self.dataset.latents, self.num_latent_frames - 1
        windows = latents[indices, :, : self.num_latent_frames]
        for sample in (starts > 1).nonzero().flatten().tolist():
            start = int(starts[sample])
            windows[sample, :, 1:] = latents[int(indices[sample]), :, start : start + num_following]
        return windows


def _where(drop: Tensor, a: TextEmbedding, b: TextEmbedding) -> TextEmbedding:
    pick = drop.reshape(-1, 1)
    return TextEmbedding(
        torch.where(pick[..., None], a.tokens, b.tokens),
        torch.where(pick, a.mask, b.mask),
        torch.where(pick, a.pooled, b.pooled),
    )
