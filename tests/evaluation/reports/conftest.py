from __future__ import annotations

from pathlib import Path

import pytest

from magic141.evaluation.config import ReportConfig
from tests.evaluation.artifacts import RecordingLog
from tests.evaluation.reports.written import with_scores, write


@pytest.fixture(scope="session")
def scored(
    generated: tuple[dict[str, Path], RecordingLog], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return with_scores(generated[0], tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="session")
def page(scored: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(scored, tmp_path_factory.mktemp("report"), ReportConfig(title="A <b>run</b>"))
