"""What tests of retrieval share: a corpus, its CLIP model and its index."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magic141.retrieval.prior import ImagePrior
from tests.evaluation.artifacts import make_data, make_retrieval


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("retrieval")
    data = make_data(folder / "data")
    return {"data": data, **make_retrieval(folder, data, num_steps=60)}


@pytest.fixture(scope="session")
def of_videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two windows of every video; whole videos are held out."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("videos")
    data = make_data(folder / "data", has_truth=False)
    return {"data": data, **make_retrieval(folder, data)}


def open_prior(artifacts: dict[str, Path]) -> ImagePrior:
    """The image prior over them."""
    return ImagePrior.open(artifacts["index"], artifacts["clip"], artifacts["data"])
