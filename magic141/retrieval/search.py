"""Searching for videos: an index holds many images of each, of which the best one counts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from magic141.retrieval.clip import Embeddings

DEEPER = 4  # times as many images are searched where they turned out to be of too few videos


class Found(NamedTuple):
    """An image: its row in the index, and its similarity."""

    row: int
    score: float


def search_videos(index: Any, queries: Embeddings, videos: Sequence[Hashable] | None, k: int) -> list[list[Found]]:
    """The best image of each of the k best videos for every query, best first; fewer if no more are found.

    Args:
        index: over N images.
        queries: unit vectors [Q, D].
        videos: what each of the N images is of; none if every image is a video of its own.
        k: videos.
    """
    scores, rows = index.search(queries, min(k, index.ntotal))
    found = [_distinct(*pair, videos) for pair in zip(rows, scores, strict=True)]
    if videos is None or all(len(hits) == k for hits in found):
        return found
    wanted = min(k, len(set(videos)))
    return [
        hits if len(hits) == wanted else _search_deeper(index, query, videos, wanted)
        for query, hits in zip(queries, found, strict=True)
    ]


def _search_deeper(index: Any, query: NDArray[np.float32], videos: Sequence[Hashable], wanted: int) -> list[Found]:
    """One query again, among more and more images, until they are of enough videos or no more are found."""
    depth = wanted
    while True:
        depth = min(DEEPER * depth, index.ntotal)
        scores, rows = index.search(query[None], depth)
        hits = _distinct(rows[0], scores[0], videos)
        if len(hits) >= wanted or depth == index.ntotal or rows[0, -1] < 0:
            return hits[:wanted]


def _distinct(rows: NDArray[np.int64], scores: NDArray[np.float32], videos: Sequence[Hashable] | None) -> list[Found]:
    """The first image of every video; rows below zero are none."""
    best: dict[Hashable, Found] = {}
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        if row >= 0:
            best.setdefault(row if videos is None else videos[row], Found(row, score))
    return list(best.values())
