"""The index over a corpus' images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magic141.data.rows import Rows
from magic141.retrieval import clip
from magic141.retrieval.clip import build_clip
from magic141.retrieval.config import ClipConfig, IndexConfig
from magic141.retrieval.index import build_index, make_index
from magic141.stage_log import NullLog
from tests.retrieval.conftest import open_prior


def test_images_are_read_a_batch_at_a_time_and_copied_nowhere(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(rows: Rows, index: Any) -> torch.Tensor:
        found = read(rows, index)
        asked.append(1 if isinstance(index, int) else len(found))
        return found

    asked: list[int] = []
    read = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", record)
    monkeypatch.setattr(clip, "EMBED_BATCH", 20)
    (tmp_path / "clip").mkdir()
    (tmp_path / "index").mkdir()
    build_clip(ClipConfig(num_steps=1, batch_size=16), artifacts["data"], tmp_path / "clip", NullLog(), 0)
    build_index(IndexConfig(), artifacts["data"], artifacts["clip"], tmp_path / "index", NullLog(), 0)
    assert asked == [20, 20, 8] * 2
    assert len(open_prior(artifacts).retrieve("a red circle", 3)) == 3
    assert asked[6:] == [1] * 3
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.faiss", "images.jsonl", "index.json"}


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_every_index_finds_a_vector_by_itself(kind: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = make_index(IndexConfig.model_validate({"kind": kind}), vectors, seed=0)
    scores, rows = index.search(vectors[:20], 1)
    assert (rows[:, 0] == np.arange(20)).all()
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-5)


@pytest.mark.parametrize(("num_probes", "exact"), [(1, False), (8, True)])
def test_as_many_lists_are_searched_as_the_config_says(num_probes: int, exact: bool) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(num, 8)).astype(np.float32) for num in (800, 50))
    index = make_index(IndexConfig(kind="ivf", num_lists=8, num_probes=num_probes), vectors, seed=0)
    best = np.argsort(-queries @ vectors.T, axis=1)[:, :5]
    assert bool((index.search(queries, 5)[1] == best).all()) == exact
