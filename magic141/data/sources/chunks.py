"""Clips in units of work, each with its place in the corpus."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from magic141.data.sizes import Size
from magic141.data.sources.clips import Clip


class Group(NamedTuple):
    """Clips that may share a file: of one split, and of one size (None: the main one)."""

    split: str
    more_size: Size | None = None

    @property
    def name(self) -> str:
        """Begins the names of its files."""
        return self.split if self.more_size is None else f"{self.split}_{self.more_size}"


class Place(NamedTuple):
    """Where a chunk of clips belongs: its number among all, its group, and its first clip's number in that group."""

    number: int
    group: Group
    start: int


class Chunk(NamedTuple):
    """Clips of one source and group that are encoded together; `text_only`: their captions alone."""

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
    """Numbers chunks and, within each group, clips."""
    placed, starts = [], Counter[Group]()
    for number, clips in enumerate(chunks):
        group = Group(clips[0].split, clips[0].more_size)
        placed.append(Chunk(Place(number, group, starts[group]), clips))
        starts[group] += len(clips)
    return placed


def stamp_of(chunks: Sequence[Chunk], models: str) -> str:
    """Digest of what decides the shards: the clips, in their chunks, and the digest of the models."""
    digest = hashlib.sha256(models.encode())
    for chunk in chunks:
        digest.update(chunk.json.encode())
    return digest.hexdigest()
