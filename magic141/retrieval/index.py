"""Builds the FAISS index over the corpus's images and measures how well captions find them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from magic141.artifacts import StageLog
from magic141.data.dataset import ClipDataset
from magic141.retrieval.clip import ClipEmbedder, Embeddings
from magic141.retrieval.config import IndexConfig

RECALL_AT = (1, 5, 10)
IMAGES_PER_LIST = 39  # training points per cluster that FAISS's k-means asks for


@dataclass(frozen=True)
class Recall:
    """Share of queries with a hit among the first k images.

    Attributes:
        at: k -> share; None if no query has an image with its content in the corpus.
        chance: k -> the same for k random images.
        num_queries: queries measured.
        num_without_match: queries left out because the corpus holds no image with their content.
        same_as_exact: share of the first ten neighbours that an exact search returns, too; None for exact indexes.
    """

    at: dict[int, float] | None
    chance: dict[int, float] | None
    num_queries: int
    num_without_match: int
    same_as_exact: float | None


def build_index(config: IndexConfig, data: Path, clip: Path, out: Path, log: StageLog, seed: int) -> None:
    """Embeds the first frames of the training clips, indexes them and measures text-to-image recall.

    Writes `index.faiss`, `images.jsonl` and `index.json`; the images stay in the data set.
    """
    faiss.omp_set_num_threads(config.num_threads)
    embedder = ClipEmbedder.load(clip)
    corpus, heldout = (ClipDataset.open(data, split) for split in ("train", "heldout"))
    with log.progress(3, "step") as advance:
        vectors = embedder.embed_images(corpus.first_frame)
        advance(1)
        index = make_index(config, vectors, seed)
        faiss.write_index(index, str(out / "index.faiss"))
        _write_images(corpus, out)
        advance(1)
        queries = _pick_queries(heldout, config.num_queries, seed)
        recall = measure_recall(index, embedder, vectors, contents(corpus), queries, exact=config.kind == "flat")
        advance(1)
    record = {"kind": config.kind, "dim": vectors.shape[1], "num_images": len(vectors), "recall": asdict(recall)}
    (out / "index.json").write_text(json.dumps(record, indent=1))
    _report(recall, len(vectors), log)


def make_index(config: IndexConfig, vectors: Embeddings, seed: int = 0) -> Any:
    """An inner-product index over unit vectors [N, D]."""
    num, dim = vectors.shape
    index: Any
    if config.kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif config.kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, config.num_neighbours, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = max(64, 2 * config.num_neighbours)
    else:
        num_lists = max(1, min(config.num_lists, num // IMAGES_PER_LIST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed
        index.train(vectors)
        index.nprobe = min(config.num_probes, num_lists)
    index.add(vectors)
    return index


def contents(dataset: ClipDataset) -> list[Hashable]:
    """What each clip's first frame can show of its caption: colour and shape, or the whole caption."""
    return [
        caption if truth is None else (truth["colour"], truth["shape"])
        for caption, truth in zip(dataset.captions, dataset.truths, strict=True)
    ]


def measure_recall(
    index: Any,
    embedder: ClipEmbedder,
    vectors: Embeddings,
    corpus: Sequence[Hashable],
    queries: Sequence[tuple[str, Hashable]],
    exact: bool,
) -> Recall:
    """Searches with each query's caption; a hit is an image with the query's content.

    Args:
        index: the index over `vectors`.
        embedder: embeds the captions.
        vectors: embedded images of the corpus, [N, D].
        corpus: content of each image.
        queries: (caption, content).
        exact: whether the index is exact, so that comparing it with an exact search is pointless.
    """
    counts = Counter(corpus)
    asked = [(caption, content) for caption, content in queries if content in counts]
    missing = len(queries) - len(asked)
    if not asked:
        return Recall(None, None, 0, missing, None)
    depth = min(max(RECALL_AT), len(corpus))
    embedded = embedder.embed_texts([caption for caption, _ in asked])
    rows = index.search(embedded, depth)[1]
    hits = np.array([[r >= 0 and corpus[r] == c for r in found] for found, (_, c) in zip(rows, asked, strict=True)])
    share = np.array([counts[content] / len(corpus) for _, content in asked])
    return Recall(
        at={k: float(hits[:, :k].any(1).mean()) for k in RECALL_AT},
        chance={k: float((1 - (1 - share) ** k).mean()) for k in RECALL_AT},
        num_queries=len(asked),
        num_without_match=missing,
        same_as_exact=None if exact else _agreement(rows, embedded, vectors),
    )


def _agreement(rows: NDArray[np.int64], queries: Embeddings, vectors: Embeddings) -> float:
    """Share of the found rows that an exact search finds, too; FAISS does that block by block, in little memory."""
    best = faiss.knn(queries, vectors, rows.shape[1], metric=faiss.METRIC_INNER_PRODUCT)[1]
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows.tolist(), best.tolist(), strict=True)]))


def _pick_queries(heldout: ClipDataset, num: int, seed: int) -> list[tuple[str, Hashable]]:
    pairs = list(zip(heldout.captions, contents(heldout), strict=True))
    order = np.random.default_rng(seed).permutation(len(pairs))[:num]
    return [pairs[row] for row in order]


def _write_images(corpus: ClipDataset, out: Path) -> None:
    rows = zip(corpus.ids, corpus.captions, strict=True)
    lines = [json.dumps({"id": clip_id, "caption": caption, "split": "train"}) for clip_id, caption in rows]
    (out / "images.jsonl").write_text("\n".join(lines) + "\n")


def _report(recall: Recall, num_images: int, log: StageLog) -> None:
    if recall.at is None or recall.chance is None:
        log.note(f"{num_images} images indexed; recall not measured: no held-out caption has an image in the corpus")
        log.summary({"num_images": num_images})
        return
    log.summary({"num_images": num_images, **{f"recall_at_{k}": share for k, share in recall.at.items()}})
    shares = ", ".join(f"@{k} {share:.2f} (chance {recall.chance[k]:.2f})" for k, share in recall.at.items())
    log.note(f"{num_images} images indexed; recall of {recall.num_queries} held-out captions: {shares}")
