"""A search finds videos, each by its best image."""

from __future__ import annotations

import numpy as np
import pytest

from magic141.retrieval.config import IndexConfig
from magic141.retrieval.index import make_index
from magic141.retrieval.search import search_videos


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_of_every_video_only_the_best_image_is_found(kind: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 16)).repeat(50, axis=0)
    vectors = (centres + 0.01 * rng.normal(size=centres.shape)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    videos = [f"{row // 50}.mp4" for row in range(300)]
    config = IndexConfig.model_validate({"kind": kind, "num_lists": 1})
    index = make_index(config, vectors, seed=0)
    found = search_videos(index, vectors[[20, 130]], videos, 4)
    assert [hits[0].row for hits in found] == [20, 130]
    if kind != "hnsw":  # whose graph need not reach all of them
        assert [len({videos[hit.row] for hit in hits}) for hits in found] == [4, 4]
        assert len(search_videos(index, vectors[:1], videos, 9)[0]) == 6
    for hits in found:
        assert len({videos[hit.row] for hit in hits}) == len(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert [hit.row for hit in search_videos(index, vectors[:1], None, 9)[0]] == index.search(vectors[:1], 9)[1][
        0
    ].tolist()


@pytest.mark.parametrize("videos", [None, [*range(100)]])
def test_places_that_an_index_leaves_empty_are_no_hits(videos: list[int] | None) -> None:
    """An approximate one fills them with row -1, which is the last image to Python."""
    vectors = np.eye(2, dtype=np.float32)[[0] * 50 + [1] * 50]
    index = make_index(IndexConfig(kind="ivf", num_lists=2, num_probes=1), vectors, seed=0)
    [found] = search_videos(index, vectors[:1], videos, 80)
    assert sorted(hit.row for hit in found) == list(range(50))
