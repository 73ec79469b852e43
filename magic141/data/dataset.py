"""What training and evaluation read: the prepared corpus, one split at a time, in memory."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from magic141.frozen import UserError
from magic141.models.text_embedding import TextEmbedding

INFO_FILE = "dataset.json"
MANIFEST_FILE = "manifest.jsonl"
NULL_TEXT_FILE = "null_text.safetensors"


class BadFileInfo(BaseModel):
    """A file that was not used."""

    file: str
    reason: str


class DatasetInfo(BaseModel):
    """Sizes, versions and quality of a prepared corpus."""

    model_config = ConfigDict(frozen=True)

    num_clips: dict[str, int]
    source: str
    fps: float
    num_frames: int
    height: int
    width: int
    latent_shape: tuple[int, int, int, int]  # C, T, h, w
    num_text_tokens: int
    num_image_tokens: int
    text_width: int
    pooled_width: int
    temporal_factor: int
    spatial_factor: int
    codec_version: str
    encoder_version: str
    has_ground_truth: bool
    bad_files: tuple[BadFileInfo, ...]
    codec_psnr_db: float


@dataclass(frozen=True)
class ClipDataset:
    """One split of a prepared corpus; row i of every field is the same clip."""

    latents: Tensor  # [N, C, T, h, w] float32
    text_tokens: Tensor  # [N, Lt, D]
    text_mask: Tensor  # [N, Lt] bool, valid tokens first
    pooled: Tensor  # [N, P]
    image_tokens: Tensor  # [N, Li, D] of the first frame
    anchor: Tensor  # [N, C, 1, h, w]: first latent frame of the video that the clip continues
    anchor_tokens: Tensor  # [N, Li, D] of that frame
    first_frame: Tensor  # [N, H, W, 3] uint8
    frames: Tensor | None  # [N, F, H, W, 3] uint8; None for train, or if they were not asked for
    ids: list[str]
    captions: list[str]
    truths: list[dict[str, Any] | None]

    @classmethod
    def open(cls, folder: Path, split: str, with_frames: bool = True) -> Self:
        """Reads the split `train`, `validation` or `heldout` of a prepared folder.

        Args:
            folder: of `prepare_data`.
            split: which clips.
            with_frames: without, the clips' pixels stay on disk: they are by far the largest part.
        """
        lines = _existing(folder / MANIFEST_FILE).read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["split"] == split]
        if not rows:
            raise UserError(f"data set {folder}: no clips of split {split!r}; expected train, validation or heldout")
        left_out = () if with_frames else ("frames",)
        shards = [_read(folder / shard, left_out) for shard in dict.fromkeys(row["shard"] for row in rows)]
        fields: dict[str, Any] = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        fields.setdefault("frames", None)
        return cls(
            **fields,
            ids=[row["id"] for row in rows],
            captions=[row["caption"] for row in rows],
            truths=[row["truth"] for row in rows],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> TextEmbedding:
        """The captions' embeddings."""
        return TextEmbedding(self.text_tokens, self.text_mask, self.pooled)


def load_info(folder: Path) -> DatasetInfo:
    """Reads dataset.json."""
    return DatasetInfo.model_validate_json(_existing(folder / INFO_FILE).read_text())


def load_null_text(folder: Path) -> TextEmbedding:
    """Reads the embedding of the empty prompt, one row."""
    fields = load_file(_existing(folder / NULL_TEXT_FILE))
    return TextEmbedding(fields["text_tokens"], fields["text_mask"], fields["pooled"])


def _read(shard: Path, left_out: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a shard; those left out are not even read."""
    with safe_open(str(_existing(shard)), framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys() if name not in left_out}  # noqa: SIM118


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"data set file {path}: no such file; expected a folder from prepare_data; prepare it again")
    return path
