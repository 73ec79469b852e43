"""A prompt's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from magic141.data.dataset import ClipDataset
from magic141.errors import UserError
from magic141.retrieval.clip import ClipEmbedder
from magic141.retrieval.prior import ImagePrior
from tests.retrieval.conftest import open_prior


def test_prior_returns_the_images_of_the_best_rows(artifacts: dict[str, Path]) -> None:
    hits = open_prior(artifacts).retrieve("a red circle moves up", 4)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    embedder = ClipEmbedder.load(artifacts["clip"])
    scores = (
        embedder.embed_texts(["a red circle moves up"]) @ embedder.embed_images(np.stack([h.image for h in hits])).T
    )
    np.testing.assert_allclose(scores[0], [hit.score for hit in hits], atol=1e-5)
    train = ClipDataset.open(artifacts["data"], "train")
    for hit in hits:
        row = train.ids.index(hit.clip_id)
        assert hit.caption == train.captions[row]
        np.testing.assert_array_equal(hit.image, train.first_frame[row].numpy())


def test_prior_never_returns_more_than_it_has(artifacts: dict[str, Path]) -> None:
    assert len(open_prior(artifacts).retrieve("a red circle", 1000)) == 48


def test_missing_artifacts_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="build_index"):
        ImagePrior.open(tmp_path, tmp_path, tmp_path)
    with pytest.raises(UserError, match="train_clip"):
        ClipEmbedder.load(tmp_path)
