"""Reads the prepared corpus for training and evaluation, one split at a time; clips stay on disk until needed."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor

from magic141.data.info import existing
from magic141.data.rows import Rows
from magic141.data.sizes import Size
from magic141.errors import UserError
from magic141.models.text_embedding import TextEmbedding
from magic141.text_files import each_json_line

MANIFEST_FILE = "manifest.jsonl"
NULL_TEXT_FILE = "null_text.safetensors"
GOLDEN_RATIO = (1 + 5**0.5) / 2


@dataclass(frozen=True)
class ClipDataset:
    """One split of a prepared corpus; row i of every field is the same clip.

    Training clips may have several sizes, of which only rows of the same one can be had together.
    """

    latents: Rows  # [N, C, T, h, w] float32
    text_tokens: Rows  # [N, Lt, D]
    text_mask: Rows  # [N, Lt] bool, valid tokens first
    pooled: Rows  # [N, P]
    image_tokens: Rows  # [N, Li, D] of the first frame
    anchor: Rows  # [N, C, 1, h, w]: first latent frame of the scene that the clip continues
    anchor_tokens: Rows  # [N, Li, D] of that frame
    first_frame: Rows  # [N, H, W, 3] uint8
    first_latent: Rows | None  # [N, C, 1, h, w]: that frame encoded alone; None in a corpus of an earlier version
    frames: Rows | None  # [N, F, H, W, 3] uint8; of held-out clips only
    ids: list[str]
    captions: list[str]
    truths: list[dict[str, Any] | None]
    sources: list[str]  # the video that the clip is cut from, or "shapes"

    @classmethod
    def open(cls, folder: Path, split: str) -> Self:
        """Opens the split `train`, `validation` or `heldout` of a prepared folder.

        Args:
            folder: artifact of `prepare_data`.
            split: name of the split.
        """
        rows = [row for row in each_json_line(existing(folder / MANIFEST_FILE)) if row["split"] == split]
        if not rows:
            raise UserError(f"data set {folder}: no clips of split {split!r}; expected train, validation or heldout")
        # load_file maps the file: nothing is read yet, and later reads share the page cache between all workers
        shards = [load_file(existing(folder / shard)) for shard in dict.fromkeys(row["shard"] for row in rows)]
        fields: dict[str, Any] = {name: Rows([shard[name] for shard in shards]) for name in shards[0]}
        fields.setdefault("frames", None)
        fields.setdefault("first_latent", None)
        return cls(
            **fields,
            ids=[row["id"] for row in rows],
            captions=[sys.intern(row["caption"]) for row in rows],  # the windows of a video share one
            truths=[row["truth"] for row in rows],
            sources=[sys.intern(row["source"]) for row in rows],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def videos(self) -> list[str] | None:
        """The video that each clip is of; none in the shapes world, where every clip is its own."""
        return None if any(truth is not None for truth in self.truths) else self.sources

    @property
    def pixels(self) -> Rows:
        """The frames of held-out clips, uint8 [N, F, H, W, 3], which no other split has."""
        assert self.frames is not None
        return self.frames

    @property
    def by_size(self) -> dict[Size, Tensor]:
        """The rows of the clips of each size, int64 [n]."""
        rows_of_sizes = self.first_frame.by_shape()
        return {Size(*self.first_frame[int(rows[0])].shape[:2]): rows for rows in rows_of_sizes}

    def in_turns(self, rows: Iterable[int]) -> list[int]:
        """Reorders rows, so that a few cover many videos, and of each its whole length.

        One of every video comes first, then a second of each, and so on; those of a video are spread over it. Clips
        that are videos of their own keep their order.
        """
        if self.videos is None:
            return list(rows)
        of_videos: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            of_videos[self.sources[row]].append(row)
        turns = zip_longest(*map(_spread, of_videos.values()))
        return [row for turn in turns for row in turn if row is not None]

    def known_first(self, rows: Tensor | Sequence[int]) -> Tensor:
        """What a model is told of some clips' first frames, [B, C, 1, h, w]: what encoding a single picture gives.

        The first latent frame of a whole clip is not that with HunyuanVideo's VAE, whose norms see all frames: it would
        give the motion away.
        """
        return self.latents[rows, :, :1] if self.first_latent is None else self.first_latent[rows]

    def text(self, rows: Tensor | Sequence[int]) -> TextEmbedding:
        """The embedded captions of some clips."""
        return TextEmbedding(self.text_tokens[rows], self.text_mask[rows], self.pooled[rows])


def load_null_text(folder: Path) -> TextEmbedding:
    """Reads the embedding of the empty prompt, one row."""
    fields = load_file(existing(folder / NULL_TEXT_FILE))
    return TextEmbedding(fields["text_tokens"], fields["text_mask"], fields["pooled"])


def _spread(rows: Sequence[int]) -> list[int]:
    """The rows in an order of which every beginning lies spread over them: multiples of the golden ratio, modulo 1."""
    return [rows[place] for place in sorted(range(len(rows)), key=lambda place: (0.5 + GOLDEN_RATIO * place) % 1)]
