"""The image prior: a first frame for a prompt, retrieved from the corpus (paper, section 3)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from magic141.data.dataset import ClipDataset
from magic141.data.rows import Rows
from magic141.frozen import UserError
from magic141.retrieval.clip import ClipEmbedder


@dataclass(frozen=True)
class Hit:
    """A retrieved image, uint8 [H, W, 3], with its clip, of which it is the first frame, and its similarity."""

    clip_id: str
    caption: str
    score: float
    image: NDArray[np.uint8]


class ImagePrior:
    """Retrieves first frames by text; images are read from the data set one by one."""

    def __init__(self, embedder: ClipEmbedder, index: Any, rows: list[dict[str, str]], images: Rows) -> None:
        self._embedder, self._index, self._rows, self._images = embedder, index, rows, images

    @classmethod
    def open(cls, index: Path, clip: Path, data: Path) -> Self:
        """Opens the artifacts of the stages build_index and train_clip, and the data set that they were made from.

        Raises:
            UserError: if there is no index.
        """
        if not (index / "index.faiss").is_file():
            raise UserError(
                f"{index / 'index.faiss'}: no such file; expected the artifact of stage build_index; run it"
            )
        rows = [json.loads(line) for line in (index / "images.jsonl").read_text().splitlines()]
        searcher = faiss.read_index(str(index / "index.faiss"))
        return cls(ClipEmbedder.load(clip), searcher, rows, ClipDataset.open(data, "train").first_frame)

    def retrieve(self, prompt: str, k: int = 1) -> list[Hit]:
        """The k best images for `prompt`, best first; fewer if the corpus is smaller."""
        scores, found = self._index.search(self._embedder.embed_texts([prompt]), min(k, len(self._rows)))
        pairs = [(int(row), float(score)) for row, score in zip(found[0], scores[0], strict=True) if row >= 0]
        return [
            Hit(self._rows[row]["id"], self._rows[row]["caption"], score, self._images[row].numpy())
            for row, score in pairs
        ]
