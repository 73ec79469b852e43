"""The image prior: a first frame for a prompt, retrieved from the corpus (paper, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from magic141.data.dataset import ClipDataset
from magic141.data.rows import Rows
from magic141.errors import UserError
from magic141.retrieval.clip import ClipEmbedder
from magic141.retrieval.search import search_videos
from magic141.text_files import read_json_lines


@dataclass(frozen=True)
class Hit:
    """A retrieved image, uint8 [H, W, 3], with its clip, of which it is the first frame, and its similarity."""

    clip_id: str
    caption: str
    score: float
    image: NDArray[np.uint8]
    video: str | None = None  # that the clip is of; none where every clip is its own


class ImagePrior:
    """Retrieves first frames by text; images are read from the data set one by one."""

    def __init__(
        self,
        embedder: ClipEmbedder,
        index: Any,
        rows: list[dict[str, str]],
        images: Rows,
        videos: Sequence[str] | None = None,
    ) -> None:
        self._embedder, self._index, self._rows, self._images = embedder, index, rows, images
        self._videos = videos

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
        rows = read_json_lines(index / "images.jsonl")
        searcher = faiss.read_index(str(index / "index.faiss"))
        corpus = ClipDataset.open(data, "train")
        return cls(ClipEmbedder.load(clip), searcher, rows, corpus.first_frame, corpus.videos)

    def retrieve(self, prompt: str, k: int) -> list[Hit]:
        """The best images for `prompt` of k videos, best first; fewer if the corpus has fewer videos."""
        [found] = search_videos(self._index, self._embedder.embed_texts([prompt]), self._videos, k)
        return [self._hit(row, score) for row, score in found]

    def _hit(self, row: int, score: float) -> Hit:
        video = self._videos[row] if self._videos is not None else None
        return Hit(self._rows[row]["id"], self._rows[row]["caption"], score, self._images[row].numpy(), video)
