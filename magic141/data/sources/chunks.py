"""Clips in units of work, each with its place in the corpus."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from magic141.data.sources.clips import Clip
from magic141.data.sources.splits import SPLITS


class Place(NamedTuple):
    """Where a chunk of clips belongs: its number among all, its split, and its first clip's number in that split."""

    number: int
    split: str
    start: int


class Chunk(NamedTuple):
    """Clips of one source and split that are encoded together; `text_only`: their captions alone."""

    place: Place
    clips: list[Clip]
    text_only: bool = False

    @property
    def json(self) -> str:
        """The clips, to be sent to a worker."""
        return json.dumps([clip.to_dict() for clip in self.clips])

    @property
    def row(self) -> dict[str, Any]:
        """What `Render` and then `Encode` work on."""
        return {"number": self.place.number, "clips": self.json, "text_only": self.text_only}


def place_chunks(chunks: Sequence[list[Clip]]) -> list[Chunk]:
    """Numbers chunks and, within each split, clips."""
    placed, starts = [], dict.fromkeys(SPLITS, 0)
    for number, clips in enumerate(chunks):
        split = clips[0].split
        placed.append(Chunk(Place(number, split, starts[split]), clips))
        starts[split] += len(clips)
    return placed


def stamp_of(chunks: Sequence[Chunk], models: str) -> str:
    """Digest of what decides the shards: the clips, in their chunks, and the digest of the models."""
    digest = hashlib.sha256(models.encode())
    for chunk in chunks:
        digest.update(chunk.json.encode())
    return digest.hexdigest()
