"""How well captions find images of what they describe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from magic141.retrieval.clip import ClipEmbedder, Embeddings
from magic141.retrieval.search import search_videos

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """Share of queries with a hit among the first k videos, of each of which the best image counts.

    Attributes:
        at: k -> share; None if no query has an image with its content among those searched.
        chance: k -> the same for k random videos.
        num_queries: queries measured.
        num_without_match: queries left out because no image has their content.
        same_as_exact: share of the first ten neighbours that an exact search returns, too; None for exact indexes.
        reason: why recall says nothing here; None where it was measured.
    """

    at: dict[int, float] | None
    chance: dict[int, float] | None
    num_queries: int
    num_without_match: int
    same_as_exact: float | None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; no reason where there is none."""
        return {name: value for name, value in asdict(self).items() if name != "reason" or value}


def measure_recall(
    index: Any,
    embedder: ClipEmbedder,
    vectors: Embeddings,
    corpus: Sequence[Hashable],
    queries: Sequence[tuple[str, Hashable]],
    exact: bool,
    videos: Sequence[Hashable] | None = None,
) -> Recall:
    """Searches with each query's caption; a hit is an image with the query's content.

    Args:
        index: the index over `vectors`.
        embedder: embeds the captions.
        vectors: embedded images, [N, D].
        corpus: content of each image.
        queries: (caption, content).
        exact: whether the index is exact, so that comparing it with an exact search is pointless.
        videos: what each image is of; None if every image is a video of its own.
    """
    counts = Counter(corpus if videos is None else [content for content, _ in set(zip(corpus, videos, strict=True))])
    asked = [(caption, content) for caption, content in queries if content in counts]
    missing = len(queries) - len(asked)
    if not asked:
        return Recall(None, None, 0, missing, None)
    embedded = embedder.embed_texts([caption for caption, _ in asked])
    found = search_videos(index, embedded, videos, max(RECALL_AT))
    places = np.array(
        [_place([corpus[hit.row] == content for hit in hits]) for hits, (_, content) in zip(found, asked, strict=True)]
    )
    return Recall(
        at={k: float((places < k).mean()) for k in RECALL_AT},
        chance={k: fmean(_chance(counts.total(), counts[content], k) for _, content in asked) for k in RECALL_AT},
        num_queries=len(asked),
        num_without_match=missing,
        same_as_exact=None if exact else _agreement(index, embedded, vectors),
    )


def _chance(num_videos: int, num_matching: int, k: int) -> float:
    """The probability that one of k different videos, drawn at random, matches."""
    return 1 - math.comb(num_videos - num_matching, k) / math.comb(num_videos, k) if k < num_videos else 1.0


def _place(is_hit: Sequence[bool]) -> float:
    """Of the first hit, from 0; infinite without."""
    return is_hit.index(True) if True in is_hit else float("inf")


def _agreement(index: Any, queries: Embeddings, vectors: Embeddings) -> float:
    """Share of the found rows that an exact search finds, too; FAISS does that block by block, in little memory."""
    depth = min(max(RECALL_AT), len(vectors))
    rows: NDArray[np.int64] = index.search(queries, depth)[1]
    best = faiss.knn(queries, vectors, depth, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows.tolist(), best.tolist(), strict=True)]))
