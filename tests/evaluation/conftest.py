from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.evaluation.artifacts import RecordingLog, make_data, make_generated


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], RecordingLog]:
    """Stage name -> artifact of the shapes world, up to `generate`, and what `generate` logged."""
    torch.set_num_threads(1)
    folder, log = tmp_path_factory.mktemp("shapes"), RecordingLog()
    return make_generated(folder, make_data(folder / "data"), log), log


@pytest.fixture(scope="session")
def generated_from_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same for a corpus without ground truth."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("folder")
    return make_generated(folder, make_data(folder / "data", has_truth=False))
