from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magic141.config import PipelineConfig
from magic141.stage_log import NullLog
from tasks.publish import STAGE
from tasks.stage import StageCall
from tests.evaluation.artifacts import DMD2, make_data, make_models
from tests.models.tiny import CONFIG


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
    inputs = {"prepare_data": data, "distill_dmd2": student}
    STAGE.run(StageCall(PipelineConfig(model=CONFIG, distill_dmd2=DMD2), inputs, out, NullLog(), out.parent))
    return out


def picture(width: int = 48, height: int = 40, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def image() -> bytes:
    return picture()
