"""Recall of held-out captions, and the chance to which it compares."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import faiss
import numpy as np
import pytest

from magic141.retrieval.clip import ClipEmbedder
from magic141.retrieval.config import IndexConfig
from magic141.retrieval.index import build_index, make_index
from magic141.retrieval.recall import measure_recall
from magic141.stage_log import NullLog
from magic141.text_files import json_lines, read_json_lines
from tests.evaluation.artifacts import RecordingLog
from tests.retrieval.conftest import open_prior


class Content(int):
    """Counts how often contents are compared."""

    num_compared = 0
    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        Content.num_compared += 1
        return super().__eq__(other)


def test_training_beats_chance(artifacts: dict[str, Path]) -> None:
    record = json.loads((artifacts["index"] / "index.json").read_text())
    recall = record["recall"]
    assert record["num_images"] == 48
    assert recall["num_queries"] + recall["num_without_match"] == 8
    assert recall["at"]["10"] >= recall["at"]["1"]
    assert recall["at"]["5"] > recall["chance"]["5"]


def test_recall_of_an_approximate_index_compares_with_an_exact_search_in_little_memory() -> None:
    rng = np.random.default_rng(0)
    vectors, queries = (rng.normal(size=(num, 4)).astype(np.float32) for num in (40_000, 200))
    index = make_index(IndexConfig(kind="ivf", num_lists=16, num_probes=2), vectors, seed=0)
    best = np.argsort(-queries @ vectors.T, axis=1)[:, :10]
    found = index.search(queries, 10)[1]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
    embedder = SimpleNamespace(embed_texts=lambda texts: queries)
    contents = [Content(row % 100) for row in range(40_000)]
    asked = [("", Content(row % 100)) for row in range(200)]
    tracemalloc.start()
    recall = measure_recall(index, cast("ClipEmbedder", embedder), vectors, contents, asked, exact=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recall.same_as_exact == pytest.approx(expected)
    assert 0.1 < expected < 1
    assert recall.chance
    assert [recall.chance[k] for k in (1, 10)] == pytest.approx([0.01, 1 - 0.99**10], rel=2e-3)
    assert peak < 200 * 40_000 * 4, "less than one similarity of every query and image"
    assert Content.num_compared < 100_000, "not every query with every image"


def test_recall_counts_videos() -> None:
    """Two windows of a video are one chance, and one answer."""
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 2, 3]]
    queries = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    embedder = cast("ClipEmbedder", SimpleNamespace(embed_texts=lambda texts: queries.repeat(len(texts), axis=0)))
    contents, videos = ["a", "a", "a", "b", "c", "c"], ["a1", "a1", "a1", "b1", "c1", "c2"]
    index = make_index(IndexConfig(), vectors, seed=0)
    for asked, at_once, chance in (("c", 0, 2 / 4), ("b", 0, 1 / 4), ("a", 1, 1 / 4), ("abc", 1 / 3, 1 / 3)):
        pairs = [(content, content) for content in asked]
        recall = measure_recall(index, embedder, vectors, contents, pairs, exact=True, videos=videos)
        assert recall.at == {1: pytest.approx(at_once), 5: 1.0, 10: 1.0}
        assert recall.chance
        assert recall.chance[1] == pytest.approx(chance)


def test_recall_is_of_videos_that_nobody_trained_on(of_videos: dict[str, Path]) -> None:
    record = json.loads((of_videos["index"] / "index.json").read_text())
    assert record["num_images"] == faiss.read_index(str(of_videos["index"] / "index.faiss")).ntotal == 48
    assert record["recall"]["num_queries"] == 8
    assert record["recall"]["num_without_match"] == 0, "the held-out videos' own images are searched too"
    assert 0 < record["recall"]["chance"]["1"] < 0.5
    hits = open_prior(of_videos).retrieve("a red circle moves up", 24)
    assert len({hit.video for hit in hits}) == 24
    assert len(open_prior(of_videos).retrieve("a red circle", 100)) == 24


def test_a_held_out_video_is_found_among_all(
    of_videos: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(of_videos["data"], tmp_path / "data")
    rows = read_json_lines(tmp_path / "data" / "manifest.jsonl")
    told_apart = ({**row, "caption": f"video {row['source']}"} for row in rows)
    (tmp_path / "data" / "manifest.jsonl").write_text(json_lines(told_apart))
    monkeypatch.setattr("magic141.retrieval.recall.RECALL_AT", (1, 100))  # more than there are videos
    build_index(IndexConfig(), tmp_path / "data", of_videos["clip"], tmp_path, NullLog(), 0)
    recall = json.loads((tmp_path / "index.json").read_text())["recall"]
    assert recall["at"]["100"] == recall["chance"]["100"] == 1


@pytest.mark.parametrize(("rule", "reason"), [("tails", "later parts of training videos"), (None, "prepare it again")])
def test_recall_of_captions_that_trained_is_no_number(
    of_videos: dict[str, Path], tmp_path: Path, rule: str | None, reason: str
) -> None:
    data, log = tmp_path / "data", RecordingLog()
    shutil.copytree(of_videos["data"], data)
    info = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**info, "heldout": rule}))
    build_index(IndexConfig(num_queries=8), data, of_videos["clip"], tmp_path, log, 0)
    recall = json.loads((tmp_path / "index.json").read_text())["recall"]
    assert recall["at"] is None
    assert reason in recall["reason"]
    assert reason in log.notes[0]
    assert not any(name.startswith("recall") for name in log.summaries)
