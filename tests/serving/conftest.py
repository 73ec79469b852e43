from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magic141.artifacts import NullLog
from magic141.export import export_pipeline
from magic141.serving.config import Limits
from magic141.tracking.model_folder import write_model_files
from tasks.publish import PYFUNC_LOADER
from tests.evaluation.artifacts import DMD2, MODEL, make_data, make_models


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the publish stage writes, around an untrained student."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("published")
    data = make_data(folder / "data")
    student = make_models(folder / "models", data)["student"]
    return publish(data, student, folder / "first")


def publish(data: Path, student: Path, out: Path) -> Path:
    out.mkdir()
    export_pipeline(MODEL, DMD2, data, student, out, NullLog())
    write_model_files(out, PYFUNC_LOADER, Limits().model_dump())
    return out


def picture(width: int = 48, height: int = 40, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def image() -> bytes:
    return picture()
