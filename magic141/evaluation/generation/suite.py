"""Conditions to generate from: held-out clips, and prompts with retrieved images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magic141.data.dataset import ClipDataset
from magic141.models.encoders import Encoders
from magic141.models.text_embedding import TextEmbedding
from magic141.models.vae import VideoCodec
from magic141.retrieval.prior import Hit

FRAMES_PER_PASS = 8  # first frames that the codec encodes at once
# more than the batches of a generation or the windows of a long video, so that seeds do not repeat
_SEEDS_APART = 1009


def clip_seed(seed: int, batch: int) -> int:
    """Seed of the noise of a batch of clips: their generation's is `seed`, `batch` its number."""
    return seed * _SEEDS_APART + batch


def long_video_seed(seed: int, batch: int) -> int:
    """Seed of the noise of a batch of long videos; their windows have the seeds that follow it."""
    return seed + batch * _SEEDS_APART


@dataclass(frozen=True)
class Conditions:
    """Everything that N videos are generated from.

    Attributes:
        text: embedded captions.
        image_tokens: tokens of the first frames, [N, Li, D].
        prefix: known latent frames [N, C, k, h, w].
    """

    text: TextEmbedding
    image_tokens: Tensor
    prefix: Tensor

    def __len__(self) -> int:
        return len(self.prefix)

    def part(self, rows: slice) -> Conditions:
        """Some of the rows."""
        return Conditions(self.text.select(rows), self.image_tokens[rows], self.prefix[rows])

    def batches(self, size: int) -> Iterator[Conditions]:
        """The rows in batches."""
        return (self.part(slice(start, start + size)) for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Conditions:
        """The conditions on another device."""
        return Conditions(self.text.to(device), self.image_tokens.to(device), self.prefix.to(device))


def pick_clips(heldout: ClipDataset, num: int) -> list[int]:
    """Rows of the clips to continue, from as many videos as possible; with ground truth, those with axis captions."""
    is_open = [truth is None or not truth["exact"] for truth in heldout.truths]
    rows = [row for row, wanted in enumerate(is_open) if wanted] or list(range(len(heldout)))
    return heldout.in_turns(rows)[:num]


def clip_conditions(heldout: ClipDataset, rows: Sequence[int], num_known: int = 1) -> Conditions:
    """Captions and image tokens of held-out clips, with their first `num_known` latent frames."""
    picked = list(rows)
    known = torch.cat([heldout.known_first(picked), heldout.latents[picked, :, 1:num_known]], dim=2)
    return Conditions(heldout.text(picked), heldout.image_tokens[picked], known)


def pick_prompts(prompts: Sequence[str], heldout: ClipDataset, num: int) -> list[str]:
    """The configured prompts, or distinct captions of held-out clips."""
    captions = (heldout.captions[row] for row in heldout.in_turns(range(len(heldout))))
    return list(prompts) or list(dict.fromkeys(captions))[:num]


def shows_own_video(prompt: str, hit: Hit, heldout: ClipDataset) -> bool:
    """Whether an image is of the very video that a held-out caption describes, whose earlier parts trained."""
    described = zip(heldout.captions, heldout.videos or [], strict=False)
    return hit.video is not None and (prompt, hit.video) in set(described)


def prompt_conditions(prompts: Sequence[str], images: Tensor, encoders: Encoders, codec: VideoCodec) -> Conditions:
    """Encodes prompts and their first frames, uint8 [N, H, W, 3]."""
    known = torch.cat([codec.encode_video(batch[:, None]) for batch in images.split(FRAMES_PER_PASS)])
    return Conditions(encoders.encode_text(list(prompts)), encoders.encode_image(images), known)
