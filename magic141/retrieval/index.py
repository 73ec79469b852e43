"""Builds the FAISS index over the corpus's images and measures how well captions find them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from magic141.data.dataset import ClipDataset
from magic141.data.info import load_info
from magic141.data.sources.splits import HeldOut
from magic141.retrieval.clip import ClipEmbedder, Embeddings
from magic141.retrieval.config import IndexConfig
from magic141.retrieval.recall import Recall, measure_recall
from magic141.stage_log import StageLog
from magic141.text_files import json_lines

IMAGES_PER_LIST = 39  # training points per cluster that FAISS's k-means asks for
NOT_APPLICABLE: dict[HeldOut | None, str] = {
    "tails": "held-out clips are later parts of training videos, whose captions they share",
    None: "the data set does not say whether its held-out clips are of videos that also train; prepare it again",
}


def build_index(config: IndexConfig, data: Path, clip: Path, out: Path, log: StageLog, seed: int) -> None:
    """Embeds the first frames of the training clips, indexes them and measures text-to-image recall.

    Writes `index.faiss`, `images.jsonl` and `index.json`; the images stay in the data set.
    """
    faiss.omp_set_num_threads(config.num_threads)
    embedder = ClipEmbedder.load(clip)
    corpus = ClipDataset.open(data, "train")
    with log.progress(3, "step") as advance:
        vectors = embedder.embed_images(corpus.first_frame)
        advance(1)
        index = make_index(config, vectors, seed)
        faiss.write_index(index, str(out / "index.faiss"))
        _write_images(corpus, out)
        advance(1)
        recall = _measure(config, index, embedder, vectors, corpus, data, seed)
        advance(1)
    record = {"kind": config.kind, "dim": vectors.shape[1], "num_images": len(vectors), "recall": recall.to_dict()}
    (out / "index.json").write_text(json.dumps(record, indent=1))
    _report(recall, len(vectors), log)


def make_index(config: IndexConfig, vectors: Embeddings, seed: int) -> Any:
    """An inner-product index over unit vectors [N, D]; `seed` is of its clusters, if it has any."""
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


def _measure(
    config: IndexConfig,
    index: Any,
    embedder: ClipEmbedder,
    vectors: Embeddings,
    corpus: ClipDataset,
    data: Path,
    seed: int,
) -> Recall:
    """Recall of held-out captions, which have to be of something that is never trained on.

    Where whole videos are held out, their images are searched among those of the training videos, as those of the
    shapes world, whose content the corpus holds many times, need not be.
    """
    info, heldout = load_info(data), ClipDataset.open(data, "heldout")
    known, asked, exact = contents(corpus), contents(heldout), config.kind == "flat"
    queries = list(zip(heldout.captions, asked, strict=True))
    if info.has_ground_truth:
        return measure_recall(index, embedder, vectors, known, _pick(queries, config.num_queries, seed), exact)
    if info.heldout in NOT_APPLICABLE:
        return Recall(None, None, 0, 0, None, NOT_APPLICABLE[info.heldout])
    added = embedder.embed_images(heldout.first_frame)
    index.add(added)  # the file is written: these are only for the measurement
    picked = _pick(list(dict.fromkeys(queries)), config.num_queries, seed)  # windows of a video share their caption
    videos = [*corpus.sources, *heldout.sources]
    return measure_recall(
        index, embedder, np.concatenate([vectors, added]), [*known, *asked], picked, exact, videos=videos
    )


def _pick(queries: Sequence[tuple[str, Hashable]], num: int, seed: int) -> list[tuple[str, Hashable]]:
    return [queries[row] for row in np.random.default_rng(seed).permutation(len(queries))[:num]]


def _write_images(corpus: ClipDataset, out: Path) -> None:
    rows = zip(corpus.ids, corpus.captions, strict=True)
    lines = json_lines({"id": clip_id, "caption": caption, "split": "train"} for clip_id, caption in rows)
    (out / "images.jsonl").write_text(lines)


def _report(recall: Recall, num_images: int, log: StageLog) -> None:
    if recall.at is None or recall.chance is None:
        reason = recall.reason or "no held-out caption has an image in the corpus"
        log.note(f"{num_images} images indexed; recall not measured: {reason}")
        log.summary({"num_images": num_images})
        return
    log.summary({"num_images": num_images, **{f"recall_at_{k}": share for k, share in recall.at.items()}})
    shares = ", ".join(f"@{k} {share:.2f} (chance {recall.chance[k]:.2f})" for k, share in recall.at.items())
    log.note(f"{num_images} images indexed; recall of {recall.num_queries} held-out captions: {shares}")
